"""GGUF headers: what is read agrees with what real servers said of the same files, and no file can hurt."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollamaops.errors import WeightsError
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.gguf_types import (
    FILE_TYPES,
    TENSOR_TYPES,
    GgufArray,
    GgufHeader,
    GgufValue,
    render_parameter_size,
    shortest_float32,
)
from ollamaops.files.gguf_writer import TensorData, array_of, build_gguf

CONTRACT = Path(__file__).parents[1] / "contract"
WEIGHTS = CONTRACT / "weights"
GGUF_FILES = sorted(WEIGHTS.glob("*.gguf"))
MODELS = [path for path in GGUF_FILES if path.name != "tiny-lora.gguf"]
BY_DIGEST = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in MODELS}

Json = Mapping[str, object]


def a_tensor(
    name: str = "output.weight", type_name: str = "F32", shape: tuple[int, ...] = (4, 2)
) -> TensorData:
    return TensorData(name, shape, type_name, bytes(32))


def header_of(data: bytes, *, array_limit: int | None = 64) -> GgufHeader:
    return read_gguf(io.BytesIO(data), array_limit=array_limit)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def a_header(*values: bytes, tensors: int = 0, version: int = 3, count: int | None = None) -> bytes:
    """Hand-made bytes, for headers that the writer would refuse to write."""
    metadata = len(values) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata) + b"".join(values)


# Agreement with real servers


def recorded_shows() -> Iterator[tuple[str, Json, Path]]:
    """(where, answer, file) for every recorded `/api/show` of a model whose weights layer is one of our files."""
    for recording in sorted(CONTRACT.glob("ollama-*.json")):
        scenarios = json.loads(recording.read_text())["scenarios"]
        for name, steps in scenarios.items():
            for number, step in enumerate(steps):
                answer = step.get("response", {}).get("json") or {}
                if step.get("request", {}).get("path") != "/api/show" or "modelfile" not in answer:
                    continue
                layer = re.search(r"^FROM .*sha256-([0-9a-f]{64})$", answer["modelfile"], re.MULTILINE)
                if layer and layer[1] in BY_DIGEST:
                    yield f"{recording.stem} {name} {number}", answer, BY_DIGEST[layer[1]]


SHOWS = list(recorded_shows())


def test_every_server_before_0_30_showed_files_that_we_have() -> None:
    versions = {where.split()[0] for where, _, _ in SHOWS}
    assert {"ollama-0.3.4", "ollama-0.5.7", "ollama-0.6.8", "ollama-0.12.11"} <= versions


@pytest.mark.parametrize("where, answer, path", SHOWS, ids=[where for where, _, _ in SHOWS])
def test_the_header_agrees_with_what_the_server_showed(where: str, answer: Json, path: Path) -> None:
    header = read_gguf(path)
    details = cast("Json", answer["details"])
    assert header.architecture == details["family"]
    assert header.parameter_size == details["parameter_size"]
    assert header.file_type == details["quantization_level"]
    info = cast("Json", answer["model_info"])
    scalars = {key: value for key, value in info.items() if isinstance(value, bool | int | float)}
    assert scalars.pop("general.parameter_count") == header.parameter_count
    assert scalars
    assert scalars == {key: header.metadata[key] for key in scalars}
    if "tensors" in answer:
        rows = [{"name": t.name, "type": t.type_name, "shape": list(t.shape)} for t in header.tensors]
        assert rows == answer["tensors"]


@pytest.mark.parametrize("path", GGUF_FILES, ids=lambda path: path.name)
def test_a_whole_file_ends_where_its_header_says(path: Path) -> None:
    header = read_gguf(path)
    assert header.expected_size_bytes == path.stat().st_size
    require_complete(header, path)


@pytest.mark.parametrize("path", GGUF_FILES, ids=lambda path: path.name)
def test_a_file_that_is_read_can_be_written_again_to_the_byte(path: Path) -> None:
    data = path.read_bytes()
    header = read_gguf(path, array_limit=None)
    tensors = [
        TensorData(t.name, t.shape, t.type_name, data[start : start + (t.size_bytes or 0)])
        for t in header.tensors
        for start in [header.data_offset + t.offset]
    ]
    assert build_gguf(header.metadata, tensors, types=header.types) == data


def test_an_adapter_is_told_from_a_model() -> None:
    assert read_gguf(WEIGHTS / "tiny-lora.gguf").is_adapter
    assert not read_gguf(WEIGHTS / "tiny-a.gguf").is_adapter


def test_the_chat_template_is_text() -> None:
    assert "<|im_start|>" in (read_gguf(WEIGHTS / "tiny-chatml.gguf").chat_template or "")
    assert read_gguf(WEIGHTS / "tiny-a.gguf").chat_template is None


def test_context_and_embedding_lengths_are_those_of_the_architecture() -> None:
    header = read_gguf(WEIGHTS / "tiny-ascii-f16.gguf")
    assert (header.context_length, header.embedding_length) == (2048, 256)


# Meaning


@pytest.mark.parametrize(
    "count, words",
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (26912, "27K"),
        (74304, "74K"),
        (999_999, "1000K"),
        (1_000_000, "1M"),
        (1_490_000, "1.49M"),
        (22_565_376, "22.57M"),
        (137_000_000, "137M"),
        (1_000_000_000, "1B"),
        (8_030_261_248, "8.0B"),
        (70_553_706_496, "70.6B"),
    ],
)
def test_parameter_sizes_read_as_ollama_prints_them(count: int, words: str) -> None:
    assert render_parameter_size(count) == words


@pytest.mark.parametrize(
    "metadata, is_projector",
    [
        ({"general.type": "projector"}, True),
        ({"general.type": "mmproj", "general.architecture": "clip", "clip.block_count": 2}, True),
        ({"general.architecture": "clip"}, True),
        ({"general.architecture": "clip", "clip.vision.block_count": 2}, True),
        ({"general.architecture": "mllama", "mllama.vision.block_count": 2}, True),
        ({"general.architecture": "gemma3", "gemma3.block_count": 4, "gemma3.vision.block_count": 2}, False),
        ({"general.architecture": "llama", "llama.block_count": 4}, False),
        ({"general.architecture": "llama"}, False),
        ({}, False),
    ],
)
def test_a_projector_is_told_from_a_model(metadata: Mapping[str, GgufValue], is_projector: bool) -> None:
    assert header_of(build_gguf(metadata)).is_projector == is_projector


def test_a_header_that_says_nothing_has_the_words_for_unknown() -> None:
    header = header_of(build_gguf({}))
    assert (header.architecture, header.kind, header.file_type) == ("unknown", "unknown", "unknown")
    assert (header.context_length, header.parameter_count, header.parameter_size) == (None, 0, "0")
    assert header.missing_bytes == 0


@pytest.mark.parametrize("number, name", FILE_TYPES.items())
def test_file_types_have_the_names_that_servers_print(number: int, name: str) -> None:
    assert header_of(build_gguf({"general.file_type": number})).file_type == name


@pytest.mark.parametrize("value", [0, -1, 999, "F16", 1.0, True])
def test_a_file_type_that_means_nothing_is_unknown(value: GgufValue) -> None:
    assert header_of(build_gguf({"general.file_type": value})).file_type == "unknown"


@pytest.mark.parametrize("name, block, block_bytes", [row for row in TENSOR_TYPES.values() if row[2]])
def test_tensor_sizes_count_whole_blocks(name: str, block: int, block_bytes: int) -> None:
    data = build_gguf({}, [TensorData("t", (block, 3), name, bytes(3 * block_bytes))])
    header = header_of(data)
    assert header.tensors[0].size_bytes == 3 * block_bytes
    assert header.missing_bytes == 0


def test_a_tensor_type_that_is_not_known_has_no_size() -> None:
    row = text("t") + struct.pack("<IQIQ", 1, 64, 4711, 0)
    tensor = header_of(a_header(row, tensors=1, count=0)).tensors[0]
    assert (tensor.type_name, tensor.size_bytes, tensor.elements) == ("unknown", None, 64)


def test_float32_values_have_as_few_digits_as_servers_print() -> None:
    header = header_of(
        build_gguf({"eps": 1e-05, "base": 500000.0, "third": 1 / 3, "list": array_of([0.1, 2.5])})
    )
    assert header.metadata["eps"] == 1e-05
    assert header.metadata["base"] == 500000.0
    assert header.metadata["third"] == 0.33333334
    assert header.metadata["list"] == array_of([0.1, 2.5])


@given(st.floats(width=32))
@example(-math.nan)
def test_shortening_a_float32_keeps_its_value(value: float) -> None:
    assert struct.pack("f", shortest_float32(value)) == struct.pack("f", value) or math.isnan(value)


# Layout


def test_long_lists_are_measured_but_not_kept() -> None:
    data = build_gguf(
        {"words": array_of([f"w{i}" for i in range(100)]), "numbers": array_of(list(range(100)))}
    )
    header = header_of(data, array_limit=99)
    assert header.metadata == {
        "words": GgufArray("string", 100, None),
        "numbers": GgufArray("uint32", 100, None),
    }
    assert header_of(data, array_limit=100).metadata["numbers"] == array_of(list(range(100)))
    assert header_of(data, array_limit=None).metadata["words"] == array_of([f"w{i}" for i in range(100)])


def test_long_lists_are_passed_over_wherever_the_read_buffer_ends() -> None:
    words = ["x" * (i % 3000) for i in range(1000)]
    data = build_gguf({"words": array_of(words), "last": "here"})
    assert header_of(data).metadata["last"] == "here"


def test_values_of_every_type_come_back_as_they_were() -> None:
    values: dict[str, GgufValue] = {
        "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4_000_000_000,
        "int32": -2_000_000_000, "float32": 0.5, "bool": True, "string": "ünï", "uint64": 2**63,
        "int64": -(2**62), "float64": 0.1,
    }  # fmt: skip
    header = header_of(build_gguf(values, types={key: key for key in values}))
    assert dict(header.metadata) == values
    assert dict(header.types) == {key: key for key in values}


def test_types_are_found_for_values_that_have_none() -> None:
    values: dict[str, GgufValue] = {
        "a": 1,
        "b": -1,
        "c": 2**40,
        "d": -(2**40),
        "e": 0.5,
        "f": "x",
        "g": False,
    }
    header = header_of(build_gguf({**values, "h": array_of([True])}))
    assert list(header.types.values()) == [
        "uint32", "int32", "uint64", "int64", "float32", "string", "bool", "array",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metadata",
    [
        {"list": GgufArray("uint32", 3, None)},
        {"list": GgufArray("uint32", 3, (1,))},
        {"general.alignment": "32"},
    ],
)
def test_what_cannot_be_written_is_refused(metadata: Mapping[str, GgufValue]) -> None:
    with pytest.raises(ValueError):
        build_gguf(metadata)
    with pytest.raises(ValueError):
        array_of([])


def test_tensors_lie_at_the_alignment_that_the_file_asks_for() -> None:
    tensors = [TensorData(name, (3,), "I8", bytes(3)) for name in ("a", "b")]
    header = header_of(build_gguf({"general.alignment": 256}, tensors))
    assert (header.alignment, header.data_offset, header.tensors[1].offset) == (256, 256, 256)


def big_endian(magic: bytes) -> bytes:
    key = struct.pack(">Q", 20) + b"general.architecture"
    value = struct.pack(">IQ", 8, 5) + b"llama"
    words = struct.pack(">Q", 5) + b"words" + struct.pack(">IIQ", 9, 8, 2) + (struct.pack(">Q", 1) + b"x") * 2
    tensor = struct.pack(">Q", 1) + b"t" + struct.pack(">IQIQ", 1, 8, 0, 0)
    head = magic + struct.pack(">IQQ", 3, 1, 2) + key + value + words + tensor
    return head + bytes(-len(head) % 32 + 32)


@pytest.mark.parametrize("magic", [b"GGUF", b"FUGG"])
def test_big_endian_files_are_recognized(magic: bytes) -> None:
    header = header_of(big_endian(magic), array_limit=1)
    assert (header.big_endian, header.version, header.architecture) == (True, 3, "llama")
    assert (header.parameter_count, header.missing_bytes) == (8, 0)


def test_the_name_of_an_open_file_is_used_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nonsense")
    with path.open("rb") as file, pytest.raises(WeightsError, match=re.escape(str(path))):
        read_gguf(file)


def test_text_that_is_not_utf_8_is_read_with_replacement_characters() -> None:
    value = text("k") + struct.pack("<IQ", 8, 2) + b"\xff\xfe"
    assert header_of(a_header(value)).metadata["k"] == "��"


# Damaged and hostile files

U64 = 2**64 - 1
HOSTILE = {
    "empty": (b"", "not a GGUF file: it is empty"),
    "html": (b"<html>oops", "not a GGUF file: it begins with '<htm'"),
    "magic alone": (b"GGUF", "cut short: it ends at byte 4, within 'the version'"),
    "version 1": (a_header(version=1), "GGUF version 1 is not supported"),
    "version 4": (a_header(version=4), "GGUF version 4 is not supported"),
    "more tensors than bytes": (a_header(tensors=9), "claims 9 tensors: only 8 bytes follow"),
    "tensors without end": (a_header(tensors=U64), f"claims {U64} tensors: at most 131072 are read"),
    "more values than bytes": (a_header(count=5), "claims 5 metadata values: only 0 bytes follow"),
    "values without end": (a_header(count=U64), f"claims {U64} metadata values: at most 65536 are read"),
    "key too long": (
        a_header(struct.pack("<Q", 1 << 40) + bytes(8)),
        f"claims {1 << 40} bytes of 'metadata key 1 of 1': at most 65536 are read",
    ),
    "text too long": (
        a_header(text("k") + struct.pack("<IQ", 8, U64)),
        f"claims {U64} bytes of 'k': at most 67108864 are read",
    ),
    "text cut short": (
        a_header(text("k") + struct.pack("<IQ", 8, 100) + b"abc"),
        "cut short: it ends at byte 48, within 'k'",
    ),
    "unknown type": (a_header(text("k") + struct.pack("<II", 99, 0)), "'k' has the unknown type 99 before byte 37"),
    "unknown item type": (
        a_header(text("k") + struct.pack("<IIQ", 9, 77, 1)),
        "'k' has the unknown type 77 before byte 41",
    ),
    "list of lists": (
        a_header(text("k") + struct.pack("<IIQ", 9, 9, 1)),
        "'k' is a list of lists, which Ollama does not read",
    ),
    "list too long": (
        a_header(text("k") + struct.pack("<IIQ", 9, 12, 1 << 60)),
        f"claims {1 << 60} values of 'k': only 0 bytes follow",
    ),
    "texts without end": (
        a_header(text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)),
        f"claims {1 << 60} texts in lists: at most 16777216 are read",
    ),
    "texts longer than the file": (
        a_header(text("k") + struct.pack("<IIQ", 9, 8, 100) + bytes(8)),
        "claims 100 values of 'k': only 8 bytes follow",
    ),
    "text in a list beyond the file": (
        a_header(text("k") + struct.pack("<IIQ", 9, 8, 65) + struct.pack("<Q", U64) + bytes(600)),
        "cut short: it ends at byte 657, within 'k'",
    ),
    "last text in a list beyond the file": (
        a_header(text("k") + struct.pack("<IIQ", 9, 8, 65) + bytes(64 * 8) + struct.pack("<Q", 1)),
        "cut short: it ends at byte 569, within 'k'",
    ),
    "too many dimensions": (
        a_header(text("t") + struct.pack("<I", 9) + bytes(80), tensors=1, count=0),
        "claims 9 dimensions of tensor 1 of 1: at most 8 are read",
    ),
    "too many elements": (
        a_header(text("t") + struct.pack("<IQQIQ", 2, U64, U64, 0, 0), tensors=1, count=0),
        f"claims {U64 * U64} elements of tensor 1 of 1: at most {2**63 - 1} are read",
    ),
    "tensor cut short": (
        a_header(text("t" * 20), tensors=1, count=0),
        "cut short: it ends at byte 52, within 'tensor 1 of 1'",
    ),
    "no alignment": (
        build_gguf({"general.alignment": 1}).replace(struct.pack("<II", 4, 1), struct.pack("<II", 4, 0)),
        "'general.alignment' is not a power of two from 1 to 1048576",
    ),
    "odd alignment": (build_gguf({"general.alignment": 24}), "'general.alignment' is not a power of two"),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "is a git-lfs pointer, not the weights themselves",
    ),
}  # fmt: skip


@pytest.mark.parametrize("data, message", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_header_is_refused_with_what_and_where(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            header_of(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert caught.value.hint
    assert peak_bytes < 1 << 20


def test_a_key_as_long_as_a_page_does_not_fill_the_message() -> None:
    with pytest.raises(WeightsError) as caught:
        header_of(a_header(text("k" * 60_000) + struct.pack("<I", 99)))
    assert len(str(caught.value)) < 200


def test_a_header_larger_than_memory_allows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    value = text("k") + struct.pack("<IQ", 8, (1 << 26))
    key = text("again") + struct.pack("<IQ", 8, (1 << 26))
    with path.open("wb") as file:
        file.write(a_header(value, count=3))
        file.seek(1 << 26, os.SEEK_CUR)
        file.write(key)
        file.truncate(1 << 40)
    with pytest.raises(WeightsError, match="the header is too large: over 134217728 bytes at 'again'"):
        read_gguf(path)


class Shrinking(io.BytesIO):
    """A file that loses its second half after it was measured."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, max(0, len(self.getvalue()) // 2 - self.tell())))


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    with pytest.raises(WeightsError, match="cut short"):
        read_gguf(cast("BinaryIO", Shrinking(build_gguf({"k": "v" * 500}))))


