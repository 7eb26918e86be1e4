"""Modelfile text, compared with what Ollama's own parser says of 83 texts."""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from printed_modelfile import render_modelfile

from ollamaops.errors import ModelfileError
from ollamaops.manifest.lint import lint_modelfile
from ollamaops.manifest.modelfile import (
    Command,
    Modelfile,
    build_from_modelfile,
    decode_modelfile,
    parse_modelfile,
    render_for_wire,
)
from ollamaops.manifest.types import Build
from ollamaops.settings import Message

CONTRACT = Path(__file__).parents[1] / "contract"


class Vector(TypedDict):
    """A text and what Ollama makes of it."""

    input: str
    commands: NotRequired[list[tuple[str, str]]]
    error: NotRequired[str]
    printed: NotRequired[str]


VECTORS: list[Vector] = json.loads((CONTRACT / "modelfile-vectors.json").read_text())
GOOD = [vector for vector in VECTORS if "commands" in vector]
BAD = [vector for vector in VECTORS if "error" in vector]


def a_modelfile(*commands: tuple[str, str]) -> Modelfile:
    return Modelfile(tuple(Command(name, args) for name, args in commands))


def test_every_vector_is_a_promise() -> None:
    assert len(GOOD) + len(BAD) == len(VECTORS) == 83


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: repr(vector["input"]))
def test_a_valid_text_has_the_commands_that_ollama_finds(vector: Vector) -> None:
    parsed = parse_modelfile(vector["input"])
    assert [[command.name, command.args] for command in parsed.commands] == [*map(list, vector["commands"])]


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: repr(vector["input"]))
def test_commands_are_printed_as_ollama_prints_them(vector: Vector) -> None:
    assert render_modelfile(parse_modelfile(vector["input"])) == vector["printed"]


@pytest.mark.parametrize("vector", BAD, ids=lambda vector: repr(vector["input"]))
def test_an_invalid_text_fails_in_ollamas_own_words(vector: Vector) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse_modelfile(vector["input"])
    assert caught.value.message == vector["error"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ('FROM a\n\nSYSTEM "open\nPARAMETER stop x\n', "unexpected EOF", 3),
        ("FROM a\r\n# c\r\nSYSTE x\r\n", "(line 5): command must be", 3),
        ("FROM a\nPARAMETER \nstop x", "unexpected EOF: ", 2),
        ("FROM a\nMESSAGE\nuser x", "(line 3): command must be", 2),
        ("FROM a\nMESSAGE user\n", "(line 3): message role must be", 2),
        ("FROM a\n\n7 x", "(line 3): command must be", 3),
        ("FROM a\n\u00a0 x", "(line 2): command must be", 2),
        ("# nothing\n", "no FROM line", 0),
    ],
)
def test_an_error_points_to_the_line_of_the_command_as_an_editor_counts(
    text: str, message: str, line: int
) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse_modelfile(text, "bots/Modelfile")
    assert caught.value.message.startswith(message)
    assert (caught.value.line, caught.value.problems[0].path) == (line, "bots/Modelfile")


def test_commands_know_their_line_whatever_the_line_ends() -> None:
    text = 'FROM a\r\n\r\nSYSTEM """x\r\ny"""\rLICENSE z\n# c\n  MESSAGE user hi'
    assert [command.line for command in parse_modelfile(text).commands] == [1, 3, 5, 7]


def test_a_line_number_is_not_part_of_what_a_modelfile_says() -> None:
    assert parse_modelfile("\n\nFROM a") == parse_modelfile("FROM a") == a_modelfile(("model", "a"))


def test_all_values_of_a_command_are_at_hand_in_order() -> None:
    parsed = parse_modelfile("FROM a\nPARAMETER stop x\nFROM b\nPARAMETER stop y")
    assert (parsed.args_of("model"), parsed.args_of("stop"), parsed.args_of("system")) == (
        ("a", "b"),
        ("x", "y"),
        (),
    )


