"""YAML or JSON text → a tree of nodes, each of which knows its file, line and column.

One document, not too deep, every key once, aliases bounded, no merge keys, no tags but `!!str`. A manifest is UTF-8
of at most 4 MiB. Lock files are read with it too.

Plain scalars are read as in JSON and YAML 1.2 (`true`, `12`, `1.5`, `null`), not as in YAML 1.1. So `no`, `on`,
`12:30`, `010` and `0x1F` are text here. `1.10` is still a number; where text is wanted the schema refuses it and asks
for quotes, because another reader of the file would see 1.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import assert_never

import yaml
from msgspec import Struct, field

from ollamaops.errors import Problem
from ollamaops.manifest.types import Place

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_ALIASED_NODES = 10_000

ScalarValue = str | int | float | bool | None


class Scalar(Struct, frozen=True):
    """One value. `text` is its text; `secret_as` what messages show instead when it came from `${env:}`.

    `reference` is then the text that means the same in any file: it refers to the environment alone.
    """

    place: Place
    value: ScalarValue
    text: str
    plain: bool = False
    secret_as: str | None = None
    reference: str | None = None

    @property
    def shown(self) -> str:
        """What a message may say of this value: at most 60 characters, and nothing from the environment."""
        text = self.text if self.secret_as is None else self.secret_as
        return text if len(text) <= 60 else text[:59] + "…"


class Items(Struct, frozen=True):
    """A list."""

    place: Place
    nodes: tuple[Node, ...] = ()


class Table(Struct, frozen=True):
    """A mapping; `keys` says where each key stands."""

    place: Place
    nodes: Mapping[str, Node] = field(default_factory=dict)
    keys: Mapping[str, Place] = field(default_factory=dict)

    def get(self, key: str) -> Node | None:
        return self.nodes.get(key)


Node = Scalar | Items | Table


class Document(Struct, frozen=True):
    """What is in one file: `root` is None when the text could not be read to its end."""

    path: str
    root: Node | None
    problems: tuple[Problem, ...] = ()


def parse_document(data: bytes, path: str) -> Document:
    """The tree in `data`. Never raises for what a user may write; every flaw is in `problems`."""
    try:
        text = _decode(data, path)
    except _Unreadable as stop:
        return Document(path, None, (stop.problem,))
    return parse_text(_SURROGATES.sub(_join_surrogates, text) if path.endswith(".json") else text, path)


def parse_text(text: str, path: str, *, max_depth: int = MAX_DEPTH, may_have_nul: bool = False) -> Document:
    """As `parse_document`, for text of any length. `may_have_nul` allows an escaped NUL in a quoted scalar."""
    builder = _Builder(path, max_depth, may_have_nul)
    try:
        _refuse_control_characters(text, path)
        return Document(path, builder.build(text), tuple(builder.problems))
    except _Unreadable as stop:
        return Document(path, None, (stop.problem,))


def to_plain(node: Node) -> object:
    """The node as dicts, lists and scalars, without places."""
    match node:
        case Scalar():
            return node.value
        case Items():
            return [to_plain(item) for item in node.nodes]
        case Table():
            return {key: to_plain(value) for key, value in node.nodes.items()}
        case _:
            assert_never(node)


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS: Mapping[str, ScalarValue] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def resolve_plain(text: str) -> ScalarValue:
    """The value of an unquoted scalar, by the rules in this module's head."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


