"""Weights that do not belong together, or not all of which are there, are problems of the manifest with a place."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest_folder import WEIGHTS, as_text, load_text, write
from properties import shared_fixtures

from ollamaops.errors import ManifestError, WeightsError
from ollamaops.files.convertible import (
    MAX_INDEX_BYTES,
    MAX_PARSED_BYTES,
    read_index,
    require_all_shards,
    require_companions,
    require_indexed,
    require_object,
)
from ollamaops.files.gguf_types import GgufValue
from ollamaops.files.gguf_writer import TensorData, build_gguf

EMPTY = b"\x02\0\0\0\0\0\0\0{}"


def said_of(folder: Path, entry: str) -> str:
    """What loading a manifest with that one entry complains of."""
    try:
        load_text(folder, f"models: [{{name: a, {entry}}}]")
    except ManifestError as error:
        return "".join(map(as_text, error.problems)).replace(f"{folder}/", "")
    return ""


def a_gguf(metadata: Mapping[str, GgufValue], tensors: Iterable[str] = ("blk.0.w",)) -> bytes:
    return build_gguf(metadata, [TensorData(name, (8,), "F32", bytes(32)) for name in tensors])


def a_shard(number: int, count: int, promised: int | None = None) -> bytes:
    """One of `count` files, `number` from 0, each with a tensor."""
    split: dict[str, GgufValue] = {"split.no": number, "split.count": count}
    split |= {} if promised is None else {"split.tensors.count": promised}
    return a_gguf(split)


LLAMA: dict[str, GgufValue] = {"general.architecture": "llama", "llama.block_count": 1}
MODEL = a_gguf({**LLAMA, "general.file_type": 1})
QUANTIZED = a_gguf({**LLAMA, "general.file_type": 7})
PROJECTOR = a_gguf({"general.architecture": "clip", "general.type": "mmproj"})
OLD_LORA = a_gguf({**LLAMA, "adapter.type": "lora"})
NAMELESS_LORA = a_gguf(LLAMA, ["blk.0.w.lora_a", "blk.0.w.lora_b"])
NO_TENSORS = a_gguf({"general.architecture": "llama"}, ())
RENAMED = "give it back the name it was made with"


def a_zip() -> bytes:
    """What `torch.save` writes, as far as it matters here."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        opened.writestr("archive/data.pkl", b"x")
    return data.getvalue()


