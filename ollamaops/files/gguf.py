"""Reads the header of a GGUF file, never the tensors' bytes.

Files come from strangers, so every count and length is checked against the bytes that are really there and against a
fixed limit *before* anything is allocated. No header costs more than about `MAX_KEPT_BYTES` plus its tensor table, or
more than a few seconds.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

from ollamaops.errors import WeightsError, cut_text
from ollamaops.files.gguf_types import (
    DEFAULT_ALIGNMENT,
    TENSOR_TYPES,
    UNKNOWN,
    VALUE_TYPES,
    GgufArray,
    GgufHeader,
    GgufScalar,
    GgufTensor,
    GgufValue,
    shortest_float32,
)
from ollamaops.files.regular_file import open_weights
from ollamaops.files.sniff import LFS_PREFIX, pointer_instead_of_weights

ARRAY_LIMIT = 64
MAX_METADATA = 1 << 16
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 1 << 16
MAX_STRING_BYTES = 1 << 26
MAX_KEPT_BYTES = 1 << 27
MAX_ARRAY_STRINGS = 1 << 24
MAX_ALIGNMENT = 1 << 20
MAX_ELEMENTS = (1 << 63) - 1

_LEAST_METADATA_BYTES = 13  # an empty key, a type, a value of one byte
_LEAST_TENSOR_BYTES = 24  # an empty name, no dimensions, a type, an offset
_VALUE_COST_BYTES = 64  # what one kept value costs in memory beside its bytes
_CHUNK_BYTES = 1 << 18
_DAMAGED_HINT = "the file is damaged; download or convert it again"
_CUT_SHORT_HINT = "download or copy the file again"


def read_gguf(source: Path | str | BinaryIO, *, array_limit: int | None = ARRAY_LIMIT) -> GgufHeader:
    """The header of a GGUF file, from its path or from an open seekable file (read from its beginning).

    Lists of more than `array_limit` values are measured but not kept; None keeps all. WeightsError if the file
    cannot be read, is not GGUF 2 or 3, is cut short inside its header, or claims more than it holds. A file
    whose header is whole but whose tensors are cut short is read: see `require_complete`.
    """
    if isinstance(source, str | Path):
        with open_weights(Path(source)) as file:
            return _HeaderReader(file, str(source), array_limit).read()
    return _HeaderReader(source, str(getattr(source, "name", "GGUF data")), array_limit).read()


def require_complete(header: GgufHeader, path: Path | str) -> None:
    """WeightsError if the file ends before its last tensor does."""
    if header.missing_bytes:
        raise WeightsError(
            f"{path}: cut short: {header.missing_bytes} of {header.expected_size_bytes} bytes are missing",
            hint=_CUT_SHORT_HINT,
        )


class _HeaderReader:
    """Reads one header, from front to back."""

    def __init__(self, file: BinaryIO, name: str, array_limit: int | None) -> None:
        self._bytes = _Cursor(file, name)
        self._name = name
        self._array_limit = array_limit
        self._kept_bytes = 0
        self._array_strings = 0

    def read(self) -> GgufHeader:
        version, big_endian = self._read_magic()
        tensor_count = self._count("tensors", MAX_TENSORS, _LEAST_TENSOR_BYTES)
        value_count = self._count("metadata values", MAX_METADATA, _LEAST_METADATA_BYTES)
        metadata: dict[str, GgufValue] = {}
        types: dict[str, str] = {}
        for index in range(value_count):
            key = self._text(f"metadata key {index + 1} of {value_count}", MAX_NAME_BYTES)
            types[key], metadata[key] = self._value(key)
        tensors = tuple(self._tensor(f"tensor {i + 1} of {tensor_count}") for i in range(tensor_count))
        alignment = self._alignment(metadata)
        end = self._bytes.position
        return GgufHeader(
            version=version,
            big_endian=big_endian,
            metadata=metadata,
            types=types,
            tensors=tensors,
            data_offset=end + -end % alignment if tensors else end,
            alignment=alignment,
            size_bytes=self._bytes.size,
        )

    def _read_magic(self) -> tuple[int, bool]:
        magic = self._bytes.peek(4)
        if self._bytes.peek(len(LFS_PREFIX)) == LFS_PREFIX:
            raise pointer_instead_of_weights(self._name)
        if magic not in (b"GGUF", b"FUGG"):
            begins = f"it begins with {magic.decode('latin-1')!r}" if magic else "it is empty"
            raise self._bad(f"not a GGUF file: {begins}", hint="name a file in GGUF format")
        self._bytes.take(4, "the magic number")
        version = self._bytes.number("I", "the version")
        # Files made for big endian machines keep the letters and turn only the numbers around; Ollama also
        # knows the letters turned around.
        big_endian = magic == b"FUGG" or version & 0xFFFF == 0
        if big_endian:
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
            self._bytes.order = ">"
        if version not in (2, 3):
            raise self._bad(f"GGUF version {version} is not supported", hint="convert it to GGUF version 3")
        return version, big_endian

    def _count(self, what: str, limit: int, least_bytes: int) -> int:
        count = self._bytes.number("Q", f"the number of {what}")
        self._limit(count, limit, what)
        self._room(count, least_bytes, what)
        return count

    def _value(self, key: str) -> tuple[str, GgufValue]:
        type_name, code = self._value_type(key)
        if type_name == "array":
            return type_name, self._array(key)
        if type_name == "string":
            return type_name, self._text(key, MAX_STRING_BYTES)
        return type_name, self._numbers(key, code, 1)[0]

    def _value_type(self, key: str) -> tuple[str, str]:
        number = self._bytes.number("I", key)
        if number not in VALUE_TYPES:
            raise self._bad(f"{_shown(key)} has the unknown type {number} before byte {self._bytes.position}")
        return VALUE_TYPES[number]

    def _array(self, key: str) -> GgufArray:
        item_type, code = self._value_type(key)
        length = self._bytes.number("Q", key)
        if item_type == "array":
            raise self._bad(f"{_shown(key)} is a list of lists, which Ollama does not read")
        if item_type == "string":
            self._array_strings += length
            self._limit(self._array_strings, MAX_ARRAY_STRINGS, "texts in lists")
        self._room(length, struct.calcsize(code) if code else 8, f"values of {_shown(key)}")
        if self._array_limit is None or length <= self._array_limit:
            return GgufArray(item_type, length, self._items(key, code, length))
        if code:
            self._bytes.skip(length * struct.calcsize(code), key)
        else:
            self._bytes.skip_strings(length, key)
        return GgufArray(item_type, length, None)

    def _items(self, key: str, code: str, length: int) -> tuple[GgufScalar, ...]:
        if code:
            return self._numbers(key, code, length)
        return tuple(self._text(key, MAX_STRING_BYTES) for _ in range(length))

    def _numbers(self, key: str, code: str, length: int) -> tuple[GgufScalar, ...]:
        self._keep(length * _VALUE_COST_BYTES, key)
        values = self._bytes.unpack(f"{length}{code}", key)
        return tuple(shortest_float32(value) for value in values) if code == "f" else values

    def _text(self, what: str, limit: int) -> str:
        length = self._bytes.number("Q", what)
        self._limit(length, limit, f"bytes of {_shown(what)}")
        self._keep(length + _VALUE_COST_BYTES, what)
        return self._bytes.take(length, what).decode("utf-8", "replace")

    def _tensor(self, what: str) -> GgufTensor:
        name = self._text(what, MAX_NAME_BYTES)
        dimensions = self._bytes.number("I", what)
        self._limit(dimensions, MAX_DIMENSIONS, f"dimensions of {what}")
        shape = tuple(self._bytes.number("Q", what) for _ in range(dimensions))
        number = self._bytes.number("I", what)
        offset = self._bytes.number("Q", what)
        elements = math.prod(shape)
        self._limit(elements, MAX_ELEMENTS, f"elements of {what}")
        type_name, block, block_bytes = TENSOR_TYPES.get(number, (UNKNOWN, 1, 0))
        size_bytes = -(-elements // block) * block_bytes if block_bytes else None
        return GgufTensor(name, shape, type_name, offset, size_bytes)

    def _alignment(self, metadata: Mapping[str, GgufValue]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            raise self._bad(f"'general.alignment' is not a power of two from 1 to {MAX_ALIGNMENT}")
        return int(value)

    def _limit(self, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise self._bad(f"claims {count} {what}: at most {limit} are read")

    def _room(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > self._bytes.remaining:
            raise self._bad(f"claims {count} {what}: only {self._bytes.remaining} bytes follow")

    def _keep(self, cost_bytes: int, what: str) -> None:
        self._kept_bytes += cost_bytes
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise self._bad(f"the header is too large: over {MAX_KEPT_BYTES} bytes at {_shown(what)}")

    def _bad(self, reason: str, hint: str = _DAMAGED_HINT) -> WeightsError:
        return WeightsError(f"{self._name}: {reason}", hint=hint)


class _Cursor:
    """A place in a file, with the next bytes at hand. Nothing behind the file's end is read or skipped."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.size = file.seek(0, SEEK_END)
        self.order = "<"
        self._buffer = b""
        self._buffer_start = 0
        self._at = 0

    @property
    def position(self) -> int:
        return self._buffer_start + self._at

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def peek(self, count: int) -> bytes:
        """Up to `count` bytes from here; fewer at the end of the file."""
        if self._at + count > len(self._buffer):
            self._refill(count)
        return self._buffer[self._at : self._at + count]

    def take(self, count: int, what: str) -> bytes:
        self._require(count, what)
        piece = self.peek(count)
        if len(piece) < count:
            raise self._cut_short(what)  # the file became shorter while it was read
        self._at += count
        return piece

    def skip(self, count: int, what: str) -> None:
        self._require(count, what)
        self._at += count

    def unpack(self, codes: str, what: str) -> tuple[GgufScalar, ...]:
        layout = struct.Struct(self.order + codes)
        return layout.unpack(self.take(layout.size, what))

    def number(self, code: str, what: str) -> int:
        (value,) = self.unpack(code, what)
        return int(value)

    def skip_strings(self, count: int, what: str) -> None:
        """Past `count` texts. Vocabularies have hundreds of thousands, so the loop keeps to local names."""
        length_at = struct.Struct(self.order + "Q").unpack_from
        buffer, at = self._buffer, self._at
        for _ in range(count):
            if at + 8 > len(buffer):
                self._at = at
                self.take(8, what)
                self._at -= 8
                buffer, at = self._buffer, self._at
            at += 8 + length_at(buffer, at)[0]
        self._at = at
        self._require(0, what)

    def _refill(self, count: int) -> None:
        """Bring at least `count` bytes from here into the buffer, or all that are left."""
        self._buffer_start, self._at = self.position, 0
        self._file.seek(self._buffer_start)
        wanted = min(max(count, _CHUNK_BYTES), self.remaining)
        pieces: list[bytes] = []
        while wanted > 0 and (piece := self._file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        self._buffer = b"".join(pieces)

    def _require(self, count: int, what: str) -> None:
        if count > self.remaining:
            raise self._cut_short(what)

    def _cut_short(self, what: str) -> WeightsError:
        return WeightsError(
            f"{self._name}: cut short: it ends at byte {self.size}, within {_shown(what)}",
            hint=_CUT_SHORT_HINT,
        )


def _shown(key: str) -> str:
    """A key from a stranger's file, fit for a message."""
    return cut_text(repr(key), 80)


__all__ = ["ARRAY_LIMIT", "GgufArray", "GgufHeader", "GgufTensor", "read_gguf", "require_complete"]
