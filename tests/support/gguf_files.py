"""GGUF files taken apart, for tests that write others from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ollamaops.files.gguf import read_gguf
from ollamaops.files.gguf_types import GgufHeader, GgufValue
from ollamaops.files.gguf_writer import TensorData, build_gguf


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


WHOLE = Path(__file__).parents[1] / "contract" / "weights" / "tiny-a.gguf"
SPLIT_TYPES = {"split.no": "uint16", "split.count": "uint16", "split.tensors.count": "int32"}


def split(folder: Path, *, whole: Path = WHOLE, promised: int | None = None) -> None:
    """The model as two shards, with the header that llama.cpp's splitter writes: all metadata in the first."""
    header, tensors = take_apart(whole)
    half = len(tensors) // 2
    parts: list[tuple[Mapping[str, GgufValue], list[TensorData]]] = [
        (header.metadata, tensors[:half]),
        ({}, tensors[half:]),
    ]
    folder.mkdir()
    for number, (metadata, some) in enumerate(parts):
        count = len(tensors) if promised is None else promised
        numbers = {"split.no": number, "split.count": 2, "split.tensors.count": count}
        shard = build_gguf({**metadata, **numbers}, some, types={**header.types, **SPLIT_TYPES})
        (folder / f"m-{number + 1:05d}-of-00002.gguf").write_bytes(shard)
