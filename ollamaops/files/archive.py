"""A zip archive of several files, made while it is read; nothing is written to disk.

Ollama up to 0.5.4 takes safetensors and PyTorch weights only in this form. Files are stored uncompressed, without
times and in the order given, so that the same files always give the same bytes and therefore the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import IO, cast
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from msgspec import Struct

from ollamaops.errors import Cancelled, WeightsError
from ollamaops.files.digest import BLOCK_BYTES, CancelCheck, stamp_of
from ollamaops.files.regular_file import open_weights
from ollamaops.names import Digest

Members = tuple[tuple[str, str], ...]
"""Name in the archive and path here, of every file."""


class Archive(Struct, frozen=True):
    """An archive as the source of an upload."""

    place: str
    members: Members
    size_bytes: int

    @property
    def name(self) -> str:
        return Path(self.place).name

    def open(self) -> AbstractContextManager[ArchiveReader]:
        """The bytes, from the first on. WeightsError, also while reading, for a file that cannot be read."""
        return closing(ArchiveReader(self.members))


class ArchiveReader:
    """The bytes of an archive, one block of one file at a time."""

    def __init__(self, members: Members) -> None:
        self._pieces = _pieces_of(members)
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Some bytes, `size` at most; b"" at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        """Close the file that is being read."""
        self._pieces.close()


def measure(members: Members, *, cancel: CancelCheck | None = None) -> tuple[Digest, int]:
    """Digest and size of the archive of these files, each of which is read once.

    WeightsError if a file cannot be read or changes meanwhile; Cancelled.
    """
    sha256, size_bytes = hashlib.sha256(), 0
    before = [stamp_of(Path(path)) for _, path in members]
    with closing(_pieces_of(members)) as pieces:
        for piece in pieces:
            if cancel is not None and cancel():
                raise Cancelled("reading the weights was stopped")
            sha256.update(piece)
            size_bytes += len(piece)
    for stamp, (_, path) in zip(before, members, strict=True):
        if stamp != stamp_of(Path(path)):
            raise WeightsError(
                f"{path}: changed while it was read",
                hint="wait until the download or conversion that writes it has ended, then run again",
            )
    return Digest(sha256.hexdigest()), size_bytes


class _Outlet:
    """What zipfile writes to; it cannot seek, so that sizes and checksums come after the data."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._pieces.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _pieces_of(members: Members) -> Generator[bytes, None, None]:
    outlet = _Outlet()
    with ZipFile(cast("IO[bytes]", outlet), "w", ZIP_STORED) as archive:
        for name, path in members:
            about = ZipInfo(name)  # of 1980, the first time that a zip can have
            about.file_size = stamp_of(Path(path)).size_bytes  # from 4 GiB on it needs longer numbers
            with open_weights(Path(path)) as file, archive.open(about, "w") as member:
                while block := file.read(BLOCK_BYTES):
                    member.write(block)
                    yield outlet.take()
    yield outlet.take()
