"""Problems of users' files with their places, and errors with their hints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import ConnectError, ManifestError, OllamaopsError, Problem, UsageError
from ollamaops.report.problem_text import problems_to_json, render_error, render_problems

TEXT = """models:
  - name: bot
    parametrs: {temperature: 0.2}
\t- name: "日本語" # ${vars.registri}
"""


def marked(column: int, line: str) -> list[str]:
    """The excerpt for a problem at that column of a one-line file."""
    text = render_problems([Problem("a.yaml", 1, column, "wrong")], {"a.yaml": line})
    return text.splitlines()[1:-1]


def test_a_problem_shows_its_place_its_line_and_the_way_out() -> None:
    problem = Problem("a.yaml", 3, 5, "unknown key 'parametrs'", "did you mean 'parameters'?")
    assert render_problems([problem], {"a.yaml": TEXT}) == (
        "a.yaml:3:5: unknown key 'parametrs'\n"
        "    3 |     parametrs: {temperature: 0.2}\n"
        "      |     ^^^^^^^^^\n"
        "    hint: did you mean 'parameters'?\n"
        "1 error in 1 file\n"
    )


def test_a_problem_without_a_text_shows_its_place() -> None:
    problems = [Problem("a.yaml", 3, 5, "x"), Problem("b.yaml", 0, 0, "is not there")]
    assert render_problems(problems) == "a.yaml:3:5: x\nb.yaml: is not there\n2 errors in 2 files\n"


def test_warnings_are_called_warnings() -> None:
    assert render_problems([Problem("a", 0, 0, "x")], level="warning").endswith("1 warning in 1 file\n")


def test_no_problem_is_no_text() -> None:
    assert render_problems([]) == ""


@pytest.mark.parametrize(
    "column, line, excerpt",
    [
        (1, "a: b", ["    1 | a: b", "      | ^"]),
        (4, "a: ${vars.x} c", ["    1 | a: ${vars.x} c", "      |    ^^^^^^^^^"]),
        (3, "\t\tkey: 1", ["    1 |         key: 1", "      |         ^^^"]),
        (6, '"日本" key: 1', ['    1 | "日本" key: 1', "      |        ^^^"]),
        (4, "a: |\r", ["    1 | a: |", "      |    ^"]),
        (9, "a: b", ["    1 | a: b", "      |     ^"]),
        (0, "a: b", ["    1 | a: b", "      | ^"]),
        (3, "a:\x1b[31m", ["    1 | a:\\x1b[31m", "      |   ^"]),
    ],
)
def test_the_mark_stands_under_the_word(column: int, line: str, excerpt: list[str]) -> None:
    assert marked(column, line) == excerpt


def test_of_a_very_long_line_the_part_around_the_place_is_shown() -> None:
    source, mark = marked(301, "x" * 300 + "key" + "y " * 300)
    assert len(source) < 120
    assert source[mark.index("^") :].startswith("key")


def test_a_place_that_is_not_in_the_text_has_no_excerpt() -> None:
    assert render_problems([Problem("a", 9, 1, "x")], {"a": "one line"}) == "a:9:1: x\n1 error in 1 file\n"


def test_long_messages_are_wrapped_under_their_place() -> None:
    lines = render_problems([Problem("a.yaml", 1, 1, "word " * 30, "do " * 40)], width=60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith("    word")


def test_colors_mark_the_place_and_the_word() -> None:
    text = render_problems([Problem("a.yaml", 1, 1, "x")], {"a.yaml": "key: 1"}, color=True)
    assert text.startswith("\x1b[1ma.yaml:1:1\x1b[0m: x\n")
    assert "\x1b[31m^^^\x1b[0m" in text


def test_a_place_too_long_for_the_width_is_still_whole() -> None:
    place = "a folder/" * 12 + "a.yaml"
    assert place.replace("\n    ", " ") in render_problems([Problem(place, 0, 0, "x")], width=40).replace(
        "\n    ", " "
    )


def test_an_error_says_what_why_and_the_way_out() -> None:
    error = ConnectError("gpu-1: no answer: connection refused", hint="is ollama serve running there?")
    assert render_error(error) == (
        "error: gpu-1: no answer: connection refused\nhint: is ollama serve running there?\n"
    )
    assert render_error(error, color=True).startswith("\x1b[31merror:\x1b[0m gpu-1")


def test_an_error_without_words_says_its_kind() -> None:
    assert render_error(UsageError("")) == "error: UsageError\n"


def test_an_error_about_files_shows_every_problem() -> None:
    error = ManifestError([Problem("b", 1, 1, "two"), Problem("a", 1, 1, "one")])
    assert render_error(error) == "a:1:1: one\nb:1:1: two\n2 errors in 2 files\n"


@given(st.text(), st.text(), st.integers(0, 5), st.integers(0, 50), st.text())
def test_no_file_and_no_server_can_write_to_the_terminal_raw(
    path: str, message: str, line: int, column: int, text: str
) -> None:
    shown = render_problems([Problem(path, line, column, message, message)], {path: text}) + render_error(
        OllamaopsError(message, hint=message)
    )
    assert not [sign for sign in shown if sign != "\n" and (ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0)]
    assert shown.encode().decode() == shown


def test_problems_as_json_have_their_places_as_numbers() -> None:
    problems = [Problem("a", 3, 5, "x", "y"), Problem("b", 0, 0, "z")]
    assert problems_to_json(problems) == [
        {"file": "a", "line": 3, "column": 5, "message": "x", "hint": "y"},
        {"file": "b", "line": None, "column": None, "message": "z", "hint": None},
    ]
