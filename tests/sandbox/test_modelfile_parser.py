"""The sandbox's own Modelfile parser, held against what Ollama's parser says of 83 texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import ModelfileError
from ollamaops.manifest import modelfile as client
from ollamaops.sandbox.modelfile_parser import BadModelfile, parse_modelfile

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "contract" / "modelfile-vectors.json").read_text()
)
NEWEST = (
    *("from", "license", "template", "system", "adapter", "draft", "renderer", "parser"),
    *("parameter", "message", "requires"),
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector["input"]))
def test_a_text_has_the_commands_or_the_error_that_ollama_finds(vector: dict[str, Any]) -> None:
    try:
        found: dict[str, object] = {
            "commands": [list(command) for command in parse_modelfile(vector["input"], NEWEST)]
        }
    except BadModelfile as error:
        found = {"error": f"(line {error.line}): {error}" if error.line else str(error)}
    assert found == {key: vector[key] for key in ("commands", "error") if key in vector}


def test_a_command_of_a_later_version_is_unknown() -> None:
    with pytest.raises(BadModelfile) as caught:
        parse_modelfile("FROM a\nREQUIRES 0.14.0\n")
    assert str(caught.value) == (
        'command must be one of "from", "license", "template", "system", "adapter", "parameter", or "message"'
    )


def test_a_long_license_is_read_in_linear_time() -> None:
    text = "line of a license\n" * 200_000
    assert parse_modelfile(f'FROM a\nLICENSE """{text}"""') == [("model", "a"), ("license", text)]


fragments = st.sampled_from(
    [
        *(
            '"',
            '"""',
            '"\n',
            '"""\n',
            "#",
            " ",
            "\t",
            "\n",
            "\r",
            "x",
            "7",
            "_",
            "é",
            "\u00a0",
            "\u200d",
            "\ufeff",
        ),
        *(
            "FROM ",
            "from\t",
            "SYSTEM ",
            "LICENSE ",
            "PARAMETER stop ",
            "parameter ",
            "MESSAGE user ",
            "message ",
        ),
    ]
)


@given(
    st.lists(fragments, max_size=20).map("".join) | st.text(st.characters(max_codepoint=0x2FFF), max_size=20)
)
def test_server_and_client_read_the_same_text_alike(text: str) -> None:
    try:
        expected: object = [(command.name, command.args) for command in client.parse_modelfile(text).commands]
    except ModelfileError as error:
        expected = error.message
    try:
        found: object = parse_modelfile(text, NEWEST)
    except BadModelfile as error:
        found = f"(line {error.line}): {error}" if error.line else str(error)
    assert found == expected
