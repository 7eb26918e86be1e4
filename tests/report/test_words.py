"""Counts, names, sizes, and foreign text that must not act on a terminal."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.report.words import (
    Paint,
    cells,
    clean,
    clean_line,
    fit_encoding,
    join_names,
    pad,
    plural,
    shorten,
    shorten_digests,
    wants_color,
    without_host,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "names, said",
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d"], "a, b and 2 more"),
        ([f"gpu-{number}" for number in range(1, 21)], "gpu-1, gpu-2 and 18 more"),
    ],
)
def test_names_are_joined_and_long_lists_counted(names: list[str], said: str) -> None:
    assert join_names(names) == said


def test_one_is_singular_and_all_else_plural() -> None:
    said = [plural(0, "model"), plural(1, "model"), plural(2, "model"), plural(2, "entry", "entries")]
    assert said == ["0 models", "1 model", "2 models", "2 entries"]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("bell\x07", "bell\\x07"),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("over\rwritten", "over written"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("lone \ud800 half", "lone \\ud800 half"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("naïve 日本語 👩‍💻 →", "naïve 日本語 👩‍💻 →"),
    ],
)
def test_text_that_would_act_on_a_terminal_is_shown_as_escapes(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text())
def test_clean_text_is_one_line_without_controls_and_can_be_encoded(text: str) -> None:
    for shown in (clean(text), clean_line(text)):
        assert not {unicodedata.category(sign) for sign in shown} & {"Cc", "Cs", "Zl", "Zp"}
        assert shown.encode().decode() == shown
        assert len(shown.splitlines()) <= 1


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert clean_line(clean_line(text)) == clean_line(text)


def test_a_line_of_a_text_keeps_its_indentation() -> None:
    assert clean_line("  a\tb  c\r") == "  a    b  c\\r"


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("utf-8", "gpu-1 → 0.7 … ✗ 日"),
        ("ascii", "gpu-1 -> 0.7 ... x ?"),
        ("latin-1", "gpu-1 -> 0.7 ... x ?"),
        ("ascii:nothing", "plain"),
    ],
)
def test_signs_that_an_encoding_lacks_are_written_plainly(encoding: str, shown: str) -> None:
    text = "plain" if encoding.endswith("nothing") else "gpu-1 → 0.7 … ✗ 日"
    assert fit_encoding(text, encoding.partition(":")[0]) == shown


def test_color_is_for_terminals_that_did_not_say_no() -> None:
    assert wants_color(Terminal(), {})
    assert wants_color(Terminal(), {"NO_COLOR": "", "TERM": "xterm"})
    assert not wants_color(io.StringIO(), {})
    assert not wants_color(Terminal(), {"NO_COLOR": "1"})
    assert not wants_color(Terminal(), {"TERM": "dumb"})
    assert not wants_color(Terminal(), {}, no_color=True)


def test_paint_without_color_leaves_text_alone() -> None:
    assert Paint(color=False)("bad", "x") == "x"
    assert Paint(color=True)("bad", "x") == "\x1b[31mx\x1b[0m"
    assert Paint(color=True)("bad", "") == ""


def test_wide_characters_take_two_columns_and_accents_none() -> None:
    assert [cells(text) for text in ("abc", "日本", "e\u0301")] == [3, 4, 1]
    assert pad("日本", 6) == "日本  "


def test_digests_are_cut_to_twelve_digits() -> None:
    digest = "9f2c" * 16
    assert (
        shorten_digests(f"sha256:{digest} {digest} sha256-{digest}")
        == "9f2c9f2c9f2c 9f2c9f2c9f2c 9f2c9f2c9f2c"
    )
    assert shorten_digests("9f2c") == "9f2c"


def test_a_long_text_ends_in_an_ellipsis() -> None:
    assert [shorten("12345", 5), shorten("123456", 5)] == ["12345", "1234…"]


def test_a_host_is_not_named_twice() -> None:
    assert without_host("gpu-1", "gpu-1: connection refused") == "connection refused"
    assert without_host("gpu-1", "gpu-10: connection refused") == "gpu-10: connection refused"
