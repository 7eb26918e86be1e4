"""The bytes of a remote file, one after the other, as if no connection were ever cut.

A server may ignore the offset and begin again at the first byte; then the part that was already read is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from msgspec import Struct

from ollamaops.errors import ConnectionLost, RemoteError, WeightsError

RESUMES = 5
_FIRST_WAIT_S = 0.25
_SKIP_BYTES = 1 << 20


class Readable(Protocol):
    """What is read from: b"" only at the end."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Opened(Struct, frozen=True, kw_only=True):
    """An open connection that begins at the byte `start`. `version` changes whenever the bytes do, "" if unknown;
    `size_bytes` is that of the whole file, None if it is not told."""

    source: Readable
    start: int
    version: str
    size_bytes: int | None


Open = Callable[[int, str], Opened]
"""(offset, the version that is meant) → where the file is read from there on."""


class RemoteStream:
    """A file's bytes from `offset` on. Use it as a context, or close it.

    `size_bytes` is that of the whole file, None if it is not known before the end. After a cut, reading resumes: at
    once, then after growing waits, up to `RESUMES` times without a byte in between. Then the RemoteError is
    raised; WeightsError when the file changed meanwhile.
    """

    def __init__(
        self,
        name: str,
        open_at: Open,
        *,
        offset: int = 0,
        version: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = name
        self._open_at = open_at
        self._sleep = sleep
        self._failures = 0
        self.position = offset
        self.version = version
        self.size_bytes: int | None = None
        self._source: Readable | None = None
        self._resume()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; b"" at the end, which is where the file ends and not where a connection was cut."""
        while True:
            try:
                data = self._piece(size)
            except RemoteError as error:
                self._wait_after(error)
                continue
            self._failures = 0
            self.position += len(data)
            return data

    def _piece(self, size: int) -> bytes:
        """The next bytes from the connection, made anew if there is none."""
        if self._source is None:
            self._resume()
        assert self._source is not None
        data = self._source.read(size)
        if not data and self.size_bytes is not None and self.position < self.size_bytes:
            raise ConnectionLost(f"{self._name}: cut after {self.position} of {self.size_bytes} bytes")
        return data

    def _wait_after(self, error: RemoteError) -> None:
        """Before the next attempt; the error itself when it will not pass, or has not passed too often."""
        self.close()
        self._failures += 1
        if not error.transient or self._failures > RESUMES:
            raise error
        if self._failures > 1:
            self._sleep(_FIRST_WAIT_S * 2 ** (self._failures - 2))

    def _resume(self) -> None:
        opened = self._open_at(self.position, self.version)
        self._source = opened.source
        has_changed = self.version and opened.version and opened.version != self.version
        if has_changed or (
            None not in (self.size_bytes, opened.size_bytes) and opened.size_bytes != self.size_bytes
        ):
            self.close()
            raise WeightsError(
                f"{self._name}: changed while it was fetched", hint="run again to fetch what is there now"
            )
        self.version = self.version or opened.version
        self.size_bytes = self.size_bytes if opened.size_bytes is None else opened.size_bytes
        self._skip(opened.source, self.position - opened.start)

    def _skip(self, source: Readable, count: int) -> None:
        while count > 0:
            data = source.read(min(count, _SKIP_BYTES))
            if not data:
                raise ConnectionLost(f"{self._name}: cut before byte {self.position} was reached again")
            count -= len(data)
