"""Sending weights to a server as a blob: look first, then stream them, with nothing of them in memory.

A server that already has the blob answers before it reads the body, so the sender sees a broken pipe. That is why
HEAD comes first, and comes again when the connection breaks. A proxy that buffers takes the whole body before it
hands it on, so the answer may come long after the last byte. There are no retries here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ollamaops.errors import DigestMismatch, RemoteError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.file_body import FileBlock, LocalFile, changed
from ollamaops.names import Digest
from ollamaops.ollama.answer_errors import ends_unheard
from ollamaops.ollama.client import OllamaClient, ProgressSink
from ollamaops.ollama.wire import Progress

STATUS = "uploading"


class Readable(Protocol):
    """Bytes in order, as many as are there at once; nothing at the end."""

    def read(self, size: int, /) -> bytes | FileBlock: ...


class BlobSource(Protocol):
    """Where the bytes of a blob come from. `name` is short and `place` full, both for messages."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    def open(self) -> AbstractContextManager[Readable]: ...


def upload_blob(
    client: OllamaClient,
    digest: Digest,
    path: Path,
    size_bytes: int,
    *,
    on_progress: ProgressSink | None = None,
) -> bool:
    """Make sure that the host has the file as a blob. False if it was there already.

    `size_bytes` is what the file had when its digest was computed. WeightsError when the file cannot be read or has
    another size, DigestMismatch when the server finds another digest (it then keeps the bytes as an orphan).
    """
    source = LocalFile(path, size_bytes)
    return upload_source(client, digest, source, on_progress=on_progress)


def upload_source(
    client: OllamaClient,
    digest: Digest,
    source: BlobSource,
    *,
    on_progress: ProgressSink | None = None,
) -> bool:
    """As `upload_blob`, from anywhere. `source` is opened only if the host lacks the blob."""
    if client.has_blob(digest):
        return False
    with source.open() as reader:
        body = _Body(reader, source, digest, on_progress, client.transport.cancel)
        try:
            _post(client, body)
        except RemoteError as error:
            if not ends_unheard(error) or not client.has_blob(digest):
                raise
    return True


def _post(client: OllamaClient, body: _Body) -> None:
    try:
        client.transport.request(
            "POST",
            f"/api/blobs/{body.digest}",
            upload=body,
            what=f"upload {body.source.name}",
            idle_s=client.transport.limits.stall_s,
            sent_idle_s=client.transport.limits.quiet_s,
        )
    except DigestMismatch as error:
        raise DigestMismatch(
            str(error),
            host=error.host,
            status=error.status,
            text=error.text,
            hint=f"'{body.source.place}' changed since its digest was computed, or a stated digest is wrong",
        ) from error


class _Body:
    """A source as a request body: its length is fixed, and it must have that length in the end."""

    def __init__(
        self,
        reader: Readable,
        source: BlobSource,
        digest: Digest,
        on_progress: ProgressSink | None,
        cancel: CancelToken,
    ) -> None:
        self.source = source
        self.digest = digest
        self._reader = reader
        self._sent_bytes = 0
        self._on_progress = on_progress
        self._cancel = cancel

    def __len__(self) -> int:
        return self.source.size_bytes

    def read(self, size: int = -1, /) -> bytes | FileBlock:
        """The next block, never past the announced length. Asking for it means that the one before went out."""
        self._report()
        self._cancel.check(f"upload {self.source.name}: cancelled")
        left = len(self) - self._sent_bytes
        block = self._reader.read(left if size < 0 else min(size, left)) if left else b""
        self._sent_bytes += len(block)
        if left and not block:
            raise changed(self.source.place, f"it ends after {self._sent_bytes} of {len(self)} bytes")
        return block

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    status=STATUS,
                    digest=str(self.digest),
                    total_bytes=len(self),
                    completed_bytes=self._sent_bytes,
                )
            )