GGUF_SETS: dict[str, tuple[str, dict[str, bytes], str, str]] = {
    "shards whose headers say other numbers": (
        "files: [w/m-00001-of-00002.gguf]",
        {"w/m-00001-of-00002.gguf": a_shard(1, 2), "w/m-00002-of-00002.gguf": a_shard(0, 2)},
        "m.yaml:1:27: files: m-00001-of-00002.gguf: its header says shard 2 of 2, its name says shard 1 of 2",
        RENAMED,
    ),
    "a shard under another name": (
        "files: [w/part.gguf]",
        {"w/part.gguf": a_shard(0, 2)},
        "m.yaml:1:27: files: part.gguf: its header says shard 1 of 2, its name does not",
        "keep the name it was made with, …-00001-of-00002.gguf, and all its shards",
    ),
    "shards in capitals": (
        "modelfile: {text: FROM w/M-00001-of-00002.GGUF}",
        {"w/M-00001-of-00002.GGUF": a_shard(0, 2), "w/M-00002-of-00002.GGUF": a_shard(1, 2)},
        "m.yaml:1:31: files: M-00001-of-00002.GGUF: its header says shard 1 of 2, its name does not",
        "keep the name it was made with, …-00001-of-00002.gguf, and all its shards",
    ),
    "shards of different splits": (
        "files: [w/m-00001-of-00002.gguf]",
        {"w/m-00001-of-00002.gguf": a_shard(0, 2, 3), "w/m-00002-of-00002.gguf": a_shard(1, 2, 3)},
        "m.yaml:1:27: files: m-00001-of-00002.gguf: its header promises 3 tensors in all shards, 2 are there",
        "the shards come from different splits; download them again",
    ),
    "one shard as a draft": (
        "from: x, drafts: [w/part.gguf]",
        {"w/part.gguf": a_shard(0, 2)},
        "m.yaml:1:37: drafts: part.gguf: its header says shard 1 of 2, its name does not",
        "keep the name it was made with, …-00001-of-00002.gguf, and all its shards",
    ),
    "a GGUF that is called safetensors": (
        "files: [w/x.safetensors]",
        {"w/x.safetensors": MODEL},
        "m.yaml:1:28: w/x.safetensors: is a GGUF file, despite its name",
        "give it a name that ends in .gguf",
    ),
    "a model without a type as an adapter": (
        "from: x, adapters: [w/f16.gguf]",
        {"w/f16.gguf": MODEL},
        "m.yaml:1:39: adapters: f16.gguf is a whole model according to its header, not an adapter",
        "name a LoRA; to make a model from this one use files:",
    ),
    "embeddings as an adapter": (
        "from: x, adapters: [w/e.gguf]",
        {"w/e.gguf": a_gguf({"general.architecture": "llama"}, ["token_embd.weight"])},
        "m.yaml:1:39: adapters: e.gguf is a whole model according to its header, not an adapter",
        "name a LoRA; to make a model from this one use files:",
    ),
    "a projector as an adapter": (
        "from: x, adapters: [w/mm.gguf]",
        {"w/mm.gguf": PROJECTOR},
        "m.yaml:1:39: adapters: mm.gguf is a projector according to its header, not an adapter",
        "name a LoRA; to make a model from this one use files:",
    ),
    "a projector alone": (
        "files: [w/mm.gguf]",
        {"w/mm.gguf": PROJECTOR},
        "m.yaml:1:27: files: mm.gguf is a projector according to its header, and no model is beside it",
        "name the model's GGUF too",
    ),
    "a quantized draft": (
        "from: x, drafts: [w/q8.gguf], draft_quantize: q4_K_M",
        {"w/q8.gguf": QUANTIZED},
        "m.yaml:1:66: draft_quantize: q8.gguf is Q8_0 according to its header",
        "leave it out, or name a draft of F16, BF16 or F32",
    ),
}


@pytest.mark.parametrize("name", GGUF_SETS)
def test_what_the_headers_of_gguf_files_forbid_is_found_when_the_manifest_is_read(
    name: str, tmp_path: Path
) -> None:
    entry, files, says, hint = GGUF_SETS[name]
    for path, data in files.items():
        write(tmp_path / path, data)
    assert said_of(tmp_path, entry) == f"{says}\n    {hint}\n"


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        ("from: x, adapters: [w.gguf]", {"w.gguf": OLD_LORA}),
        ("from: x, adapters: [w.gguf]", {"w.gguf": NAMELESS_LORA}),
        ("from: x, adapters: [w.gguf]", {"w.gguf": NO_TENSORS}),
        ("files: [w.gguf, mm.gguf]", {"w.gguf": MODEL, "mm.gguf": PROJECTOR}),
        ('files: ["hf://o/r/w.gguf", mm.gguf]', {"mm.gguf": PROJECTOR}),
        ('modelfile: {text: "FROM x\\nFROM ./mm.gguf"}', {"mm.gguf": PROJECTOR}),
        ("files: [w.bin]", {"w.bin": MODEL}),
        ('files: ["hf://o/r/ggml-model.bin"]', {}),
        ("from: x, drafts: [w.gguf], draft_quantize: q8_0", {"w.gguf": MODEL}),
        ('from: x, drafts: ["hf://o/r/w.gguf"], draft_quantize: q8_0', {}),
        (
            "files: [m-00001-of-00002.gguf]",
            {"m-00001-of-00002.gguf": a_shard(0, 2, 2), "m-00002-of-00002.gguf": a_shard(1, 2, 2)},
        ),
    ],
)
def test_gguf_files_that_servers_take_are_left_in_peace(
    entry: str, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    for path, data in files.items():
        write(tmp_path / path, data)
    assert said_of(tmp_path, entry) == ""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (0, []),
        (1, ["a.gguf: 1 bytes follow its last tensor"]),
        (32, ["a.gguf: 32 bytes follow its last tensor"]),
    ],
)
def test_bytes_behind_the_last_tensor_give_a_warning(more: int, says: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes() + bytes(more))
    manifest = load_text(tmp_path, "models: [{name: a, files: [a.gguf]}]")
    assert [warning.message for warning in manifest.warnings] == says


