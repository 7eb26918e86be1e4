"""What servers do to weights on their way in: llama-quantize's copy (from 0.30 on), and quantizing.

The copy is llama.cpp's to the byte, as recorded digests show: metadata in its old order, then
`general.quantization_version` and `general.file_type`; tensors by block and name. Quantized *values* are made
up (the first bytes of the old ones); types and sizes are real.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ollamaops.sandbox.gguf_file import (
    TENSOR_TYPES,
    UINT32,
    Field,
    Header,
    Tensor,
    header_bytes,
    padding_after,
)

FILE_TYPES = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_1_F16", "Q4_2", "Q4_3", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S"),
    *("Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S"),
    *("IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"),
)
"""Names of file types by number, as Ollama prints them. 0 is printed as unknown all the same."""

_GUESSED = 1024
_CHUNK = 1 << 20
_TYPE_NUMBERS = {kind.name: kind.number for kind in TENSOR_TYPES.values()}
# a K type needs rows of 256 values; llama.cpp takes these instead
_NARROW = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
_EMBEDDED = re.compile(r"(a|mm|mtp|s|v)\.")


def file_type_name(header: Header) -> str:
    """The quantization that a file declares; `unknown` if it declares none, 0 (F32) or an unknown number."""
    number = header.number("general.file_type")
    return FILE_TYPES[number] if 0 < number < len(FILE_TYPES) else "unknown"


def is_rewritten(header: Header) -> bool:
    """Whether servers ≥ 0.30 pass these weights through llama-quantize: not those with embedded towers."""
    return not any(_EMBEDDED.match(tensor.name) for tensor in header.tensors)


def plan_copy(header: Header) -> Header:
    """The header of llama-quantize's copy of a file."""
    kind = (
        header.number("general.file_type") if "general.file_type" in header.fields else _guess(header.tensors)
    )
    return replace(
        header, fields=_stamped(header, kind), tensors=tuple(sorted(header.tensors, key=_block_first))
    )


def plan_quantized(header: Header, quantization: str, *, by_go: bool, skips_v: bool) -> Header:
    """The header of the file quantized to `quantization`, one of FILE_TYPES."""
    kind = FILE_TYPES.index(quantization)
    quantized = tuple(
        replace(tensor, kind=_tensor_type(tensor, quantization, skips_v=skips_v)) for tensor in header.tensors
    )
    if by_go:
        fields = {**header.fields, "general.file_type": Field(UINT32, kind)}
        return replace(header, fields=fields, tensors=tuple(sorted(quantized, key=_block_last)))
    return replace(header, fields=_stamped(header, kind), tensors=tuple(sorted(quantized, key=_block_first)))


def _stamped(header: Header, kind: int) -> dict[str, Field]:
    fields = {
        key: field
        for key, field in header.fields.items()
        if key not in {"general.quantization_version", "general.file_type"} and not key.startswith("split.")
    }
    fields["general.quantization_version"] = Field(UINT32, 2)
    fields["general.file_type"] = Field(UINT32, kind)
    return fields


def _guess(tensors: Iterable[Tensor]) -> int:
    """The file type that llama.cpp guesses for a file that does not declare one."""
    counted = Counter(TENSOR_TYPES[tensor.kind].name for tensor in tensors)
    name = counted.most_common(1)[0][0] if counted else "F32"
    name = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}.get(name, name)
    return _GUESSED + (FILE_TYPES.index(name) if name in FILE_TYPES else 0)


def block_of(name: str) -> int | None:
    """The number in `blk.N.…`."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else None


def _block_first(tensor: Tensor) -> tuple[int, str]:
    block = block_of(tensor.name)
    return (-1 if block is None else block, tensor.name)


def _block_last(tensor: Tensor) -> tuple[float, str]:
    block = block_of(tensor.name)
    return (float("inf") if block is None else block, tensor.name)


def _tensor_type(tensor: Tensor, quantization: str, *, skips_v: bool) -> int:
    """llama.cpp's choice for one tensor, without its finer points for large models."""
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith("weight") and "_norm" not in tensor.name
    if not is_matrix or (skips_v and "v." in tensor.name):
        return tensor.kind
    wanted = re.sub(r"_[SML]$", "", quantization)
    if tensor.name == "output.weight" and wanted not in {"F32", "F16", "BF16", "Q8_0"}:
        wanted = "Q6_K"
    if tensor.shape[0] % 256 and wanted in _NARROW:
        wanted = _NARROW[wanted]
    kind = TENSOR_TYPES[_TYPE_NUMBERS.get(wanted, tensor.kind)]
    return kind.number if tensor.shape[0] % kind.block == 0 else _TYPE_NUMBERS["F16"]


def merge_headers(shards: Sequence[Header]) -> Header:
    """The header of the one file that split files make together."""
    fields = {key: field for key, field in shards[0].fields.items() if not key.startswith("split.")}
    return Header(fields, tuple(tensor for shard in shards for tensor in shard.tensors))


def copy_weights(sources: Sequence[tuple[Path, Header]], new: Header, write: Callable[[bytes], None]) -> None:
    """Write the file that `new` describes, its data taken from the files that hold tensors of these names."""
    write(header_bytes(new.fields, new.tensors))
    stored = {tensor.name: (path, old, tensor) for path, old in sources for tensor in old.tensors}
    with ExitStack() as stack:
        streams = {path: stack.enter_context(path.open("rb")) for path, _ in sources}
        for tensor in new.tensors:
            path, old, source = stored[tensor.name]
            streams[path].seek(old.data_start + source.offset)
            for chunk in _resized(streams[path], source.size_bytes, tensor.size_bytes):
                write(chunk)
            write(padding_after(tensor.size_bytes))


def _resized(stream: BinaryIO, have: int, want: int) -> Iterator[bytes]:
    """`want` bytes: those of the stream, then zeros when it has fewer."""
    left = min(have, want)
    while left:
        data = stream.read(min(left, _CHUNK))
        if not data:
            break
        left -= len(data)
        yield data
    missing = want - min(have, want) + left
    while missing > 0:
        yield b"\0" * min(missing, _CHUNK)
        missing -= _CHUNK