@pytest.mark.parametrize(
    ("character", "kept"),
    [
        ("\U0001fae8", True),  # Unicode 15
        ("\u0378", False),  # not assigned
        ("\ue000", False),  # private use
        ("\ud800", False),  # half of a pair
        ("\u0301", True),  # a combining mark
        ("\ufffd", True),
        ("\u3000", False),
    ],
)
def test_characters_are_kept_if_go_can_print_them(character: str, kept: bool) -> None:
    (_, system) = parse_modelfile(f"FROM a\nSYSTEM x{character}y").commands
    assert system.args == (f"x{character}y" if kept else "xy")


def test_a_long_value_of_many_lines_is_read_in_linear_time() -> None:
    text = "line of a license\n" * 200_000
    assert parse_modelfile(f'FROM a\nLICENSE """{text}"""').args_of("license") == (text,)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"FROM a", "FROM a"),
        (b"\xef\xbb\xbfFROM \xc3\xa9", "FROM é"),
        ("FROM é\r\n".encode("utf-16"), "FROM é\r\n"),
        (b"\xff\xfe" + "FROM é".encode("utf-16-le"), "FROM é"),
        (b"\xfe\xff" + "FROM é".encode("utf-16-be"), "FROM é"),
        (b"FROM \xe9!", "FROM \ufffd!"),
        (b"", ""),
    ],
)
def test_bytes_are_decoded_by_their_byte_order_mark(data: bytes, text: str) -> None:
    assert decode_modelfile(data) == text


# --- a second parser that goes rune by rune, slow and written apart from the first


def _printable(rune: str) -> bool:
    return rune == " " or unicodedata.category(rune)[0] in "LMNPS"


def _unquoted(buffer: str) -> str | None:
    trimmed = buffer.strip(" \t\r\n")
    for quote in ('"""', '"'):
        if trimmed.startswith(quote):
            whole = len(trimmed) >= 2 * len(quote) and trimmed.endswith(quote)
            return trimmed[len(quote) : len(trimmed) - len(quote)] if whole else None
    return trimmed


class _Machine:
    """States are methods that take a rune and give the next state. ValueError for an invalid text."""

    words = "from license template system adapter draft renderer parser parameter message requires"

    def __init__(self) -> None:
        self.commands: list[tuple[str, str]] = []
        self.buffer = self.name = self.role = ""
        self.state: Callable[[str], Any] = self.between

    def read(self, text: str) -> list[tuple[str, str]]:
        for rune in text.removeprefix("\ufeff"):
            self.state = self.state(rune)
        if self.state == self.value:
            self.state = self.finish(_unquoted(self.buffer))
        if self.state not in (self.between, self.comment) or "model" not in dict(self.commands):
            raise ValueError
        return self.commands

    def between(self, rune: str) -> Callable[[str], Any]:
        if rune in " \t\r\n":
            return self.between
        self.buffer = rune if _printable(rune) else ""
        return self.comment if rune == "#" else self.word

    def comment(self, rune: str) -> Callable[[str], Any]:
        return self.between if rune in "\r\n" else self.comment

    def word(self, rune: str) -> Callable[[str], Any]:
        if rune not in " \t":
            return self.more(rune, "", self.word)
        if self.buffer.lower() not in self.words.split():
            raise ValueError
        self.name, self.buffer = self.buffer.lower().replace("from", "model"), ""
        return {"parameter": self.parameter, "message": self.message}.get(self.name, self.value)

    def parameter(self, rune: str) -> Callable[[str], Any]:
        if rune not in " \t":
            return self.more(rune, "0123456789_", self.parameter)
        self.name, self.buffer = self.buffer, ""
        return self.value

    def message(self, rune: str) -> Callable[[str], Any]:
        if rune not in " \t":
            return self.more(rune, "", self.message)
        if self.buffer not in ("system", "user", "assistant"):
            raise ValueError
        self.role, self.buffer = self.buffer + ": ", ""
        return self.value

    def more(self, rune: str, besides: str, state: Callable[[str], Any]) -> Callable[[str], Any]:
        if rune not in string.ascii_letters + besides:
            raise ValueError
        self.buffer += rune
        return state

    def value(self, rune: str) -> Callable[[str], Any]:
        if rune in "\r\n" and (text := _unquoted(self.buffer)) is not None:
            return self.finish(text)
        self.buffer += rune if rune in "\t\r\n" or _printable(rune) else ""
        return self.value

    def finish(self, text: str | None) -> Callable[[str], Any]:
        if text is None:
            raise ValueError
        self.commands.append((self.name, self.role + text))
        self.role = self.buffer = ""
        return self.between


