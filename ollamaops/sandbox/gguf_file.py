"""GGUF files as the pretend server reads and writes them: a header with typed values, tensors, data.

Values keep their GGUF type, because a file must come out with the very bytes that llama.cpp would write. Versions 2
and 3, little endian, are read; a header that is cut or not GGUF is a `BadGGUF` with the server's words.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

ALIGNMENT = 32
STRING, ARRAY = 8, 9
UINT32, FLOAT32, BOOL = 4, 6, 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class BadGGUF(Exception):
    """The bytes are not a GGUF file that can be read. `str()` is what the real server says."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """How one type of tensor is stored: `block` values take `size_bytes`."""

    number: int
    name: str
    block: int
    size_bytes: int


TENSOR_TYPES = {
    kind.number: kind
    for kind in (
        TensorType(0, "F32", 1, 4),
        TensorType(1, "F16", 1, 2),
        TensorType(2, "Q4_0", 32, 18),
        TensorType(3, "Q4_1", 32, 20),
        TensorType(6, "Q5_0", 32, 22),
        TensorType(7, "Q5_1", 32, 24),
        TensorType(8, "Q8_0", 32, 34),
        TensorType(9, "Q8_1", 32, 36),
        TensorType(10, "Q2_K", 256, 84),
        TensorType(11, "Q3_K", 256, 110),
        TensorType(12, "Q4_K", 256, 144),
        TensorType(13, "Q5_K", 256, 176),
        TensorType(14, "Q6_K", 256, 210),
        TensorType(15, "Q8_K", 256, 292),
        TensorType(16, "IQ2_XXS", 256, 66),
        TensorType(17, "IQ2_XS", 256, 74),
        TensorType(18, "IQ3_XXS", 256, 98),
        TensorType(19, "IQ1_S", 256, 50),
        TensorType(20, "IQ4_NL", 32, 18),
        TensorType(21, "IQ3_S", 256, 110),
        TensorType(22, "IQ2_S", 256, 82),
        TensorType(23, "IQ4_XS", 256, 136),
        TensorType(24, "I8", 1, 1),
        TensorType(25, "I16", 1, 2),
        TensorType(26, "I32", 1, 4),
        TensorType(27, "I64", 1, 8),
        TensorType(28, "F64", 1, 8),
        TensorType(29, "IQ1_M", 256, 56),
        TensorType(30, "BF16", 1, 2),
        TensorType(39, "MXFP4", 32, 17),
    )
}


@dataclass(frozen=True, slots=True)
class Field:
    """One metadata value with its GGUF type; `item_kind` is the type of an array's items."""

    kind: int
    value: Value
    item_kind: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: `shape` as stored (fastest dimension first), `offset` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int = 0

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the data, without padding."""
        stored = TENSOR_TYPES[self.kind]
        return self.values // stored.block * stored.size_bytes


@dataclass(frozen=True)
class Header:
    """Everything before the data. `data_start` is where tensor offsets count from, in bytes."""

    fields: Mapping[str, Field]
    tensors: tuple[Tensor, ...]
    data_start: int = 0

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or "unknown"

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `projector` …: `general.type`, or `unknown`."""
        return self.text("general.type") or "unknown"

    @cached_property
    def parameter_count(self) -> int:
        """How many values all tensors hold, as the server counts them."""
        return sum(tensor.values for tensor in self.tensors)

    @property
    def end(self) -> int:
        """Where the file should end: after the data of its last tensor, padded."""
        return self.data_start + sum(_padded(tensor.size_bytes) for tensor in self.tensors)

    @property
    def least_size(self) -> int:
        """Bytes that the file must have so that no tensor is cut off."""
        last = self.tensors[-1].size_bytes if self.tensors else 0
        return self.end - (_padded(last) - last)

    def text(self, key: str) -> str:
        value = self.fields[key].value if key in self.fields else ""
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """The whole number at `key`; 0 when there is none."""
        value = self.fields[key].value if key in self.fields else 0
        return value if isinstance(value, int) else 0

    def of_architecture(self, key: str) -> int:
        """The whole number at `<architecture>.<key>`."""
        return self.number(f"{self.architecture}.{key}")


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Reader:
    """Numbers and texts off a stream; BadGGUF at its end."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit = stream, limit

    def take(self, count: int) -> bytes:
        if count > self.limit:
            raise BadGGUF("unexpected EOF")
        data = self.stream.read(count)
        if len(data) < count:
            raise BadGGUF("unexpected EOF")
        return data

    def number(self, fmt: str) -> int:
        (value,) = struct.unpack("<" + fmt, self.take(struct.calcsize("<" + fmt)))
        return int(value)

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self.text()
        fmt = _format_of(kind)
        (value,) = struct.unpack("<" + fmt, self.take(struct.calcsize("<" + fmt)))
        return value  # type: ignore[no-any-return]  # struct.unpack is untyped

    def field(self) -> Field:
        kind = self.number("I")
        if kind != ARRAY:
            return Field(kind, self.scalar(kind))
        item_kind, count = self.number("I"), self.number("Q")
        if item_kind == STRING:
            return Field(ARRAY, [self.text() for _ in range(count)], STRING)
        fmt = _format_of(item_kind)
        data = self.take(count * struct.calcsize("<" + fmt))
        return Field(ARRAY, list(struct.unpack(f"<{count}{fmt}", data)), item_kind)


def _format_of(kind: int) -> str:
    if kind not in _FORMATS:
        raise BadGGUF(f"invalid type: {kind}")
    return _FORMATS[kind]


def is_gguf(start: bytes) -> bool:
    """Whether the server takes a file that begins with these bytes for GGUF."""
    return start[:4] == b"GGUF"


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`. OSError or BadGGUF. An unchanged file is read once."""
    known = path.stat()
    return _read_header(path, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=256)