@pytest.mark.parametrize("path", [WEIGHTS / "tiny-a.gguf", str(WEIGHTS / "tiny-a.gguf")])
def test_a_path_may_be_text(path: Path | str) -> None:
    assert read_gguf(path).architecture == "llama"


def test_a_file_cut_short_in_its_tensors_is_read_but_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes()[:-100])
    header = read_gguf(path)
    with pytest.raises(WeightsError) as caught:
        require_complete(header, path)
    assert str(caught.value) == f"{path}: cut short: 100 of 114880 bytes are missing"
    assert caught.value.hint == "download or copy the file again"


SMALL = build_gguf(
    {"general.architecture": "llama", "n": 7, "eps": 1e-5, "ok": True, "words": array_of(["a", "bc"])},
    [a_tensor("one"), a_tensor("two", "Q4_0", (32, 1))],
)


def header_or_error(data: bytes, array_limit: int | None = 64) -> None:
    """Read, then ask everything; anything but a WeightsError fails the test."""
    try:
        header = header_of(data, array_limit=array_limit)
    except WeightsError:
        return
    assert header.missing_bytes >= 0
    assert header.parameter_size
    assert header.file_type
    assert header.is_projector in (True, False)
    assert header.size_bytes == len(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF", SMALL[:8], SMALL[:24], SMALL[:60]]))
@example(b"", b"")
def test_any_bytes_give_a_header_or_a_weights_error(data: bytes, start: bytes) -> None:
    header_or_error(start + data)


@given(st.integers(0, len(SMALL)))
def test_any_cut_gives_a_header_or_a_weights_error(length: int) -> None:
    header_or_error(SMALL[:length])


@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from([0, 1, 64, None]),
)
def test_any_changed_bytes_give_a_header_or_a_weights_error(
    changes: list[tuple[int, int]], array_limit: int | None
) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    header_or_error(bytes(data), array_limit)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.one_of(
            st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(width=32, allow_nan=False), st.text()
        ),
        max_size=8,
    )
)
def test_what_is_written_is_what_is_read(metadata: dict[str, GgufValue]) -> None:
    metadata.pop("general.alignment", None)
    header = header_of(build_gguf(metadata, [a_tensor()]))
    assert {
        k: shortest_float32(v) if isinstance(v, float) else v for k, v in metadata.items()
    } == header.metadata
    assert header.missing_bytes == 0