_tokens = st.lists(
    st.sampled_from(
        [
            *(
                '"',
                '""',
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
    ),
    max_size=20,
).map("".join)


@given(_tokens.map("FROM a\n".__add__) | _tokens | st.text(max_size=20))
@example('FROM a\nSYSTEM "\n"\nLICENSE x')
@example('FROM a\nSYSTEM """"\n"""\nLICENSE x')
@example('FROM a\nSYSTEM "\u200d"" x"""')
@example("\ufeff# c\nFROM a")
@example("\ufeff\ufeffFROM a")
def test_the_parser_agrees_with_a_machine_that_goes_rune_by_rune(text: str) -> None:
    assume(all(unicodedata.category(rune) != "Cn" for rune in text))
    try:
        parsed = [(command.name, command.args) for command in parse_modelfile(text).commands]
    except ModelfileError:
        with pytest.raises(ValueError):
            _Machine().read(text)
    else:
        assert parsed == _Machine().read(text)


# --- sending text to servers before 0.5.5

_texts = st.text(st.sampled_from('"\n\r\t x') | st.characters(), max_size=12) | _tokens
_names = st.sampled_from(["model", "system", "template", "license", "adapter", "stop", "", "num_ctx", "from"])
_commands = st.builds(Command, _names, _texts) | st.builds(
    lambda role, text: Command("message", f"{role}: {text}"),
    st.sampled_from(["system", "user", "assistant", "tool"]),
    _texts,
)


@given(st.lists(_commands, max_size=4).map(lambda more: Modelfile((Command("model", "a"), *more))))
def test_what_is_rendered_for_the_wire_is_read_back_unchanged(modelfile: Modelfile) -> None:
    try:
        text = render_for_wire(modelfile)
    except ModelfileError:
        return
    assert parse_modelfile(text) == modelfile


@given(_texts)
def test_a_text_is_refused_for_the_wire_only_if_no_quoting_carries_it(text: str) -> None:
    modelfile = a_modelfile(("model", "a"), ("system", text))
    try:
        render_for_wire(modelfile)
    except ModelfileError:
        for quote in ('"""', '"', ""):
            with suppress(ValueError):
                commands = _Machine().read(f"FROM a\nSYSTEM {quote}{text}{quote}")
                assert commands != [("model", "a"), ("system", text)]


_ROLES = 'message role must be one of "system", "user", or "assistant"'


def test_plain_words_go_bare_and_all_else_in_three_quotes() -> None:
    modelfile = a_modelfile(
        ("model", "@sha256:ab"),
        ("num_ctx", "4096"),
        ("system", ""),
        ("stop", "a b"),
        ("message", 'user: "hi"\n'),
        ("", "x"),
    )
    assert render_for_wire(modelfile) == (
        "FROM @sha256:ab\n"
        "PARAMETER num_ctx 4096\n"
        'SYSTEM """"""\n'
        'PARAMETER stop """a b"""\n'
        'MESSAGE user """"hi"\n"""\n'
        "PARAMETER  x\n"
    )


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "system",
            "a\u200db",
            "SYSTEM cannot be sent in a Modelfile: U+200D ZERO WIDTH JOINER would be dropped",
        ),
        (
            "stop",
            "\x07",
            "PARAMETER stop cannot be sent in a Modelfile: U+0007 control character would be dropped",
        ),
        (
            "template",
            'a """\t\nb',
            'TEMPLATE cannot be sent in a Modelfile: a line in it ends in """, which would end the value',
        ),
        ("renderer", "x", "RENDERER cannot be sent in a Modelfile: servers before 0.5.5 do not know it"),
        ("message", "tool: x", f"MESSAGE tool cannot be sent in a Modelfile: {_ROLES}"),
        ("message", "user", f"MESSAGE user cannot be sent in a Modelfile: {_ROLES}"),
        (
            "st-op",
            "x",
            "PARAMETER st-op cannot be sent in a Modelfile: a parameter has letters, digits and underscores only",
        ),
    ],
)
def test_what_an_old_server_cannot_be_told_is_refused(name: str, args: str, message: str) -> None:
    modelfile = Modelfile((Command("model", "a"), Command(name, args, 7)))
    with pytest.raises(ModelfileError) as caught:
        render_for_wire(modelfile, "bots/Modelfile")
    assert (caught.value.message, caught.value.problems[0].place) == (message, "bots/Modelfile:7:1")