def _read_header(path: Path, _: int, size_bytes: int) -> Header:
    with path.open("rb") as stream:
        return parse_header(stream, size_bytes)


def parse_header(stream: BinaryIO, size_bytes: int) -> Header:
    """The header at the start of `stream`, which has `size_bytes` in all."""
    reader = _Reader(stream, size_bytes)
    if not is_gguf(reader.take(4)):
        raise BadGGUF("invalid file magic")
    version = reader.number("I")
    if version not in (2, 3):
        raise BadGGUF(f"unsupported version: {version}")
    tensor_count, field_count = reader.number("Q"), reader.number("Q")
    fields = {reader.text(): reader.field() for _ in range(field_count)}
    tensors = tuple(_read_tensor(reader) for _ in range(tensor_count))
    return Header(fields, tensors, _padded(stream.tell()))


def _read_tensor(reader: _Reader) -> Tensor:
    name = reader.text()
    shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in TENSOR_TYPES:
        raise BadGGUF(f"unsupported tensor type: {kind}")
    return Tensor(name, shape, kind, offset)


def _text_bytes(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _scalar_bytes(kind: int, value: Scalar) -> bytes:
    return _text_bytes(str(value)) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)


def _field_bytes(field: Field) -> bytes:
    if not isinstance(field.value, list):
        return struct.pack("<I", field.kind) + _scalar_bytes(field.kind, field.value)
    start = struct.pack("<IIQ", ARRAY, field.item_kind, len(field.value))
    return start + b"".join(_scalar_bytes(field.item_kind, item) for item in field.value)


def placed(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors with the offsets that they get when written in this order."""
    offset = 0
    for tensor in tensors:
        yield replace(tensor, offset=offset)
        offset += _padded(tensor.size_bytes)


def header_bytes(fields: Mapping[str, Field], tensors: Iterable[Tensor]) -> bytes:
    """The header of a version 3 file whose tensors follow in this order, padded to where the data starts."""
    tensors = tuple(placed(tensors))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    parts += [_text_bytes(key) + _field_bytes(field) for key, field in fields.items()]
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts.append(_text_bytes(tensor.name) + shape + struct.pack("<IQ", tensor.kind, tensor.offset))
    data = b"".join(parts)
    return data.ljust(_padded(len(data)), b"\0")


def padding_after(size_bytes: int) -> bytes:
    """The zero bytes between a tensor of this size and the next."""
    return b"\0" * (_padded(size_bytes) - size_bytes)
