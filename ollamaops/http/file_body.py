"""Bodies of uploads: anything read in blocks, and files of this disk, whose blocks the kernel sends without a copy.

A file must still have the size that it had when its digest was computed.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from ollamaops.errors import WeightsError


class Upload(Protocol):
    """A request body of known length that is read in blocks."""

    def __len__(self) -> int: ...
    def read(self, size: int = -1, /) -> bytes | FileBlock: ...


class LocalFile(Struct, frozen=True):
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
    def open(self) -> Iterator[LocalReader]:
        """The file in blocks. WeightsError if it cannot be read, or has another size before or after."""
        try:
            file = io.FileIO(self.path)
        except OSError as error:
            raise _unreadable(self.place, error) from error
        with file:
            reader = LocalReader(file, self)
            reader.check_size()
            yield reader


class LocalReader:
    """Hands out a local file block by block, and looks at its size once more for the last one."""

    def __init__(self, file: io.FileIO, source: LocalFile) -> None:
        self._file = file
        self._source = source
        self._given_bytes = 0

    def read(self, size: int, /) -> FileBlock:
        """The next block, empty at the end of what the file has now."""
        start = self._given_bytes
        there = min(self._source.size_bytes, os.fstat(self._file.fileno()).st_size)
        block = FileBlock(self._file, self._source.place, start, max(0, min(size, there - start)))
        self._given_bytes += block.size_bytes
        if self._given_bytes == self._source.size_bytes:
            self.check_size()
        return block

    def check_size(self) -> None:
        """WeightsError if the file has another size than when it was hashed."""
        was, now = self._source.size_bytes, os.fstat(self._file.fileno()).st_size
        if was != now:
            raise changed(self._source.place, f"it had {was} bytes when it was hashed and has {now} now")


class FileBlock(Struct, frozen=True):
    """A stretch of an open file. `place` is its path, for messages."""

    file: io.FileIO
    place: str
    offset: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def read(self) -> bytes:
        """The bytes. WeightsError if the file cannot be read or ends within the block."""
        try:
            self.file.seek(self.offset)
            data = self.file.read(self.size_bytes) or b""
        except OSError as error:
            raise _unreadable(self.place, error) from error
        self._check_whole(len(data))
        return data

    def send_to(self, sock: socket.socket) -> None:
        """Send the bytes over an unencrypted connection. OSError when that fails; WeightsError as for `read`."""
        try:
            sent_bytes = sock.sendfile(self.file, self.offset, self.size_bytes)
        except OSError:
            self.read()  # sendfile does not say which side failed: a bad disk fails here too, as a WeightsError
            raise
        self._check_whole(sent_bytes)

    def _check_whole(self, had_bytes: int) -> None:
        if had_bytes < self.size_bytes:
            raise changed(self.place, f"it ends after {self.offset + had_bytes} bytes")


def changed(place: str, how: str) -> WeightsError:
    """The error for weights that are no longer what was hashed."""
    return WeightsError(
        f"{place}: changed while it was used: {how}", hint="run again when nothing writes to it"
    )


def _unreadable(place: str, error: OSError) -> WeightsError:
    return WeightsError(f"{place}: cannot be read: {(error.strerror or 'input/output error').lower()}")