# folders


def a_folder(folder: Path, *weights: str, data: bytes = EMPTY) -> Path:
    """All that a server converts, with those weights."""
    for name in weights:
        write(folder / name, data)
    write(folder / "config.json", b"{}")
    write(folder / "tokenizer.json", b"{}")
    return folder


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


def nothing_there(_: Path) -> None:
    """The file is missing."""


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (a_link, "m.yaml:1:28: st/{}: is a link to nothing\n    download or copy it again\n"),
        (Path.mkdir, "m.yaml:1:28: st/{}: is a folder\n    download or copy it again\n"),
        (
            nothing_there,
            "m.yaml:1:27: files: model-00001-of-00002.safetensors: shard 2 of 2 is missing\n    put {} beside it\n",
        ),
    ],
)
def test_a_name_in_a_folder_is_not_taken_for_a_shard(
    put: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    name = "model-00002-of-00002.safetensors"
    put(a_folder(tmp_path / "st", "model-00001-of-00002.safetensors") / name)
    assert said_of(tmp_path, "files: [st]") == says.format(name)


def test_a_pipe_in_a_folder_is_refused_without_being_read(tmp_path: Path) -> None:
    from os import mkfifo

    mkfifo(a_folder(tmp_path / "st", "model-00001-of-00002.safetensors") / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors: is not a regular file" in said_of(tmp_path, "files: [st]")


def test_a_configuration_that_is_a_link_to_nothing_is_a_problem_as_for_ollama_create(tmp_path: Path) -> None:
    a_link(a_folder(tmp_path / "st", "model.safetensors") / "generation_config.json")
    assert "generation_config.json: invalid content type: a link to nothing" in said_of(
        tmp_path, "files: [st]"
    )


def test_shards_of_pytorch_are_counted_and_their_index_is_read(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "pt", "pytorch_model-00001-of-00002.bin", data=a_zip())
    assert "pytorch_model-00001-of-00002.bin: shard 2 of 2 is missing" in said_of(tmp_path, "files: [pt]")
    write(folder / "pytorch_model-00002-of-00002.bin", a_zip())
    assert said_of(tmp_path, "files: [pt]") == ""
    write(
        folder / "pytorch_model.bin.index.json", b'{"weight_map": {"a": "pytorch_model-00003-of-00003.bin"}}'
    )
    assert "it names pytorch_model-00003-of-00003.bin, and no such file is there" in said_of(
        tmp_path, "files: [pt]"
    )


def test_a_folder_whose_index_names_what_is_there_is_left_in_peace(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "tiny-hf", tmp_path / "st")
    names = ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
    (tmp_path / "st" / "model.safetensors").rename(tmp_path / "st" / names[0])
    write(tmp_path / "st" / names[1], EMPTY)
    index = {"metadata": {}, "weight_map": {"x": names[0], "y": names[1], "z": names[0]}}
    write(tmp_path / "st" / "model.safetensors.index.json", json.dumps(index).encode())
    write(tmp_path / "st" / "pytorch_model.bin.index.json", b'{"weight_map": {"x": "pytorch_model-1.bin"}}')
    assert said_of(tmp_path, "files: [st]") == ""


def test_configurations_below_are_not_read(tmp_path: Path) -> None:
    write(a_folder(tmp_path / "st", "model.safetensors") / "1_Pooling" / "config.json", b"{")
    assert said_of(tmp_path, "files: [st]") == ""


# names


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["model.safetensors", "pytorch_model.bin"],
        ["m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"],
        ["m-00000-of-00002.bin", "m-00001-of-00002.bin", "m-00002-of-00002.bin"],
        ["a/m-00001-of-00001.safetensors", "b/m-00001-of-00001.safetensors"],
        ["m-00001-of-00002.gguf"],
    ],
)
def test_whole_sets_of_shards_are_left_in_peace(names: list[str]) -> None:
    require_all_shards(names)


