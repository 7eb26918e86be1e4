"""Text → tree: every flaw has a place, and no text makes the parser raise."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from json_strategies import JSON_VALUES

from ollamaops.manifest.document import (
    MAX_BYTES,
    Items,
    Node,
    Scalar,
    Table,
    parse_document,
    resolve_plain,
    to_plain,
)


def plain(text: str, path: str = "m.yaml") -> object:
    """What the text means, if there is nothing wrong with it."""
    document = parse_document(text.encode(), path)
    assert document.problems == ()
    assert document.root is not None
    return to_plain(document.root)


def problems(data: str | bytes, path: str = "m.yaml") -> list[str]:
    document = parse_document(data if isinstance(data, bytes) else data.encode(), path)
    return [f"{problem.place}: {problem.message}" for problem in document.problems]


def node_at(text: str, *path: str | int) -> Node:
    node = parse_document(text.encode(), "m.yaml").root
    for part in path:
        if isinstance(node, Table) and isinstance(part, str):
            node = node.nodes[part]
        else:
            assert isinstance(node, Items)
            assert isinstance(part, int)
            node = node.nodes[part]
    assert node is not None
    return node


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("1.10", 1.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        # text, where YAML 1.1 sees something else
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-22", "2026-11-22"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("9" * 400, "9" * 400),
        ("-", "-"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_unquoted_values_are_read_as_in_json_and_yaml_1_2(text: str, value: object) -> None:
    resolved = resolve_plain(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_quoted_values_are_text() -> None:
    assert plain("a: '1'\nb: \"true\"\nc: |\n  1\nd: !!str 1.10\ne: ! 2\n") == {
        "a": "1",
        "b": "true",
        "c": "1\n",
        "d": "1.10",
        "e": "2",
    }


def test_every_node_and_key_knows_its_place() -> None:
    text = "models:\n  - name: a\n    stop: [x, yy]\n"
    assert str(node_at(text).place) == "m.yaml:1:1"
    assert str(node_at(text, "models").place) == "m.yaml:2:3"
    assert str(node_at(text, "models", 0, "stop", 1).place) == "m.yaml:3:15"
    entry = node_at(text, "models", 0)
    assert isinstance(entry, Table)
    assert {key: str(place) for key, place in entry.keys.items()} == {
        "name": "m.yaml:2:5",
        "stop": "m.yaml:3:5",
    }
    assert entry.get("nothing") is None


def test_a_value_keeps_the_text_it_was_written_as() -> None:
    node = node_at("a: 1.10", "a")
    assert isinstance(node, Scalar)
    assert (node.value, node.text, node.plain, node.shown) == (1.1, "1.10", True, "1.10")


def test_messages_show_at_most_sixty_characters_of_a_value() -> None:
    node = node_at("a: " + "x" * 100, "a")
    assert isinstance(node, Scalar)
    assert node.shown == "x" * 59 + "…"


def test_json_is_read_with_tabs_and_surrogate_pairs() -> None:
    value = {"a": "😀 \\ud83d", "b": [1, 2.5, None, True], "c/": {"d": ""}}
    assert plain(json.dumps(value, indent="\t"), "m.json") == value


def test_a_byte_order_mark_is_dropped() -> None:
    assert plain("\ufeffa: 1") == {"a": 1}


def test_aliases_stand_for_what_they_name() -> None:
    assert plain("a: &x [1, &y 2]\nb: *x\nc: *y\n") == {"a": [1, 2], "b": [1, 2], "c": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "m.yaml: the file is empty"),
        ("# nothing\n", "m.yaml: the file is empty"),
        ("---\n~\n", "m.yaml: the file is empty"),
        ("a: 1\nb: 2\na: 3\n", "m.yaml:3:1: duplicate key 'a': the first one is at m.yaml:1:1"),
        ("a: {1: x, '1': y}", "m.yaml:1:11: duplicate key '1': the first one is at m.yaml:1:5"),
        ("a:\n  b: 1\n\tc: 2\n", "m.yaml:3:1: a tab in the indentation: YAML allows only spaces"),
        ("a: b: c\n", "m.yaml:1:5: not valid YAML: mapping values are not allowed in this context"),
        ("---\na: 1\n---\nb: 2\n", "m.yaml:3:1: a second document begins here: one is allowed"),
        ("a: !foo b\n", "m.yaml:1:4: YAML tags are not used here"),
        ("a: !foo [b]\n", "m.yaml:1:4: YAML tags are not used here"),
        ("a: !!python/object:os.system {}\n", "m.yaml:1:4: YAML tags are not used here"),
        ("? [a]\n: b\n", "m.yaml:1:3: a key must be text, not a list or a mapping"),
        ("<<: {a: 1}\n", "m.yaml:1:1: merge keys (<<) are not used here: YAML 1.2 has none"),
        ("a: &x [*x]\n", "m.yaml:1:8: an alias inside its own anchor has no end"),
        ("a: &x 1\nb: &x {c: *x}\n", "m.yaml:2:11: an alias inside its own anchor has no end"),
        ("a: *nope\n", "m.yaml:1:4: an alias without an anchor before it"),
        ("[" * 100, "m.yaml:1:65: nested deeper than 64 levels"),
        ("[" * 5_000, "m.yaml:1:65: nested deeper than 64 levels"),
        (
            "a: [" + "[]," * 99 + "}",
            "m.yaml:1:302: not valid YAML: did not find expected node content while parsing a flow node",
        ),
        ("a: \0\n", "m.yaml:1:4: a NUL character is not allowed"),
        ("a: b\nc: \x1b[31m\n", "m.yaml:2:4: the control character U+001B is not allowed"),
        ('a: "\\0"\n', "m.yaml:1:4: a NUL character is not allowed"),
    ],
)
def test_a_flaw_is_named_with_its_place(text: str, said: str) -> None:
    assert problems(text) == [said]


def test_a_merge_key_in_quotes_is_a_key() -> None:
    assert plain("'<<': 1") == {"<<": 1}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: [${vars.x}]", 'inside [ ] and { } write "${…}" with quotes'),
        ("a: @x", "quote text that contains ': ' or begins with one of @ ` % & * ! | > { [ #"),
        ("a: 'x", None),
    ],
)
def test_a_syntax_error_has_a_way_out_where_one_is_known(text: str, hint: str | None) -> None:
    (problem,) = parse_document(text.encode(), "m.yaml").problems
    assert problem.hint == hint


def test_text_that_is_not_utf_8_is_refused_where_it_begins() -> None:
    assert problems("ä: 1\nb: ".encode() + b"\xff") == ["m.yaml:2:4: not UTF-8 text"]
    assert problems("a: 1".encode("utf-16")) == ["m.yaml:1:1: not UTF-8 text"]


def test_a_file_of_more_than_four_mebibytes_is_refused() -> None:
    assert problems(b"#" * (MAX_BYTES + 1)) == ["m.yaml: the file has 4194305 bytes, 4194304 are allowed"]


def test_aliases_unfold_to_a_bounded_number_of_values() -> None:
    levels = [
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    said = problems("a: &a [x, x]\n" + "\n".join(levels))
    assert said == ["m.yaml:5:20: aliases unfold to more than 10000 values"]


def test_aliases_cannot_nest_deeper_than_brackets() -> None:
    levels = [f"l{level}: &l{level} [[[[[[[[*l{level - 1}]]]]]]]]" for level in range(1, 20)]
    assert problems("l0: &l0 [x]\n" + "\n".join(levels)) == ["m.yaml:9:17: nested deeper than 64 levels"]


def test_the_parser_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: [1, {b: c}]\nd: |\n  e\n"
    value = plain(text)
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert plain(text) == value
    assert problems("a: b: c")[0].startswith("m.yaml:1:5: not valid YAML: mapping values are not allowed")


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(data: bytes) -> None:
    document = parse_document(data, "m.yaml")
    assert (document.root is None) <= bool(document.problems)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,?<\t\n ~.0123", max_size=60))
def test_no_punctuation_makes_the_parser_raise(text: str) -> None:
    document = parse_document(text.encode(), "m.yaml")
    assert (document.root is None) <= bool(document.problems)


@given(st.dictionaries(st.text("abc", min_size=1), JSON_VALUES, min_size=1, max_size=4))
def test_json_means_what_it_means_to_a_json_reader(value: dict[str, object]) -> None:
    assert plain(json.dumps(value), "m.json") == value
    assert plain(json.dumps(value, ensure_ascii=False, indent=1), "m.json") == value
