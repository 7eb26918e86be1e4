"""`ollamaops.lock`: what each pulled model was, byte for byte; text ↔ values, and what an update changes.

Pure: reading and writing the file, and asking the registry, are the caller's. The text is YAML with one line per
blob, sorted by name, and depends on nothing but the entries, so that a change reads well in a review. The fact a
reader would miss: an entry keeps every field of which Ollama's own layout of the manifest is made, so that the
tags digests of servers < 0.19 can be told from the lock alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

import yaml

from ollamaops.errors import InvalidName, InvalidValue, ManifestError, Problem
from ollamaops.names import Digest, ModelName
from ollamaops.registry.documents import (
    Document,
    FetchedManifest,
    Layer,
    LayerChange,
    ManifestList,
    RegistryManifest,
    canonical_digests,
    compare,
)
from ollamaops.units import format_size

LOCK_VERSION = 1
MAX_LOCK_CHARACTERS = 16 * 1024 * 1024
_MAX_DEPTH = 16

_HEADER = "# made by `ollamaops lock`: what each pulled model is, byte for byte; review it, do not edit it\n"
_LAYER_KEYS = ("digest", "size", "media_type", "name", "from")
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_.+/:-]*(?<!:)")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_UNESCAPED = re.compile(r"[^ !#-\[\]-~]")
_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class LockEntry:
    """One pulled model: the digest of its registry manifest, and what the manifest names."""

    digest: Digest
    document: Document

    @property
    def tags_digests(self) -> frozenset[str]:
        """The digests (bare hex) that `/api/tags` may show for exactly this content, whatever server pulled it."""
        if isinstance(self.document, ManifestList):
            return frozenset({self.digest.hex, *(child.digest.hex for child in self.document.children)})
        return canonical_digests(self.document) | {self.digest.hex}

    @property
    def size_bytes(self) -> int:
        """Bytes of all blobs, each once; for a list of manifests, of the manifests."""
        return sum({part.digest: part.size_bytes for part in self.document.parts}.values())


@dataclass(frozen=True, slots=True)
class Lock:
    """All entries. Two locks are equal when they lock the same content under the same names."""

    entries: Mapping[ModelName, LockEntry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A lock's entry beside what the registry has now.

    `moved`: the tag points to something else, `changes` says to what. `damaged`: the same manifest digest but
    other layers, so the lock (or the registry) was tampered with.
    """

    state: Literal["same", "moved", "damaged"]
    changes: tuple[LayerChange, ...]


def update(lock: Lock, name: ModelName, fetched: FetchedManifest) -> Lock:
    """The lock with `name` at what was fetched; everything else is as it was."""
    others = {known: entry for known, entry in lock.entries.items() if known != name}
    return Lock({**others, name: LockEntry(fetched.digest, fetched.document)})


def compare_entry(entry: LockEntry, fetched: FetchedManifest) -> Comparison:
    """Whether the registry still has what the lock says, and what has changed since."""
    changes = compare(entry.document, fetched.document)
    if entry.digest != fetched.digest:
        return Comparison("moved", changes)
    return Comparison("same" if entry.document == fetched.document else "damaged", changes)


def render_lock(lock: Lock) -> str:
    """The text of the lock file. Equal locks have equal text; `parse_lock` reads it back."""
    lines = [f"version: {LOCK_VERSION}", "models:" if lock.entries else "models: {}"]
    for name in sorted(lock.entries, key=lambda name: name.display.lower()):
        lines += _entry_lines(name, lock.entries[name])
    return _HEADER + "\n".join(lines) + "\n"


def parse_lock(text: str, path: str) -> Lock:
    """The lock in `text`; ManifestError with every problem and its place in `path`."""
    return _Reader(path).read(text)


def _entry_lines(name: ModelName, entry: LockEntry) -> Iterator[str]:
    document = entry.document
    yield f"  {_key(name.display)}:  # {format_size(entry.size_bytes)}"
    yield f"    manifest: {entry.digest}"
    yield f"    media_type: {_scalar(document.media_type)}"
    if isinstance(document, RegistryManifest):
        yield f"    config: {_layer_line(document.config)}"
        yield from _layer_list("layers", document.layers, "null" if document.layers_are_null else "[]")
    else:
        yield from _layer_list("manifests", document.children)


