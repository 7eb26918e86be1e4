"""Which weights a model is made from, and which files of a folder make one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollamaops.errors import WeightsError
from ollamaops.manifest.types import Build, ModelSpec, Pull, WeightsFile
from ollamaops.manifest.weights import local_files, select_weights
from ollamaops.names import ModelName

TEXT, ZIP, BINARY = "text/plain", "application/zip", "application/octet-stream"


HF = [("config.json", TEXT), ("tokenizer.json", TEXT), ("README.md", TEXT), ("tokenizer.model", BINARY)]
HF_CHOSEN = ("config.json", "tokenizer.json", "tokenizer.model")


@pytest.mark.parametrize(
    ("listing", "chosen"),
    [
        (
            [("model-00002-of-2.safetensors", BINARY), ("model-00001-of-2.safetensors", BINARY), *HF],
            ("model-00001-of-2.safetensors", "model-00002-of-2.safetensors", *HF_CHOSEN),
        ),
        # safetensors often do not sniff as binary
        ([("model.safetensors", TEXT), *HF], ("model.safetensors", *HF_CHOSEN)),
        (
            [("model.safetensors", BINARY), ("vae/model.safetensors", BINARY), ("vae/config.json", TEXT)],
            ("model.safetensors", "vae/model.safetensors", "vae/config.json"),
        ),
        (
            [("a/b/model.safetensors", BINARY), ("consolidated.safetensors", BINARY)],
            ("consolidated.safetensors",),
        ),
        ([("model.safetensors", BINARY), ("m.gguf", BINARY)], ("model.safetensors",)),
        (
            [("adapter_model.safetensors", BINARY), ("adapter_config.json", TEXT)],
            ("adapter_model.safetensors", "adapter_config.json"),
        ),
        ([("pytorch_model.bin", ZIP), *HF], ("pytorch_model.bin", *HF_CHOSEN)),
        ([("pytorch_model.bin", BINARY)], ("pytorch_model.bin",)),
        ([("consolidated.00.pth", ZIP), ("params.json", TEXT)], ("consolidated.00.pth", "params.json")),
        ([("b.gguf", BINARY), ("a.gguf", BINARY), *HF], ("a.gguf", "b.gguf")),
        ([("ggml-model.bin", BINARY)], ("ggml-model.bin",)),
        (
            [("model.safetensors", BINARY), ("chat_template.jinja", TEXT), ("sub/tokenizer.model", TEXT)],
            ("model.safetensors", "chat_template.jinja", "sub/tokenizer.model"),
        ),
        ([("model.safetensors", BINARY), ("tokenizer.model", TEXT)], ("model.safetensors",)),
    ],
)
def test_the_first_group_of_weights_is_chosen_with_what_goes_with_it(
    listing: list[tuple[str, str]], chosen: tuple[str, ...]
) -> None:
    assert select_weights(listing) == chosen
    assert select_weights(listing[::-1]) == chosen


def test_a_folder_without_weights_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(WeightsError, match="no Modelfile or safetensors files found") as caught:
        select_weights(HF)
    assert (
        caught.value.hint
        == "name a GGUF file, or a folder with model*.safetensors, config.json and a tokenizer"
    )


def test_a_folder_of_pointers_is_refused_with_their_names() -> None:
    with pytest.raises(WeightsError, match="no Modelfile or safetensors files found") as caught:
        select_weights([("m.gguf", TEXT), ("pytorch_model.bin", TEXT)])
    assert caught.value.hint == (
        "pytorch_model.bin is text/plain, m.gguf is text/plain: fetch the real files if these are git-lfs pointers"
    )


def test_a_json_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"config\.json: invalid content type: application/octet-stream"):
        select_weights([("model.safetensors", BINARY), ("config.json", BINARY)])


def test_every_local_file_is_listed_once() -> None:
    bot = ModelName.parse("bot")
    a, b, c = (WeightsFile(Path(f"/w/{name}.gguf"), f"{name}.gguf") for name in "abc")
    specs = [
        ModelSpec(name=bot, source=Build(files=(a, b))),
        ModelSpec(name=bot, source=Build(base=bot, adapters=(b,), drafts=(c,))),
        ModelSpec(name=bot, source=Pull(ref=bot)),
    ]
    assert local_files(specs) == (a, b, c)