class _Unreadable(Exception):
    """The text cannot be read any further."""

    def __init__(self, place: Place, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(place.path, place.line, place.column, message, hint)


_BAD_CHARACTER = re.compile("[\\0-\x08\v\f\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_SURROGATES = re.compile(r"((?<!\\)(?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def _decode(data: bytes, path: str) -> str:
    whole = Place(path)
    if len(data) > MAX_BYTES:
        raise _Unreadable(
            whole, f"the file has {len(data)} bytes, {MAX_BYTES} are allowed", "split it with include:"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        raise _Unreadable(_place_after(before, path), "not UTF-8 text", "save the file as UTF-8") from None


def _refuse_control_characters(text: str, path: str) -> None:
    if bad := _BAD_CHARACTER.search(text):
        name = "a NUL character" if bad[0] == "\0" else f"the control character U+{ord(bad[0]):04X}"
        raise _Unreadable(_place_after(text[: bad.start()], path), f"{name} is not allowed")


def _place_after(before: str, path: str) -> Place:
    """The place of the character that follows `before`."""
    return Place(path, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _join_surrogates(match: re.Match[str]) -> str:
    r"""JSON writes 😀 as `\ud83d\ude00` (RFC 8259 §7), which YAML does not know."""
    pair = bytes.fromhex(match[2] + match[3])
    return match[1] + pair.decode("utf-16-be")


class _Open(Struct):
    """A list or mapping that has begun and not ended. `weight` counts the nodes in it, `height` the levels."""

    place: Place
    anchor: str | None
    is_table: bool
    items: list[Node] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Place] = field(default_factory=dict)
    key: Scalar | None = None
    weight: int = 1
    height: int = 1


class _Anchored(Struct, frozen=True):
    node: Node
    weight: int
    height: int


class _Builder:
    """Events of the YAML parser → nodes, without recursion, so that no document is too deep for it."""

    def __init__(self, path: str, max_depth: int, may_have_nul: bool) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self._max_depth = max_depth
        self._may_have_nul = may_have_nul
        self._stack: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}
        self._aliased = 0
        self._root: Node | None = None

    def build(self, text: str) -> Node | None:
        try:
            for event in _events(text):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            raise self._too_deep(error, text) or self._syntax_error(error, text) from None
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            raise _Unreadable(Place(self.path), "the file is empty", "start with models: and a list of names")
        return self._root

    def _take(self, event: yaml.Event) -> None:
        match event:
            case yaml.ScalarEvent():
                node = self._scalar(event)
                self._remember(event.anchor, node, 1, 0)
                self._add(node)
            case yaml.AliasEvent():
                self._add_alias(event)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._open(event)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._close()
            case yaml.DocumentStartEvent() if self._root is not None:
                hint = "split it into files: -f takes a folder, and include: takes globs"
                raise _Unreadable(self._place(event), "a second document begins here: one is allowed", hint)

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        assert mark is not None, "the parser marks every event"
        return Place(self.path, mark.line + 1, mark.column + 1)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        place = self._place(event)
        text: str = event.value
        if "\0" in text and not self._may_have_nul:
            raise _Unreadable(place, "a NUL character is not allowed")
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._refuse_tag(place)
        plain = event.style in (None, "") and event.tag is None
        return Scalar(place, resolve_plain(text) if plain else text, text, plain)

    def _refuse_tag(self, place: Place) -> None:
        self._add_problem(place, "YAML tags are not used here", "quote a value that begins with !")

    def _add_problem(self, place: Place, message: str, hint: str) -> None:
        self.problems.append(Problem(place.path, place.line, place.column, message, hint))

    def _open(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        place = self._place(event)
        if event.tag is not None:
            self._refuse_tag(place)
        self._stack.append(_Open(place, event.anchor, isinstance(event, yaml.MappingStartEvent)))
        self._check_depth(place, 0)
        # known as "open" until it ends, so that an alias inside finds out that it would contain itself
        self._anchors.pop(event.anchor or "", None)

    def _check_depth(self, place: Place, height: int) -> None:
        if len(self._stack) + height > self._max_depth:
            raise _Unreadable(place, f"nested deeper than {self._max_depth} levels")

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node = (
            Table(done.place, done.nodes, done.keys)
            if done.is_table
            else Items(done.place, tuple(done.items))
        )
        self._remember(done.anchor, node, done.weight, done.height)
        self._add(node, done.weight, done.height)

    def _remember(self, anchor: str | None, node: Node, weight: int, height: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = _Anchored(node, weight, height)

    def _add_alias(self, event: yaml.AliasEvent) -> None:
        place = self._place(event)
        if any(frame.anchor == event.anchor for frame in self._stack):
            raise _Unreadable(place, "an alias inside its own anchor has no end")
        anchored = self._anchors.get(event.anchor or "")
        if anchored is None:
            raise _Unreadable(
                place, "an alias without an anchor before it", "quote a value that begins with *"
            )
        self._aliased += anchored.weight
        if self._aliased > MAX_ALIASED_NODES:
            raise _Unreadable(place, f"aliases unfold to more than {MAX_ALIASED_NODES} values")
        self._check_depth(place, anchored.height)
        self._add(anchored.node, anchored.weight, anchored.height)

    def _add(self, node: Node, weight: int = 1, height: int = 0) -> None:
        if not self._stack:
            self._root = node
            return
        frame = self._stack[-1]
        frame.weight += weight
        frame.height = max(frame.height, height + 1)
        if not frame.is_table:
            frame.items.append(node)
        elif frame.key is None:
            frame.key = self._key(node)
        else:
            self._set(frame, frame.key, node)
            frame.key = None

    def _key(self, node: Node) -> Scalar:
        if not isinstance(node, Scalar):
            raise _Unreadable(
                node.place, "a key must be text, not a list or a mapping", "quote ${…} and {…} in keys"
            )
        if node.plain and node.text == "<<":
            hint = "use defaults: or environments:, or repeat the keys"
            raise _Unreadable(node.place, "merge keys (<<) are not used here: YAML 1.2 has none", hint)
        return node

    def _set(self, frame: _Open, key: Scalar, node: Node) -> None:
        if (first := frame.keys.get(key.text)) is not None:
            message = f"duplicate key '{key.shown}': the first one is at {first}"
            self._add_problem(key.place, message, "keep one of the two")
            return
        frame.nodes[key.text] = node
        frame.keys[key.text] = key.place

    def _too_deep(self, error: yaml.MarkedYAMLError, text: str) -> _Unreadable | None:
        """The error for deep nesting that libyaml refused before it gave out the events that would have shown it.

        libyaml scans ahead, and PyYAML 6.0.4 and later make it stop at 1000 levels. The reader in Python has no such
        limit, but is slow, so it is asked only when there are enough brackets.
        """
        assert error.problem_mark is not None, "the parser marks every error"
        before = text[: error.problem_mark.index]
        if before.count("[") + before.count("{") <= self._max_depth:
            return None
        depth = 0
        with suppress(yaml.YAMLError):
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > self._max_depth:
                    return _Unreadable(self._place(event), f"nested deeper than {self._max_depth} levels")
        return None

    def _syntax_error(self, error: yaml.MarkedYAMLError, text: str) -> _Unreadable:
        mark = error.problem_mark
        assert mark is not None, "the parser marks every error"
        place = Place(self.path, mark.line + 1, mark.column + 1)
        line = next(iter(text.splitlines()[mark.line :]), "")
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return _Unreadable(
                place, "a tab in the indentation: YAML allows only spaces", "replace tabs by spaces"
            )
        about = f" {error.context}" if error.context else ""
        return _Unreadable(
            place, f"not valid YAML: {error.problem}{about}", _syntax_hint(error.problem or "", line)
        )


def _events(text: str) -> Iterator[yaml.Event]:
    """The parser's events; libyaml's parser is about six times faster than the one in Python."""
    loader: type[yaml.CSafeLoader | yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.parse(text, Loader=loader)


def _syntax_hint(problem: str, line: str) -> str | None:
    if "expected ',' or" in problem and "${" in line:
        return 'inside [ ] and { } write "${…}" with quotes'
    if "mapping values are not allowed" in problem or "cannot start any token" in problem:
        return "quote text that contains ': ' or begins with one of @ ` % & * ! | > { [ #"
    return None