def _layer_list(key: str, layers: tuple[Layer, ...], none: str = "[]") -> Iterator[str]:
    yield f"    {key}:" if layers else f"    {key}: {none}"
    for layer in layers:
        yield f"      - {_layer_line(layer)}"


def _layer_line(layer: Layer) -> str:
    values = (str(layer.digest), str(layer.size_bytes), layer.media_type, layer.name, layer.from_)
    pairs = zip(_LAYER_KEYS, values, strict=True)
    shown = (f"{key}: {_scalar(value, key)}" for key, value in pairs if value or key == "media_type")
    return "{" + ", ".join(shown) + "}"


def _scalar(text: str, key: str = "") -> str:
    """The text as a YAML scalar: plain where every reader takes it for that text, else in double quotes."""
    if key == "size" or (_PLAIN.fullmatch(text) and text.lower() not in _WORDS):
        return text
    return '"' + _UNESCAPED.sub(_escape, text) + '"'


def _key(text: str) -> str:
    """A model's name as a YAML key; quoted when YAML 1.1 would read a number (`1:30`)."""
    return f'"{text}"' if re.fullmatch(r"[0-9_.:-]+", text) else text


def _escape(match: re.Match[str]) -> str:
    if match[0] in '"\\':
        return "\\" + match[0]
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


ANEW_HINT = "restore the file from version control, or delete it and run `ollamaops lock`"
_CONFLICT = re.compile(r"^(?:[<>|]{7}(?: .*)?|={7})\r?$", re.MULTILINE)
_NO_LOCK_HINT = "name one that `ollamaops lock` has written"  # words of any other file are nobody's business


