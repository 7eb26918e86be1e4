"""Sending a local file to a server as a blob: look first, then stream it, with nothing of it in memory.

Decides when a blob counts as there. No retries; those are in apply/. Easily missed: a server that already has the
blob answers before it reads the body, so the sender sees a broken pipe. That is why HEAD comes first, and comes
again when the connection breaks.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from ollamaops.errors import ConnectionLost, DigestMismatch, WeightsError
from ollamaops.names import Digest
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient, ProgressSink
from ollamaops.ollama.wire import Progress

STATUS = "uploading"


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
    if client.has_blob(digest, cancel=cancel):
        return False
    with _opened(path, size_bytes) as file:
        body = _Body(file, path, digest, size_bytes, on_progress, cancel)
        try:
            _post(client, body, cancel)
        except ConnectionLost:
            if not client.has_blob(digest, cancel=cancel):
                raise
    return True


def _post(client: OllamaClient, body: _Body, cancel: CancelToken | None) -> None:
    try:
        client.transport.request(
            "POST",
            f"/api/blobs/{body.digest}",
            upload=body,
            what=f"upload {body.path.name}",
            idle_s=client.transport.limits.stall_s,
            cancel=cancel,
        )
    except DigestMismatch as error:
        raise DigestMismatch(
            str(error),
            host=error.host,
            status=error.status,
            text=error.text,
            hint=f"'{body.path}' changed since its digest was computed, or a stated digest is wrong",
        ) from error


class _Body:
    """A file as a request body: its length is fixed, and it must still have that length at the end."""

    def __init__(
        self,
        file: io.RawIOBase,
        path: Path,
        digest: Digest,
        size_bytes: int,
        on_progress: ProgressSink | None,
        cancel: CancelToken | None,
    ) -> None:
        self.path = path
        self.digest = digest
        self._file = file
        self._size_bytes = size_bytes
        self._sent_bytes = 0
        self._on_progress = on_progress
        self._cancel = cancel

    def __len__(self) -> int:
        return self._size_bytes

    def read(self, size: int = -1, /) -> bytes:
        """The next block, never past the announced length. Asking for it means that the one before went out."""
        self._report()
        if self._cancel is not None:
            self._cancel.check(f"upload {self.path.name}: cancelled")
        left = self._size_bytes - self._sent_bytes
        try:
            block = self._file.read(left if size < 0 else min(size, left))
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self._sent_bytes += len(block)
        if left and not block:
            raise _changed(self.path, f"it ends after {self._sent_bytes} of {self._size_bytes} bytes")
        if self._sent_bytes == self._size_bytes:
            _check_size(self._file, self.path, self._size_bytes)
        return block

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    status=STATUS,
                    digest=str(self.digest),
                    total_bytes=self._size_bytes,
                    completed_bytes=self._sent_bytes,
                )
            )


@contextlib.contextmanager
def _opened(path: Path, size_bytes: int) -> Iterator[io.FileIO]:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        _check_size(file, path, size_bytes)
        yield file


def _check_size(file: io.RawIOBase, path: Path, size_bytes: int) -> None:
    now_bytes = os.fstat(file.fileno()).st_size
    if now_bytes != size_bytes:
        raise _changed(path, f"it had {size_bytes} bytes when it was hashed and has {now_bytes} now")


def _changed(path: Path, how: str) -> WeightsError:
    return WeightsError(
        f"{path}: changed while it was used: {how}", hint="run again when nothing writes to it"
    )


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"{path}: cannot be read: {(error.strerror or 'input/output error').lower()}")
