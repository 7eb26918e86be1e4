"""What the files that a manifest names hold: texts, Modelfiles, weights. Beside load.py the only one that reads files.

Decides which files an entry means and whether they can be used; every path is confined to the manifest's folder
unless the user lifts that. Leaves hashing and sending to others. Easily missed: paths are relative to the file that
names them, but for TLS and secrets an absolute one is fine, since what it holds is never sent as a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar, cast

from ollamaops.errors import InvalidName, InvalidValue, ManifestError, Problem, WeightsError
from ollamaops.files.confine import confine
from ollamaops.files.sniff import content_type, sniff
from ollamaops.manifest.build import Gathered
from ollamaops.manifest.document import MAX_BYTES, Items, Node, Scalar, Table
from ollamaops.manifest.findings import Findings, did_you_mean
from ollamaops.manifest.lint import lint_modelfile
from ollamaops.manifest.local_paths import select_weights
from ollamaops.manifest.modelfile import Modelfile, decode_modelfile, parse_modelfile
from ollamaops.manifest.recipe import Recipe, to_recipe
from ollamaops.manifest.types import Place, WeightsFile
from ollamaops.names import Digest, ModelName

T = TypeVar("T")

_WEIGHTS_ENDINGS = (".gguf", ".safetensors", ".bin", ".pth")
_LISTED_ENDINGS = (*_WEIGHTS_ENDINGS, ".json", ".jinja", ".model")


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the paths in a file start, and the folder that they may not leave."""

    path: Path
    root: Path


@dataclass(frozen=True, slots=True)
class _Named:
    """A path as somebody wrote it, where, and relative to what. `shown` differs from `text` if that is a secret."""

    text: str
    shown: str
    place: Place
    folder: Folder