class _Flaw(Exception):
    """Something wrong at one node; becomes a Problem."""

    def __init__(self, node: yaml.Node, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.hint = hint


class _Reader:
    """Reads one lock file; keeps the problems of all entries, so that they are reported together."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._problems: list[Problem] = []

    def read(self, text: str) -> Lock:
        root = self._compose(text)
        lock = self._attempt(lambda: self._read_lock(root))
        if self._problems or lock is None:
            raise ManifestError(_with_way_out(self._problems))
        return lock

    def _compose(self, text: str) -> yaml.Node:
        if len(text) > MAX_LOCK_CHARACTERS:
            raise self._broken(0, 0, f"the lock has more than {MAX_LOCK_CHARACTERS} characters")
        if conflict := _CONFLICT.search(text):
            line = text.count("\n", 0, conflict.start()) + 1
            message = "a merge conflict that nobody has resolved begins here"
            raise self._broken(line, 1, message, "take one side, or delete the file and run `ollamaops lock`")
        try:
            if _is_too_deep(text):
                raise self._broken(0, 0, f"nested more than {_MAX_DEPTH} deep")
            root = yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            raise self._broken(*place, f"not YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise self._broken(0, 0, f"not YAML: {type(error).__name__}") from None
        if root is None:
            raise self._broken(0, 0, "the lock is empty")
        return root

    def _broken(self, line: int, column: int, message: str, hint: str = ANEW_HINT) -> ManifestError:
        return ManifestError([Problem(self._path, line, column, message, hint)])

    def _attempt(self, read: Callable[[], _Value]) -> _Value | None:
        """What `read` returns; None, and a problem more, when it finds a flaw."""
        try:
            return read()
        except _Flaw as flaw:
            mark = flaw.node.start_mark
            place = (mark.line + 1, mark.column + 1)
            self._problems.append(Problem(self._path, *place, str(flaw), flaw.hint))
            return None

    def _read_lock(self, root: yaml.Node) -> Lock:
        known = ("version", "models")
        if isinstance(root, yaml.MappingNode) and not any(key.value in known for key, _ in root.value):
            raise _Flaw(root, "this is no lock file: it has neither 'version' nor 'models'", _NO_LOCK_HINT)
        keys = _keys(root, known)
        _check_version(_needed(root, keys, "version"))
        entries: dict[ModelName, LockEntry] = {}
        for key, node in _pairs(_needed(root, keys, "models")):
            self._attempt(partial(_read_entry, key, node, entries))
        return Lock(entries)


def _with_way_out(problems: list[Problem]) -> list[Problem]:
    """The same; the last one says what to do about the file as a whole, unless it has a hint of its own."""
    *others, last = sorted(problems, key=lambda problem: (problem.line, problem.column))
    return [*others, last if last.hint else replace(last, hint=ANEW_HINT)]


def _read_entry(key: yaml.Node, node: yaml.Node, entries: dict[ModelName, LockEntry]) -> None:
    name = _name(key, entries)
    entries[name] = _entry(node)


def _is_too_deep(text: str) -> bool:
    """Whether composing could go too deep: it recurses, and in libyaml's binding to a crash of the process."""
    try:
        return _reaches_max_depth(text, _LOADER)
    except yaml.YAMLError:
        # libyaml reads ahead of the events that it gives out, and from PyYAML 6.0.4 on refuses deep nesting there,
        # before a single one is counted. The reader in Python has no such limit and reads ahead one line at most.
        with suppress(yaml.YAMLError):
            return _reaches_max_depth(text, yaml.SafeLoader)
        return False  # broken in some other way, which composing reports with its place


def _reaches_max_depth(text: str, loader: type[yaml.SafeLoader | yaml.CSafeLoader]) -> bool:
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return True
    return False


def _check_version(node: yaml.Node) -> None:
    text = _text(node)
    if text == str(LOCK_VERSION):
        return
    hint = "upgrade ollamaops" if text.isdigit() and int(text) > LOCK_VERSION else None
    raise _Flaw(node, f"lock version {text!r}, this ollamaops reads {LOCK_VERSION}", hint)


def _name(node: yaml.Node, known: Mapping[ModelName, object]) -> ModelName:
    try:
        name = ModelName.parse(_text(node))
    except InvalidName as error:
        raise _Flaw(node, str(error), error.hint) from None
    if name in known:
        raise _Flaw(node, f"'{name}' is here twice")
    return name


def _entry(node: yaml.Node) -> LockEntry:
    keys = _keys(node, ("manifest", "media_type", "config", "layers", "manifests"))
    digest = _digest(_needed(node, keys, "manifest"))
    media_type = _text(_needed(node, keys, "media_type"))
    if "manifests" in keys:
        return LockEntry(digest, ManifestList(media_type, _layers(keys["manifests"])))
    config = _layer(_needed(node, keys, "config"))
    layers = _needed(node, keys, "layers")
    is_null = isinstance(layers, yaml.ScalarNode) and layers.value == "null"
    found = () if is_null else _layers(layers)
    return LockEntry(digest, RegistryManifest(media_type, config, found, layers_are_null=is_null))


def _layers(node: yaml.Node) -> tuple[Layer, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Flaw(node, "a list is expected here")
    return tuple(_layer(item) for item in node.value)


def _layer(node: yaml.Node) -> Layer:
    keys = _keys(node, _LAYER_KEYS)
    size = _needed(node, keys, "size")
    if not re.fullmatch(r"[0-9]{1,19}", _text(size)):
        raise _Flaw(size, f"{_text(size)!r} is not a size in bytes")
    return Layer(
        _text(_needed(node, keys, "media_type")),
        _digest(_needed(node, keys, "digest")),
        int(_text(size)),
        *(_text(keys[key]) if key in keys else "" for key in ("name", "from")),
    )


def _digest(node: yaml.Node) -> Digest:
    try:
        return Digest.parse(_text(node))
    except InvalidValue as error:
        raise _Flaw(node, str(error), error.hint) from None


def _keys(node: yaml.Node, allowed: tuple[str, ...]) -> dict[str, yaml.Node]:
    """The values of a mapping by key; a _Flaw for a key that is unknown or there twice."""
    found: dict[str, yaml.Node] = {}
    for key, value in _pairs(node):
        text = _text(key)
        if text not in allowed:
            raise _Flaw(key, f"unknown key {text!r}")
        if text in found:
            raise _Flaw(key, f"the key {text!r} is here twice")
        found[text] = value
    return found


def _needed(node: yaml.Node, keys: Mapping[str, yaml.Node], key: str) -> yaml.Node:
    if key not in keys:
        raise _Flaw(node, f"the key {key!r} is missing")
    return keys[key]


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise _Flaw(node, "a mapping is expected here")
    return list(node.value)


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _Flaw(node, "a single value is expected here")
    return str(node.value)
