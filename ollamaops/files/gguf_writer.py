"""Writes GGUF files (version 3, little endian): the model that keeps a ledger on its server, and files for tests.

The same arguments always give the same bytes. Metadata and tensors keep their order, so that what was read can be
written again byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from ollamaops.files.gguf_types import (
    DEFAULT_ALIGNMENT,
    TENSOR_TYPES,
    VALUE_TYPES,
    GgufArray,
    GgufScalar,
    GgufValue,
)

_TYPE_NUMBERS = {name: number for number, (name, _) in VALUE_TYPES.items()}
_TYPE_CODES = dict(VALUE_TYPES.values())
_TENSOR_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


class TensorData(Struct, frozen=True):
    """A tensor with its bytes. `shape` is innermost dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: bytes


def build_gguf(
    metadata: Mapping[str, GgufValue],
    tensors: Iterable[TensorData] = (),
    *,
    types: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a GGUF file with that metadata, in that order, and those tensors.

    A value's type is the one in `types` (such as `GgufHeader.types`), else bool, string, float32 for a float,
    and for a whole number the first of uint32, int32, uint64, int64 that holds it. ValueError for a list
    without its values, KeyError for a type that does not exist, struct.error for a number out of range.
    """
    tensors = tuple(tensors)
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += [_text(key), _typed(value, (types or {}).get(key) or _type_of(value))]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int):
        raise ValueError("general.alignment must be a whole number")
    offset = 0
    for tensor in tensors:
        header.append(_tensor_row(tensor, offset))
        offset += len(_padded(tensor.data, alignment))
    parts = [b"".join(header), *(tensor.data for tensor in tensors)]
    return b"".join(_padded(part, alignment) for part in parts)


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def _tensor_row(tensor: TensorData, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return _text(tensor.name) + dimensions + struct.pack("<IQ", _TENSOR_NUMBERS[tensor.type_name], offset)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: GgufValue, type_name: str) -> bytes:
    return struct.pack("<I", _TYPE_NUMBERS[type_name]) + _plain(value, type_name)


def _plain(value: GgufValue, type_name: str) -> bytes:
    if isinstance(value, GgufArray):
        return _array(value)
    return _text(str(value)) if type_name == "string" else struct.pack("<" + _TYPE_CODES[type_name], value)


def _array(array: GgufArray) -> bytes:
    if array.values is None or len(array.values) != array.length:
        raise ValueError("a list can only be written with all of its values")
    head = struct.pack("<IQ", _TYPE_NUMBERS[array.item_type], array.length)
    return head + b"".join(_plain(value, array.item_type) for value in array.values)


def array_of(values: Sequence[GgufScalar], item_type: str | None = None) -> GgufArray:
    """A metadata list of values of one type. ValueError if it is empty and `item_type` is not given."""
    if item_type is None and not values:
        raise ValueError("an empty list needs its item_type")
    return GgufArray(item_type or _type_of(values[0]), len(values), tuple(values))


def _type_of(value: GgufValue) -> str:
    if isinstance(value, GgufArray):
        return "array"
    if isinstance(value, bool):  # before int, which it is too
        return "bool"
    if isinstance(value, int):
        return _integer_type(value)
    return "string" if isinstance(value, str) else "float32"


def _integer_type(value: int) -> str:
    for name, low, high in (
        ("uint32", 0, 2**32),
        ("int32", -(2**31), 2**31),
        ("uint64", 0, 2**64),
    ):
        if low <= value < high:
            return name
    return "int64"
