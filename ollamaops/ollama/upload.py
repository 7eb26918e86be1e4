"""Sending weights to a server as a blob: look first, then stream them, with nothing of them in memory.

Decides when a blob counts as there. No retries; those are in apply/. Easily missed: a server that already has the
blob answers before it reads the body, so the sender sees a broken pipe. That is why HEAD comes first, and comes
again when the connection breaks. A proxy that buffers takes the whole body before it hands it on, so the answer may
come long after the last byte.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ollamaops.errors import (
    DigestMismatch,
    RemoteError,
    WeightsError,
)
from ollamaops.names import Digest
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient, ProgressSink
from ollamaops.ollama.faults import ends_unheard
from ollamaops.ollama.wire import Progress

STATUS = "uploading"


class Readable(Protocol):
    """Bytes in order, as many as are there at once; b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


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
    cancel: CancelToken | None = None,
) -> bool:
    """Make sure that the host has the file as a blob. False if it was there already.

    `size_bytes` is what the file had when its digest was computed. WeightsError when the file cannot be read or has
    another size, DigestMismatch when the server finds another digest (it then keeps the bytes as an orphan).
    """
    source = LocalFile(path, size_bytes)
    return upload_source(client, digest, source, on_progress=on_progress, cancel=cancel)


def upload_source(
    client: OllamaClient,
    digest: Digest,
    source: BlobSource,
    *,
    on_progress: ProgressSink | None = None,
    cancel: CancelToken | None = None,
) -> bool:
    """As `upload_blob`, from anywhere. `source` is opened only if the host lacks the blob."""
    if client.has_blob(digest, cancel=cancel):
        return False
    with source.open() as reader:
        body = _Body(reader, source, digest, on_progress, cancel)
        try:
            _post(client, body, cancel)
        except RemoteError as error:
            if not ends_unheard(error) or not client.has_blob(digest, cancel=cancel):
                raise
    return True


def _post(client: OllamaClient, body: _Body, cancel: CancelToken | None) -> None:
    try:
        client.transport.request(
            "POST",
            f"/api/blobs/{body.digest}",
            upload=body,
            what=f"upload {body.source.name}",
            idle_s=client.transport.limits.stall_s,
            sent_idle_s=client.transport.limits.quiet_s,
            cancel=cancel,
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
        cancel: CancelToken | None,
    ) -> None:
        self.source = source
        self.digest = digest
        self._reader = reader
        self._sent_bytes = 0
        self._on_progress = on_progress
        self._cancel = cancel

    def __len__(self) -> int:
        return self.source.size_bytes

    def read(self, size: int = -1, /) -> bytes:
        """The next block, never past the announced length. Asking for it means that the one before went out."""
        self._report()
        if self._cancel is not None:
            self._cancel.check(f"upload {self.source.name}: cancelled")
        left = len(self) - self._sent_bytes
        block = self._reader.read(left if size < 0 else min(size, left)) if left else b""
        self._sent_bytes += len(block)
        if left and not block:
            raise _changed(self.source.place, f"it ends after {self._sent_bytes} of {len(self)} bytes")
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


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this disk, which had `size_bytes` when its digest was computed."""

    path: Path
    size_bytes: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def place(self) -> str:
        """The whole path."""
        return str(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[Readable]:
        """The file's bytes. WeightsError if it cannot be read, or has another size before or after."""
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise _unreadable(self.place, error) from error
        with file:
            _check_size(file, self)
            yield _LocalReader(file, self)


class _LocalReader:
    """Reads a local file, and looks at its size once more when the last byte was read."""

    def __init__(self, file: io.RawIOBase, source: LocalFile) -> None:
        self._file = file
        self._source = source
        self._read_bytes = 0

    def read(self, size: int, /) -> bytes:
        try:
            block = self._file.read(size) or b""
        except OSError as error:
            raise _unreadable(self._source.place, error) from error
        self._read_bytes += len(block)
        if self._read_bytes == self._source.size_bytes:
            _check_size(self._file, self._source)
        return block


def _check_size(file: io.RawIOBase, source: LocalFile) -> None:
    now_bytes = os.fstat(file.fileno()).st_size
    if now_bytes != source.size_bytes:
        raise _changed(
            source.place, f"it had {source.size_bytes} bytes when it was hashed and has {now_bytes} now"
        )


def _changed(place: str, how: str) -> WeightsError:
    return WeightsError(
        f"{place}: changed while it was used: {how}", hint="run again when nothing writes to it"
    )


def _unreadable(place: str, error: OSError) -> WeightsError:
    return WeightsError(f"{place}: cannot be read: {(error.strerror or 'input/output error').lower()}")