class Gatherer:
    """Reads what entries name. Problems and warnings go where the caller collects them."""

    def __init__(
        self, folders: Mapping[str, Folder], findings: Findings, warnings: Findings, *, allow_outside: bool
    ) -> None:
        self._folders = folders
        self._findings = findings
        self._warnings = warnings
        self._allow_outside = allow_outside

    def find_trusted(self, node: Scalar) -> Path:
        """The path of a certificate, key or secret; an absolute one may be anywhere."""
        named = self._named(node)
        if os.path.isabs(node.text):
            return Path(node.text)
        return self._locate(named) or named.folder.path

    def gather(self, entry: Table) -> Gathered:
        """Everything that one model's entry names."""
        known = self._known_digests(entry)
        texts = {key: self._text(entry.get(key)) for key in ("system", "template")}
        recipe, base, found = self._modelfile(entry.get("modelfile"))
        groups = {
            key: (*found.get(key, ()), *self._weights(entry.get(key))) for key in ("files", "adapters", "drafts")
        }
        self._check_known(entry, known, groups.values())
        return Gathered(
            texts={key: text for key, text in texts.items() if text is not None},
            licenses=self._licenses(entry.get("license")),
            recipe=recipe,
            base=base,
            files=_as_weights(groups["files"], known),
            adapters=_as_weights(groups["adapters"], known),
            drafts=_as_weights(groups["drafts"], known),
        )

    def _named(self, node: Scalar) -> _Named:
        return _Named(node.text, node.shown, node.place, self._folders[node.place.path])

    def _refuse(self, named: _Named, why: str, hint: str | None = None) -> None:
        self._findings.add(named.place, f"{named.shown}: {why}", hint)

    def _locate(self, named: _Named) -> Path | None:
        """Where the path leads; None, and a problem, if it may not be used."""
        folder, text = named.folder, named.text
        if text.strip() and not text.startswith("~"):
            text = str(PurePath(os.path.relpath(folder.path, folder.root)) / text)
        try:
            return Path(os.path.normpath(confine(folder.root, text, allow_outside=self._allow_outside)))
        except InvalidValue as error:
            is_open = named.shown == named.text
            message = str(error).replace(repr(text), f"'{named.shown}'") if is_open else f"{named.shown}: not a usable path"
            self._findings.add(named.place, message, error.hint)
            return None

    def _existing(self, named: _Named) -> Path | None:
        path = self._locate(named)
        if path is not None and not path.exists():
            self._refuse(named, "no such file or folder", "paths are relative to the file that names them")
            return None
        return path

    def _read(self, named: _Named) -> bytes | None:
        """At most 4 MiB of a file."""
        path = self._existing(named)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._refuse(named, f"cannot be read: {(error.strerror or 'unknown reason').lower()}")
            return None
        if len(data) > MAX_BYTES:
            self._refuse(named, f"has more than {MAX_BYTES} bytes")
            return None
        return data

    def _text(self, node: Node | None) -> str | None:
        """A text given as it is or as `{file: PATH}`."""
        if not isinstance(node, Table):
            return node.text if isinstance(node, Scalar) else None
        named = self._named(cast("Scalar", node.nodes["file"]))
        data = self._read(named)
        try:
            return None if data is None else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._refuse(named, "is not UTF-8 text", "save the file as UTF-8")
            return None

    def _licenses(self, node: Node | None) -> tuple[str, ...]:
        texts = [self._text(item) for item in (node.nodes if isinstance(node, Items) else [node])]
        return tuple(text for text in texts if text)

    def _modelfile(self, node: Node | None) -> tuple[Recipe | None, ModelName | None, dict[str, list[Path]]]:
        """A Modelfile's recipe, the base that it names, and the local files that it names."""
        if isinstance(node, Scalar):
            named = self._named(node)
            data = self._read(named)
            if data is None:
                return None, None, {}
            path = cast("Path", self._locate(named))
            shown = str(PurePath(node.place.path).parent / node.text)
            folder = Folder(path.parent, named.folder.root)
            return self._cook(decode_modelfile(data), lambda line: Place(shown, line, 1 if line else 0), folder, shown)
        if isinstance(node, Table):
            text = cast("Scalar", node.nodes["text"])
            folder = self._folders[text.place.path]
            return self._cook(text.text, lambda _: text.place, folder, text.place.path)
        return None, None, {}

    def _cook(
        self, text: str, place: Callable[[int], Place], folder: Folder, shown: str
    ) -> tuple[Recipe | None, ModelName | None, dict[str, list[Path]]]:
        """`place` gives the place of a line of the text."""
        try:
            modelfile = parse_modelfile(text, shown)
            recipe = to_recipe(modelfile, shown)
        except ManifestError as error:
            self._pass_on(error.problems, place, self._findings)
            return None, None, {}
        self._pass_on(lint_modelfile(text, shown), place, self._warnings)
        base: ModelName | None = None
        found: dict[str, list[Path]] = {"files": [], "adapters": [], "drafts": []}
        for named in _arguments(modelfile, "model", place, folder):
            name = self._base(named)
            base = name or base
            if name is None:
                found["files"] += self._weights_at(named)
        for key, command in (("adapters", "adapter"), ("drafts", "draft")):
            for named in list(_arguments(modelfile, command, place, folder))[-1 if command == "adapter" else 0 :]:
                found[key] += self._weights_at(named)
        return recipe, base, found

    def _pass_on(self, problems: Iterable[Problem], place: Callable[[int], Place], to: Findings) -> None:
        """Problems of a Modelfile, at their places; one that stands in a manifest keeps its line in words."""
        for problem in problems:
            at = place(problem.line)
            is_inline = problem.line and at.line != problem.line
            message = f"{problem.message} (line {problem.line} of the modelfile)" if is_inline else problem.message
            to.add(at if is_inline or not problem.line else Place(at.path, at.line, problem.column), message, problem.hint)

    def _base(self, named: _Named) -> ModelName | None:
        """The model that a FROM argument names: one that is no path and does not exist as a file (`ollama create`)."""
        if named.text.startswith(("/", "~", ".", "\\")) or named.text.lower().endswith(_WEIGHTS_ENDINGS):
            return None
        try:
            name = ModelName.parse(named.text)
        except InvalidName:
            return None
        return None if (named.folder.path / named.text).exists() else name

    def _weights(self, node: Node | None) -> list[Path]:
        items = node.nodes if isinstance(node, Items) else ()
        return [path for item in items for path in self._weights_at(self._named(cast("Scalar", item)))]

    def _weights_at(self, named: _Named) -> list[Path]:
        """The weights file, or the files of a folder as `ollama create` chooses them."""
        if named.text.startswith("@"):
            self._refuse(named, "names a blob on a server, not a file", "name the file itself")
            return []
        path = self._existing(named)
        if path is None:
            return []
        try:
            return self._weights_in(path, named) if path.is_dir() else self._weights_file(path, named)
        except WeightsError as error:
            self._refuse(named, str(error).removeprefix(f"{path}: "), error.hint)
            return []

    def _weights_file(self, path: Path, named: _Named) -> list[Path]:
        match sniff(path):
            case "lfs-pointer":
                self._refuse(named, "is a git-lfs pointer, not the file itself", "fetch it with: git lfs pull")
                return []
            case "zip" | "binary":
                self._refuse(named, "is neither GGUF nor safetensors", "convert it, or name its folder")
                return []
            case "gguf" | "safetensors" | "text":
                return [path]

    def _weights_in(self, folder: Path, named: _Named) -> list[Path]:
        listing = [
            (path.relative_to(folder).as_posix(), content_type(path))
            for pattern in ("*", "*/*")
            for path in sorted(folder.glob(pattern))
            if path.suffix in _LISTED_ENDINGS and path.is_file()
        ]
        inside = [_Named(name, f"{named.shown}/{name}", named.place, Folder(folder, named.folder.root)) for name in select_weights(listing)]
        paths = [self._locate(one) for one in inside]
        return [path for path in paths if path is not None]

    def _known_digests(self, entry: Table) -> dict[Path, Digest]:
        table = entry.get("sha256")
        known: dict[Path, Digest] = {}
        for text, node in table.nodes.items() if isinstance(table, Table) else ():
            named = _Named(text, text, table.keys[text], self._folders[table.keys[text].path])
            path, digest = self._locate(named), self._findings.read(cast("Scalar", node), Digest.parse)
            if path is not None and digest is not None:
                known[path] = digest
        return known

    def _check_known(self, entry: Table, known: Mapping[Path, Digest], groups: Iterable[Iterable[Path]]) -> None:
        """Every known digest is one of a file that is used."""