@given(st.integers(1, 40), st.data())
def test_any_shard_that_is_missing_is_named(count: int, data: st.DataObject) -> None:
    numbers = data.draw(st.sets(st.integers(1, count), min_size=1))
    names = [f"st/m-{number:05d}-of-{count:05d}.safetensors" for number in sorted(numbers)]
    missing = sorted(set(range(1, count + 1)) - numbers)
    if not missing:
        require_all_shards(names)
        return
    with pytest.raises(WeightsError, match=rf"^{names[0]}: shards? {missing[0]}\b") as caught:
        require_all_shards(names)
    assert caught.value.hint == f"put m-{missing[0]:05d}-of-{count:05d}.safetensors beside it"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["a/m-00001-of-00002.bin", "a/m-00002-of-00002.bin", "a/m-00003-of-00003.bin"],
            "a/m-00003-of-00003.bin: it is one of 3, but m-00001-of-00002.bin is one of 2",
        ),
        (["m-00001-of-00002.bin", "m-00003-of-00002.bin"], "m-00003-of-00002.bin: there is no shard 3 of 2"),
        (["m-00001-of-00000.pth"], "m-00001-of-00000.pth: there is no shard 1 of 0"),
    ],
)
def test_shards_that_cannot_be_of_one_set_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(WeightsError) as caught:
        require_all_shards(names)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("index", "names"),
    [
        ("model.safetensors.index.json", ["consolidated.safetensors"]),
        ("model.safetensors.index.json", ["model.safetensors"]),
        ("st/model.safetensors.index.json", ["st/model-1.safetensors", "st/model-2.safetensors"]),
        ("st/model.safetensors.index.json", ["model-1.safetensors", "st/model/model-1.safetensors"]),
    ],
)
def test_an_index_holds_for_the_files_that_it_speaks_of(index: str, names: list[str]) -> None:
    require_indexed(index, ["model-1.safetensors", "model-2.safetensors"], names)


def test_an_index_below_speaks_of_the_files_beside_it() -> None:
    names = ["st/model-1.safetensors", "model-2.safetensors"]
    with pytest.raises(WeightsError, match=r"it names model-2\.safetensors, and no such file is there"):
        require_indexed(
            "st/model.safetensors.index.json", ["model-1.safetensors", "model-2.safetensors"], names
        )


def test_a_tokenizer_may_be_of_either_kind_and_lie_below() -> None:
    require_companions(["config.json", "original/tokenizer.model"], is_adapter=False)
    require_companions(["adapter_config.json"], is_adapter=True)


# JSON from strangers

TREES: st.SearchStrategy[object] = st.recursive(st.none() | st.text(), st.lists)


@shared_fixtures()
@given(
    st.binary(max_size=64)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_an_index_of_any_bytes_is_refused_in_our_own_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(data)
    with pytest.raises(
        WeightsError, match=r"is not valid JSON|is not a JSON object|is not an index of weights"
    ):
        read_index(path)


def test_hostile_json_is_refused_and_never_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    for text in ("[" * 100_000, '{"weight_map": ' + "9" * 5000 + "}", '{"weight_map": {"a": []}}', "{}"):
        path.write_text(text)
        with pytest.raises(WeightsError, match=r"is not valid JSON|is not an index of weights"):
            read_index(path)
    with path.open("wb") as file:
        file.truncate(MAX_INDEX_BYTES + 1)
    with pytest.raises(WeightsError, match=f"the file is too large: {MAX_INDEX_BYTES} bytes are allowed"):
        read_index(path)


@pytest.mark.parametrize(("end", "is_object"), [(b"}\n", True), (b"", False)])
def test_only_the_ends_of_a_large_document_are_looked_at(
    tmp_path: Path, end: bytes, *, is_object: bool
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b'\n{"a": "' + b"x" * MAX_PARSED_BYTES + end)
    if is_object:
        require_object(path)
        return
    with pytest.raises(WeightsError, match="is not a JSON object"):
        require_object(path)