def test_commands_without_from_are_refused_for_the_wire() -> None:
    with pytest.raises(ModelfileError, match="no FROM line"):
        render_for_wire(a_modelfile(("system", "x")))


# --- lint

_DROP_HINT = (
    "a Modelfile carries printable characters, spaces, tabs and line ends only;"
    " the manifest's own keys carry all"
)


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("SYSTEM a\u00a0b\u00a0c", ["2:9: U+00A0 NO-BREAK SPACE is dropped from SYSTEM (2 times)"]),
        ('MESSAGE user """x\ny\u200d"""', ["3:2: U+200D ZERO WIDTH JOINER is dropped from MESSAGE user"]),
        ("SYSTEM a\ufffd", ["2:9: SYSTEM has U+FFFD where a byte was not UTF-8"]),
        (
            'SYSTEM "a b" c\nPARAMETER stop "z"',
            ["2:1: SYSTEM goes on for 2 lines: more text follows the closing quote on the first"],
        ),
        (
            'TEMPLATE """a""" b\r\nc\r\n"""',
            ["2:1: TEMPLATE goes on for 3 lines: more text follows the closing quote on the first"],
        ),
        (
            'SYSTEM """a\n  PARAMETER stop z\nparser of texts\n"""',
            ["3:3: this line is part of SYSTEM, which begins on line 2"],
        ),
        ('LICENSE """a\nLICENSE TO USE\n"""', []),
        ("PARAMETER seed 1 #hot", ["2:17: the text from # on is part of PARAMETER seed"]),
        ("SYSTEM Answer # briefly", ["2:14: the text from # on is part of SYSTEM"]),
        ("SYSTEM Answer issue #12", []),
        ('SYSTEM "Answer # briefly"', []),
        ("PARAMETER stop ###", []),
        (
            "PARAMETER stop  # x",
            [
                "2:16: the spaces around PARAMETER stop are lost",
                "2:16: the text from # on is part of PARAMETER stop",
            ],
        ),
        ("SYSTEM 'x'", ["2:1: the single quotes are part of SYSTEM"]),
        ("PARAMETER stop '", []),
        ("SYSTEM x ", ["2:8: the spaces around SYSTEM are lost"]),
        ('SYSTEM  " x " ', []),
        ("PARAMETER temperature   0.5 ", []),
        ('SYSTEM ""', ["2:1: an empty SYSTEM sends nothing: the inherited one stays"]),
        ('TEMPLATE """"""', ["2:1: an empty TEMPLATE sends nothing: the inherited one stays"]),
        ("FROM ", ["2:1: FROM without a value means the folder of the Modelfile"]),
        ('MESSAGE user ""', ["2:1: MESSAGE user has no value"]),
        ("PARAMETER stop ", ["2:1: PARAMETER stop has no value"]),
        ("PARAMETER  stop x", ["2:1: two spaces after PARAMETER make its name empty and its value 'stop x'"]),
        ("PARAMETER system x", ["2:1: PARAMETER system is read as SYSTEM"]),
        (
            "PARAMETER numa true",
            ["2:1: PARAMETER numa is skipped: Ollama 0.3.3 was the last version to have it"],
        ),
        ("ADAPTER ./a\n\nADAPTER ./b", ["4:1: this ADAPTER replaces the one on line 2"]),
        ("PARAMETER seed 1\nPARAMETER seed 2", ["3:1: this PARAMETER seed replaces the one on line 2"]),
        ("PARAMETER stop a\nPARAMETER stop b\nFROM b\nLICENSE x\nLICENSE y", []),
        ("parameter top_k 4\n# comment \nLICENSE y", []),
    ],
)
def test_lint_warns_with_place(text: str, warnings: list[str]) -> None:
    problems = lint_modelfile(f"FROM a\n{text}", "m")
    assert [f"{p.line}:{p.column}: {p.message}" for p in problems] == warnings
    assert all(p.path == "m" and p.hint for p in problems)


