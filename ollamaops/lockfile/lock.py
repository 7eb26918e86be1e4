"""`ollamaops.lock`: what each pulled model was, byte for byte, as text and as values.

The text is YAML with one line per blob, sorted by name. It depends on the entries alone, so that a change reads well
in a review. An entry keeps every field from which Ollama lays out a manifest itself, so that the tags digests of
servers before 0.19 follow from the lock alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from ollamaops.errors import InvalidName, InvalidValue, ManifestError, Problem
from ollamaops.manifest.document import Items, Node, Scalar, Table, parse_text
from ollamaops.manifest.types import Place
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
_CONFLICT = re.compile(r"^(?:[<>|]{7}(?: .*)?|={7})\r?$", re.MULTILINE)

ANEW_HINT = "restore the file from version control, or delete it and run `ollamaops lock`"


class LockEntry(Struct, frozen=True):
    """One pulled model: the digest of its registry manifest, and what the manifest names.

    `templates` are the digests of the templates that make its prompts, as hosts showed them when it was locked. Two
    versions of Ollama may use different ones. None: no host that was asked had the model.
    """

    digest: Digest
    document: Document
    templates: tuple[Digest, ...] = ()

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


class Lock(Struct, frozen=True):
    """All entries. Two locks are equal when they lock the same content under the same names."""

    entries: Mapping[ModelName, LockEntry] = field(default_factory=dict)


class Comparison(Struct, frozen=True):
    """A lock's entry beside what the registry has now.

    `moved`: the tag points to something else, `changes` says to what. `damaged`: the same manifest digest but
    other layers, so the lock (or the registry) was tampered with.
    """

    state: Literal["same", "moved", "damaged"]
    changes: tuple[LayerChange, ...]


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
    if len(text) > MAX_LOCK_CHARACTERS:
        message = f"the lock has more than {MAX_LOCK_CHARACTERS} characters"
        raise ManifestError([Problem(path, 0, 0, message, ANEW_HINT)])
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        hint = "take one side, or delete the file and run `ollamaops lock`"
        raise ManifestError([Problem(path, line, 1, "an unresolved merge conflict begins here", hint)])
    document = parse_text(text, path, max_depth=_MAX_DEPTH, may_have_nul=True)
    if document.root is None:  # the hints of the reader are about manifests
        raise ManifestError([replace(problem, hint=ANEW_HINT) for problem in document.problems])
    entries, problems = _read_lock(document.root)
    problems += document.problems
    if problems:
        *others, last = sorted(problems, key=lambda problem: (problem.line, problem.column))
        raise ManifestError([*others, last if last.hint else replace(last, hint=ANEW_HINT)])
    return Lock(entries)


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
    if entry.templates:
        yield f"    templates: [{', '.join(map(str, entry.templates))}]"


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


class _Flaw(Exception):
    """Something wrong at one place; becomes a Problem."""

    def __init__(self, at: Node | Place, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        place = at if isinstance(at, Place) else at.place
        self.problem = Problem(place.path, place.line, place.column, message, hint)


def _read_lock(root: Node) -> tuple[dict[ModelName, LockEntry], list[Problem]]:
    entries: dict[ModelName, LockEntry] = {}
    problems: list[Problem] = []
    try:
        table = _table(root)
        if not table.nodes.keys() & {"version", "models"}:
            hint = "name one that `ollamaops lock` has written"
            raise _Flaw(root, "this is not a lock file: it has neither 'version' nor 'models'", hint)
        _refuse_unknown(table, ("version", "models"))
        _check_version(_needed(table, "version"))
        models = _table(_needed(table, "models"))
    except _Flaw as flaw:
        return entries, [flaw.problem]
    for key, node in models.nodes.items():
        try:
            name = _name(key, models.keys[key], entries)
            entries[name] = _entry(node)
        except _Flaw as flaw:
            problems.append(flaw.problem)
    return entries, problems


def _check_version(node: Node) -> None:
    text = _text(node)
    if text == str(LOCK_VERSION):
        return
    hint = "upgrade ollamaops" if text.isdigit() and int(text) > LOCK_VERSION else None
    raise _Flaw(node, f"lock version {text!r}, this ollamaops reads {LOCK_VERSION}", hint)


def _name(text: str, place: Place, known: Mapping[ModelName, object]) -> ModelName:
    try:
        name = ModelName.parse(text)
    except InvalidName as error:
        raise _Flaw(place, str(error), error.hint) from None
    if name in known:
        raise _Flaw(place, f"'{name}' is here twice")
    return name


def _entry(node: Node) -> LockEntry:
    table = _table(node)
    _refuse_unknown(table, ("manifest", "media_type", "config", "layers", "manifests", "templates"))
    digest = _digest(_needed(table, "manifest"))
    shown = table.get("templates")
    templates = () if shown is None else tuple(map(_digest, _items(shown)))
    media_type = _text(_needed(table, "media_type"))
    if (children := table.get("manifests")) is not None:
        return LockEntry(digest, ManifestList(media_type, _layers(children)), templates)
    config = _layer(_needed(table, "config"))
    layers = _needed(table, "layers")
    is_null = isinstance(layers, Scalar) and layers.text == "null"
    found = () if is_null else _layers(layers)
    manifest = RegistryManifest(media_type, config, found, layers_are_null=is_null)
    return LockEntry(digest, manifest, templates)


def _layers(node: Node) -> tuple[Layer, ...]:
    return tuple(map(_layer, _items(node)))


def _items(node: Node) -> Sequence[Node]:
    if not isinstance(node, Items):
        raise _Flaw(node, "a list is expected here")
    return node.nodes


def _layer(node: Node) -> Layer:
    table = _table(node)
    _refuse_unknown(table, _LAYER_KEYS)
    size = _needed(table, "size")
    if not re.fullmatch(r"[0-9]{1,19}", _text(size)):
        raise _Flaw(size, f"{_text(size)!r} is not a size in bytes")
    return Layer(
        _text(_needed(table, "media_type")),
        _digest(_needed(table, "digest")),
        int(_text(size)),
        *(_text(table.nodes[key]) if key in table.nodes else "" for key in ("name", "from")),
    )


def _digest(node: Node) -> Digest:
    try:
        return Digest.parse(_text(node))
    except InvalidValue as error:
        raise _Flaw(node, str(error), error.hint) from None


def _table(node: Node) -> Table:
    if not isinstance(node, Table):
        raise _Flaw(node, "a mapping is expected here")
    return node


def _refuse_unknown(table: Table, known: tuple[str, ...]) -> None:
    for key, place in table.keys.items():
        if key not in known:
            raise _Flaw(place, f"unknown key {key!r}")


def _needed(table: Table, key: str) -> Node:
    node = table.get(key)
    if node is None:
        raise _Flaw(table, f"the key {key!r} is missing")
    return node


def _text(node: Node) -> str:
    if not isinstance(node, Scalar):
        raise _Flaw(node, "a single value is expected here")
    return node.text
