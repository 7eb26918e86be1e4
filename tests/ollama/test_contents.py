"""Which blob tells that a stop word is held as text."""

from __future__ import annotations

from typing import Any

import pytest
from sandbox_caller import Caller, a_caller, digest_of

from ollamaops.ollama.contents import Contents, text_stop, with_text_stop


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with a_caller(tmp_path_factory.mktemp("store")) as found:
        found.base()
        yield found


@pytest.mark.parametrize(
    "parameters",
    [
        {"stop": "x"},
        {"stop": '<|a|> "b" \u2028 ü &'},
        {"stop": "x", "num_ctx": 1048576, "seed": 1000000.0, "temperature": 1e-05, "top_p": 0.95},
        {"stop": "x", "temperature": 0.5, "use_mmap": True, "top_k": None},
        {"stop": "x", "repeat_penalty": 1e-07, "min_p": 0.0, "presence_penalty": -1.5},
    ],
)
def test_a_stop_word_that_is_text_is_told_by_the_blob_of_the_parameters(
    caller: Caller, parameters: dict[str, Any]
) -> None:
    assert caller.create("bot", **{"from": "base", "parameters": parameters}).status == 200
    shown = Contents(digest="", parameters={**parameters, "stop": (parameters["stop"],)})
    blob = text_stop(shown)
    assert blob is not None
    assert caller.has_blob(str(blob))
    assert with_text_stop(shown).parameters["stop"] == parameters["stop"]


def test_the_blob_is_the_one_that_real_servers_make() -> None:
    shown = Contents(digest="", parameters={"stop": ("<|user|>",), "num_ctx": 4096.0})
    assert str(text_stop(shown)) == digest_of(b'{"num_ctx":4096,"stop":"\\u003c|user|\\u003e"}\n')


@pytest.mark.parametrize("parameters", [{}, {"stop": ("a", "b")}, {"stop": None}, {"stop": 5}])
def test_without_a_single_stop_word_there_is_nothing_to_tell(parameters: dict[str, Any]) -> None:
    assert text_stop(Contents(digest="", parameters=parameters)) is None