def test_lint_gives_the_way_out_of_dropped_characters() -> None:
    (problem,) = lint_modelfile("FROM a\nSYSTEM x\u00ady")
    assert problem.hint == _DROP_HINT


def test_lint_of_an_invalid_text_is_its_error() -> None:
    with pytest.raises(ModelfileError, match="unexpected EOF"):
        lint_modelfile('FROM a\nSYSTEM "x')


@given(_tokens.map("FROM a\n".__add__))
def test_lint_takes_every_text_that_the_parser_takes(text: str) -> None:
    try:
        parse_modelfile(text)
    except ModelfileError:
        return
    assert all(problem.line > 0 and problem.column > 0 for problem in lint_modelfile(text))


FULL = '''
FROM ./weights
FROM qwen3:32b
ADAPTER ./a.gguf
ADAPTER ./b.gguf
DRAFT ./d1.gguf
DRAFT ./d2.gguf
TEMPLATE first
TEMPLATE """{{ .Prompt }}"""
SYSTEM You are Mario.
LICENSE MIT
LICENSE BSD
PARAMETER temperature 1
PARAMETER stop a
PARAMETER num_ctx 16384
PARAMETER temperature 0.7
PARAMETER stop "b c"
PARAMETER use_mmap F
PARAMETER mirostat 2
MESSAGE user hi: there
MESSAGE assistant yo
RENDERER gemma4
PARSER gemma4
REQUIRES v0.14.0
'''


def asked_by(text: str) -> Build:
    build, problems = build_from_modelfile(parse_modelfile(text))
    assert problems == []
    return build


def problems_of(text: str, path: str = "Modelfile") -> list[str]:
    _, problems = build_from_modelfile(parse_modelfile(text), path)
    return [f"{problem.place}: {problem.message}" for problem in problems]


def test_every_value_that_create_sends_is_asked_for() -> None:
    assert asked_by(FULL) == Build(
        template="{{ .Prompt }}",
        system="You are Mario.",
        licenses=("MIT", "BSD"),
        parameters={"temperature": 0.7, "stop": ("a", "b c"), "num_ctx": 16384, "use_mmap": False},
        messages=(Message("user", "hi: there"), Message("assistant", "yo")),
        renderer="gemma4",
        parser="gemma4",
        requires="0.14.0",
    )


def test_a_bare_from_asks_for_nothing_else() -> None:
    assert asked_by("FROM llama3") == Build()


@pytest.mark.parametrize("word", ["SYSTEM", "TEMPLATE", "RENDERER", "PARSER"])
def test_an_empty_value_is_not_sent_even_after_another(word: str) -> None:
    assert asked_by(f'FROM a\n{word} x\n{word} ""') == Build()


def test_everything_that_ollama_would_refuse_is_said_at_once_with_its_line() -> None:
    text = (
        "FROM a\nPARAMETER num_ctx 1.048576e+06\nPARAMETER temprature 1\nREQUIRES latest\nPARAMETER  stop x"
    )
    assert sorted(problems_of(text, "bots/Modelfile")) == [
        "bots/Modelfile:2:1: invalid int value [1.048576e+06]",
        "bots/Modelfile:3:1: unknown parameter 'temprature'",
        "bots/Modelfile:4:1: requires must be a valid semver (e.g. 0.14.0)",
        "bots/Modelfile:5:1: unknown parameter ''",
    ]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.14.0", "0.14.0"),
        ("v1", "1"),
        ("1.2", "1.2"),
        ("0.14.0-rc2", "0.14.0-rc2"),
        ("1.2.3+b.1", "1.2.3+b.1"),
    ],
)
def test_a_required_version_is_sent_without_its_v(text: str, version: str) -> None:
    assert asked_by(f"FROM a\nREQUIRES {text}").requires == version


@pytest.mark.parametrize(
    "text", ["", "x", "01.2.3", "1.2.3.4", "1.2.3-", "vv1", "1-rc1", ">=0.14.0", "1.2.3-01"]
)
def test_what_is_not_a_version_is_refused(text: str) -> None:
    (problem,) = problems_of(f"FROM a\nREQUIRES {text}\n")
    assert "must be a valid semver" in problem
