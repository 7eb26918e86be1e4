"""A GGUF header as values, and the names that Ollama uses for what is in it: architecture, size, quantization.

Ollama does not trust `general.parameter_count`; it adds up the tensors' shapes, and so does this module.

Numbers: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what servers print was compared with recorded
answers of Ollama 0.3.4 to 0.33.0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

DEFAULT_ALIGNMENT = 32
UNKNOWN = "unknown"

# Value types of the metadata: number → (name, struct code; none for text and lists).
VALUE_TYPES: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    8: ("string", ""),
    9: ("array", ""),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}

# Tensor types of ggml: number → (name, elements per block, bytes per block or 0 where that is not settled).
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    4: ("MXFP4", 32, 17),  # Ollama's own number before ggml gave it 39
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    31: ("Q4_0_4_4", 32, 18),
    32: ("Q4_0_4_8", 32, 18),
    33: ("Q4_0_8_8", 32, 18),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 1, 0),
    41: ("Q1_0", 1, 0),
    42: ("Q2_0", 64, 18),
}

# `general.file_type` → what servers print as quantization_level. 0 (F32) is printed as "unknown" by every
# server from 0.3.4 to 0.33.0: they take 0 for "not given". Servers ≥ 0.7.0 say so of the IQ types as well.
FILE_TYPES: Mapping[int, str] = {
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    4: "MXFP4",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
}
GgufScalar = bool | int | float | str


class GgufArray(Struct, frozen=True):
    """A list in the metadata. `values` is None when it was longer than the reader's limit."""

    item_type: str
    length: int
    values: tuple[GgufScalar, ...] | None


GgufValue = GgufScalar | GgufArray


class GgufTensor(Struct, frozen=True):
    """One row of the tensor table. `shape` is innermost dimension first, as `/api/show` prints it; `offset`
    counts from the header's `data_offset`; `size_bytes` is None for a type whose layout is not known here."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int | None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself. `size_bytes` is the file's real size, `types` the type of each
    metadata value as the format names it (`uint32`, `string`, `array` …)."""

    version: int
    big_endian: bool
    metadata: Mapping[str, GgufValue]
    types: Mapping[str, str]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    alignment: int
    size_bytes: int

    def text(self, key: str) -> str | None:
        """The metadata value of that key if it is text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """The metadata value of that key if it is a whole number that is not negative."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def of_architecture(self, key: str) -> int | None:
        """The number under `<architecture>.<key>`, where GGUF keeps sizes of the network."""
        return self.number(f"{self.architecture}.{key}")

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "unknown" as Ollama says."""
        return self.text("general.architecture") or UNKNOWN

    @property
    def kind(self) -> str:
        """`general.type`: model, adapter, projector, mmproj …, or "unknown"."""
        return self.text("general.type") or UNKNOWN

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors together, as Ollama counts; what the file claims is not asked."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def parameter_size(self) -> str:
        """What servers print as `details.parameter_size`."""
        return render_parameter_size(self.parameter_count)

    @property
    def file_type(self) -> str:
        """What servers print as `details.quantization_level`; "unknown" says nothing about the weights."""
        return FILE_TYPES.get(self.number("general.file_type") or 0, UNKNOWN)

    @property
    def context_length(self) -> int | None:
        return self.of_architecture("context_length")

    @property
    def embedding_length(self) -> int | None:
        return self.of_architecture("embedding_length")

    @property
    def chat_template(self) -> str | None:
        """The Jinja text under `tokenizer.chat_template`."""
        return self.text("tokenizer.chat_template")

    @property
    def is_adapter(self) -> bool:
        return self.kind == "adapter"

    @property
    def is_whole_model(self) -> bool:
        """Whether it says that it is a model; where it says nothing, whether it has blocks or embeddings of one."""
        if self.kind != UNKNOWN:
            return self.kind == "model"
        names = [tensor.name for tensor in self.tensors]
        adapts = any(key.startswith("adapter.") for key in self.metadata)
        if adapts or any(name.endswith((".lora_a", ".lora_b")) for name in names):
            return False
        return "token_embd.weight" in names or bool(self.of_architecture("block_count"))

    @property
    def is_projector(self) -> bool:
        """Whether servers store it as a projector layer beside a model, by the rules of Ollama 0.33.0."""
        if self.kind in ("projector", "mmproj"):
            return True
        if self.of_architecture("block_count"):
            return False
        return bool(self.of_architecture("vision.block_count")) or self.architecture == "clip"

    @property
    def expected_size_bytes(self) -> int:
        """Where the last tensor ends. Padding after it may be missing; an unknown layout counts as empty."""
        ends = (tensor.offset + (tensor.size_bytes or 0) for tensor in self.tensors)
        return self.data_offset + max(ends, default=0)

    @property
    def trailing_bytes(self) -> int:
        """How many bytes follow the last tensor and its padding; 0 if the layout of a tensor is not known here."""
        if any(tensor.size_bytes is None for tensor in self.tensors):
            return 0
        padded = self.expected_size_bytes + -self.expected_size_bytes % self.alignment
        return max(0, self.size_bytes - padded)

    @property
    def missing_bytes(self) -> int:
        """How many bytes a file that was cut short lacks; 0 if it is whole."""
        return max(0, self.expected_size_bytes - self.size_bytes)


def render_parameter_size(count: int) -> str:
    """`details.parameter_size` as Ollama prints it: 26912 → 27K, 22565376 → 22.57M, 8030261248 → 8.0B."""
    for unit, name, decimals in ((10**9, "B", 1), (10**6, "M", 2)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else decimals}f}{name}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def shortest_float32(value: GgufScalar) -> float:
    """The number with the fewest digits that is the same 32 bit float: 9.999999747378752e-06 → 1e-05, which is
    how servers print float32 values in JSON."""
    packed = struct.pack("f", value)
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == packed:
            return short
    return float(value)
