"""The `modelfile` text of show, as six real servers printed it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from printed_modelfile import render_modelfile

from ollamaops.manifest.modelfile import Command, Modelfile
from ollamaops.names import Digest
from ollamaops.ollama.shown_modelfile import ShownModelfile, parse_shown_modelfile

CONTRACT = Path(__file__).parents[1] / "contract"
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


class Shown(NamedTuple):
    """One recorded answer to `/api/show`."""

    version: str
    scenario: str
    answer: dict[str, Any]


def _recorded() -> Iterator[Shown]:
    for path in sorted(CONTRACT.glob("ollama-*.json")):
        for scenario, steps in json.loads(path.read_text())["scenarios"].items():
            for step in steps:
                answer = step["response"].get("json")
                if isinstance(answer, dict) and "modelfile" in answer:
                    yield Shown(path.stem.removeprefix("ollama-"), scenario, answer)


RECORDED = list(_recorded())


def test_all_six_servers_are_here() -> None:
    assert len({shown.version for shown in RECORDED}) == 6
    assert len(RECORDED) > 100


@pytest.mark.parametrize("shown", RECORDED, ids=lambda shown: f"{shown.version}-{shown.scenario}")
def test_every_recorded_text_gives_what_the_other_fields_give(shown: Shown) -> None:
    answer = shown.answer
    parsed = parse_shown_modelfile(answer["modelfile"])
    first = re.search(r"^FROM .*sha256-([0-9a-f]{64})$", answer["modelfile"], re.MULTILINE)
    assert parsed.model == (Digest(first[1]) if first else None)
    if not answer["template"].startswith(
        "{%"
    ):  # from 0.30 on the field may hold the chat template of the GGUF
        assert parsed.template == answer["template"]
    assert parsed.system == answer.get("system")
    assert "\n".join(parsed.licenses) == answer.get("license", "")
    assert [{"role": role, "content": content} for role, content in parsed.messages] == answer.get(
        "messages", []
    )
    names = [line.split()[0] for line in answer.get("parameters", "").splitlines()]
    assert sorted(name for name, _ in parsed.parameters) == sorted(names)


def test_blobs_are_told_apart_by_their_command_and_found_in_windows_paths_too() -> None:
    text = (
        f"# FROM me:latest\n\nFROM C:\\Users\\me\\.ollama\\models\\blobs\\sha256-{A}\n"
        f'ADAPTER "/o m/blobs/sha256-{B} "\nADAPTER " /o m/blobs/sha256-{B}"\nDRAFT /o/blobs/sha256:{C}\n'
        f"FROM /o/blobs/sha256-{D}\nTEMPLATE {{{{ .Prompt }}}}\n"
    )
    assert parse_shown_modelfile(text) == ShownModelfile(
        model=Digest(A),
        projectors=(Digest(D),),
        adapters=(Digest(B),),
        drafts=(Digest(C),),
        template="{{ .Prompt }}",
    )


@pytest.mark.parametrize("base", ["", "qwen3:32b", f"/not/a/blob/sha256-{A[1:]}"])
def test_a_model_without_weights_of_its_own_has_none(base: str) -> None:
    text = f"FROM {base}\nTEMPLATE x\nSYSTEM \nRENDERER r\nPARSER p\nREQUIRES 0.14.0\n"
    assert parse_shown_modelfile(text) == ShownModelfile(
        template="x", system="", renderer="r", parser="p", requires="0.14.0"
    )


@pytest.mark.parametrize(
    ("system", "printed"),
    [
        ('"Be brief', '"Be brief'),
        ('Like this:\nSYSTEM """\nhi"""\nFROM /x/sha256-' + C, None),
        ('"\nRENDERER other\nPARSER "other"', None),
    ],
)
def test_a_text_that_is_known_from_elsewhere_ends_where_it_ends(system: str, printed: str | None) -> None:
    """Quotes are not escaped, so that the text alone does not tell."""
    quoted = printed or '"""' + system + '"""'
    lines = (
        f"FROM /m/sha256-{A}",
        "TEMPLATE {{ .Prompt }}",
        f"SYSTEM {quoted}",
        "RENDERER qwen3-coder",
        'PARAMETER stop "',
        'PARAMETER stop x"',
    )
    known = [system, "{{ .Prompt }}", "{{", '"']
    assert parse_shown_modelfile("\n".join((*lines, "")), known) == ShownModelfile(
        model=Digest(A),
        template="{{ .Prompt }}",
        system=system,
        renderer="qwen3-coder",
        parameters=(("stop", '"'), ("stop", 'x"')),
    )


@pytest.mark.parametrize("text", ["", "\n\n", "whatever", "FROM", "TEMPLATE"])
def test_text_of_another_kind_says_nothing(text: str) -> None:
    assert parse_shown_modelfile(text) == ShownModelfile()


@pytest.mark.parametrize(
    "template",
    [
        '{{ .System }}\nSYSTEM "x"\nPARAMETER stop y\n',
        '"{{ .Prompt }}"',
        '"',
        '"""',
        '"""{{ .Prompt }}"""',
        'ends "\n"',
        '"""\nx"""',
        ' "',
        "\n",
        " ",
        "a\r\nb",
        "a\rb",
        "\tx\t",
        "nbsp\u00a0zwj\u200d",
        'say """\nYOU ARE',
        "",
    ],
)
@pytest.mark.parametrize("more", ["", "SYSTEM s\nLICENSE l\n", "MESSAGE user hi\n"])
def test_a_template_is_recovered_from_the_unescaped_text(template: str, more: str) -> None:
    text = render_modelfile(Modelfile((Command("model", "a"), Command("template", template)))) + more
    assert parse_shown_modelfile(text).template == template


@pytest.mark.parametrize(
    ("template", "read"),
    [('"a "', "a "), ('x"\n"""\nSYSTEM y\n', 'x"\n')],
)
def test_two_templates_that_print_alike_are_read_as_ollamas_parser_would(template: str, read: str) -> None:
    text = render_modelfile(Modelfile((Command("template", template),)))
    assert parse_shown_modelfile(text).template == read


_texts = st.lists(
    st.sampled_from(["\n", " ", "x", "SYSTEM ", "PARAMETER stop ", "\r", "\u00a0", "{{ .Prompt }}"])
).map("".join)
_quoting = st.builds(lambda before, after: f'{before}"{after}', _texts.map("x".__add__), _texts)


@given(
    _texts | _quoting,
    _texts | _quoting,
    st.lists(_texts | _quoting, max_size=2),
    st.lists(_texts, max_size=2),
)
def test_what_ollama_prints_is_read_back(
    template: str, system: str, licenses: list[str], messages: list[str]
) -> None:
    commands = [
        Command("model", f"/m/blobs/sha256-{A}"),
        Command("template", template),
        Command("system", system),
    ]
    commands += [Command("stop", text) for text in messages]
    commands += [Command("license", text) for text in licenses]
    commands += [Command("message", f"user: {text}") for text in messages]
    assert parse_shown_modelfile(render_modelfile(Modelfile(tuple(commands)))) == ShownModelfile(
        model=Digest(A),
        template=template,
        system=system,
        licenses=tuple(licenses),
        parameters=tuple(("stop", text) for text in messages),
        messages=tuple(("user", text) for text in messages),
    )
