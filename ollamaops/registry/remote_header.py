"""The header of a GGUF that lies in a registry, read without its weights: only its first megabytes are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable

from ollamaops.errors import WeightsError
from ollamaops.files.gguf import read_gguf
from ollamaops.files.gguf_types import GgufHeader

BLOCK_BYTES = 2 * 1024 * 1024
MAX_READ_BYTES = 64 * 1024 * 1024  # the largest vocabularies take about 12 MB
Fetch = Callable[[int, int], bytes]
"""The bytes from a start up to, and without, an end."""


def read_remote_header(fetch: Fetch, size_bytes: int, name: str) -> GgufHeader:
    """The header of the file of that size. WeightsError if it is not a GGUF or its header is too long, and whatever
    `fetch` raises."""
    return read_gguf(_Blocks(fetch, size_bytes, name))


class _Blocks(io.BytesIO):
    """A file that is fetched in blocks, from front to back; only the last block is kept."""

    def __init__(self, fetch: Fetch, size_bytes: int, name: str) -> None:
        super().__init__()
        self._fetch, self._size, self.name = fetch, size_bytes, name
        self._place, self._start, self._block, self._read = 0, 0, b"", 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = offset + (self._size if whence == io.SEEK_END else 0)
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._size if size is None or size < 0 else min(self._place + size, self._size)
        piece = self._at(self._place, end)
        self._place += len(piece)
        return piece

    def _at(self, start: int, end: int) -> bytes:
        if start < self._start or end > self._start + len(self._block):
            wanted = min(max(end, start + BLOCK_BYTES), self._size)
            self._read += wanted - start
            if self._read > MAX_READ_BYTES:
                raise WeightsError(f"{self.name}: its header is longer than {MAX_READ_BYTES} bytes")
            self._start, self._block = start, self._fetch(start, wanted)
        return self._block[start - self._start : end - self._start]
