"""The files that make up a manifest: what `-f` names, what is in a folder, what `include:` adds; each is read once.

They come in the order given, those of a folder by name, included ones after the file that includes them. A folder
given with `-f` is the limit for all paths in it, a file given with `-f` is limited to its own folder; included files
share that limit.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import BinaryIO

from msgspec import Struct

from ollamaops.errors import InvalidValue, Problem
from ollamaops.manifest.disk import Disk, Folder, Named, is_there, read_bounded, reason_of
from ollamaops.manifest.document import MAX_BYTES, Items, Node, Scalar, Table, parse_document
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Place

STDIN = "-"
_ENDINGS = (".yaml", ".yml", ".json")
_SCHEMA_ENDING = ".schema.json"  # what `ollamaops schema` writes may lie beside the manifests


class ManifestFile(Struct, frozen=True):
    """One file that was read. `shown` is its path in messages and places."""

    shown: str
    folder: Folder
    root: Table


def read_manifest_files(
    paths: Sequence[str | Path], stdin: BinaryIO, *, allow_outside: bool
) -> tuple[list[ManifestFile], list[Problem]]:
    """Every file that the paths stand for; those that cannot be read are problems and left out."""
    reader = _Reader(allow_outside)
    for path in paths:
        if str(path) == STDIN:
            here = Path.cwd()
            reader.parse(stdin.read(MAX_BYTES + 1), "<stdin>", Folder(here, here), ())
        else:
            reader.read_given(Path(path))
    return reader.files, reader.problems


class _Reader:
    """Reads manifest files and what they include."""

    def __init__(self, allow_outside: bool) -> None:
        self.files: list[ManifestFile] = []
        self.problems: list[Problem] = []
        self._allow_outside = allow_outside
        self._disk = Disk({}, allow_outside=allow_outside)
        self._seen: set[Path] = set()

    def _add_problem(self, at: Node | Place, message: str, hint: str | None = None) -> None:
        self.problems.append(problem_at(at, message, hint))

    def read_given(self, path: Path) -> None:
        path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
        if not is_there(path) or not path.is_dir():
            self._read(path, path.parent, ())
            return
        try:
            found = [file for file in sorted(path.iterdir()) if _is_manifest(file)]
        except OSError as error:
            self._add_problem(Place(shown_path(path)), f"the folder cannot be read: {reason_of(error)}")
            return
        if not found:
            self._add_problem(Place(shown_path(path)), "no *.yaml, *.yml or *.json in this folder")
        for file in found:
            self._read(file, path, ())

    def _read(self, path: Path, root: Path, open_files: tuple[Path, ...]) -> None:
        """One file, and what it includes. `open_files` are those that include it, from the outermost on."""
        if path in self._seen:
            return
        self._seen.add(path)
        shown = shown_path(path)
        try:
            data = read_bounded(path)
        except InvalidValue as error:
            self._add_problem(Place(shown), str(error), error.hint)
            return
        self.parse(data, shown, Folder(path.parent, root), (*open_files, path))

    def parse(self, data: bytes, shown: str, folder: Folder, open_files: tuple[Path, ...]) -> None:
        document = parse_document(data, shown)
        self.problems += document.problems
        if document.root is None:
            return
        root = document.root
        if not isinstance(root, Table):
            self._add_problem(
                root, "the manifest: expected a mapping", "start with models: and a list of names"
            )
            return
        self.files.append(ManifestFile(shown, folder, root))
        include = root.get("include")
        for node in include.nodes if isinstance(include, Items) else ():
            if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
                self._include(node, folder, open_files)

    def _include(self, node: Scalar, folder: Folder, open_files: tuple[Path, ...]) -> None:
        if "${" in node.text:
            self._add_problem(node, "include: variables are not filled in here", "write the path itself")
            return
        for path in self._matched(node, folder):
            if path in open_files:
                circle = " → ".join(shown_path(one) for one in (*open_files[open_files.index(path) :], path))
                self._add_problem(node, f"files include each other in a cycle: {circle}")
            elif path.is_dir():
                hint = f"write {node.shown.rstrip('/')}/*.yaml"
                self._add_problem(node, f"include: {shown_path(path)} is a folder", hint)
            else:
                self._read(path, folder.root, open_files)

    def _expand(self, pattern: str, folder: Folder) -> list[str]:
        """What the pattern matches, relative to the folder. Nobody's links are followed out of the root."""
        if self._allow_outside:
            return sorted(glob.glob(pattern, root_dir=folder.path, recursive=True))  # noqa: PTH207
        root = Path(os.path.realpath(folder.root))
        found = set(_find(folder.path, PurePath(pattern).parts, root))
        return sorted(os.path.relpath(path, folder.path) for path in found)

    def _matched(self, node: Scalar, folder: Folder) -> list[Path]:
        """The files that the glob matches and that may be used."""
        refusal = self._disk.locate(Named(node.text, node.shown, node.place, folder))
        if isinstance(refusal, Problem):
            self.problems.append(refusal)
            return []
        names = self._expand(node.text, folder)
        if not names:
            self._add_problem(node, *_why_nothing_matched(node, folder.path))
        located = [self._disk.locate(Named(name, name, node.place, folder)) for name in names]
        self.problems += [problem for problem in located if isinstance(problem, Problem)]
        return [path for path in located if isinstance(path, Path)]


def _find(folder: Path, parts: Sequence[str], root: Path) -> Iterator[Path]:
    """What the parts of a pattern match below the folder.

    As in a shell, hidden files and links to folders below `**` are passed over. So is a folder whose link leads out
    of `root`: nobody looks what is in it.
    """
    first, *rest = parts
    if first == "**":
        yield from _find(folder, rest or ["*"], root)
        for path in _entries(folder, "*"):
            if path.is_dir() and not path.is_symlink():
                yield from _find(path, parts, root)
        return
    for path in _entries(folder, first) if glob.has_magic(first) else [folder / first]:
        if not rest:
            if os.path.lexists(path):
                yield path
        elif path.is_dir() and path.resolve().is_relative_to(root):
            yield from _find(path, rest, root)


def _entries(folder: Path, pattern: str) -> list[Path]:
    """What in the folder matches, hidden files only for a pattern with a dot first; nothing if it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if fnmatchcase(path.name, pattern)]
    except OSError:
        return []
    return [path for path in found if pattern.startswith(".") or not path.name.startswith(".")]


def _why_nothing_matched(node: Scalar, start: Path) -> tuple[str, str | None]:
    """Message and hint. A folder on the way that may not be read looks to a glob as if it were empty."""
    for part in Path(node.text).parts:
        try:
            os.scandir(start).close()
        except PermissionError as error:
            why = f"the folder {shown_path(start)} cannot be read: {reason_of(error)}"
            return f"include: '{node.shown}': {why}", None
        except OSError:  # not there, or no folder
            break
        if glob.has_magic(part):
            break
        start = start / part
    return f"include: '{node.shown}' matches no file", "globs are relative to the file that has them"


def _is_manifest(path: Path) -> bool:
    name = path.name
    is_hidden = name.startswith(".")
    return (
        name.endswith(_ENDINGS) and not name.endswith(_SCHEMA_ENDING) and not is_hidden and not path.is_dir()
    )


def shown_path(path: Path) -> str:
    """The path for messages: relative to the current folder if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
