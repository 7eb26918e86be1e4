"""GGUF files taken apart, for tests that write others from them."""

from __future__ import annotations

from pathlib import Path

from ollamaops.files.gguf import read_gguf
from ollamaops.files.gguf_types import GgufHeader
from ollamaops.files.gguf_writer import TensorData


def take_apart(path: Path) -> tuple[GgufHeader, list[TensorData]]:
    """The header with all of its values, and the tensors with their bytes."""
    header, data = read_gguf(path, array_limit=None), path.read_bytes()
    return header, [
        TensorData(
            one.name,
            tuple(one.shape),
            one.type_name,
            data[header.data_offset + one.offset :][: one.size_bytes],
        )
        for one in header.tensors
    ]
