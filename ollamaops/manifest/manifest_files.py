"""Which files make up a manifest: what `-f` names, what a folder holds, what `include:` adds, each read once.

Decides the order (as given, folders by name, included files after the one that includes them) and where paths in a
file start and end. Leaves what the files say to others. Easily missed: a folder given with `-f` is the limit for
everything in it, a file given with `-f` is limited to its own folder; included files share that limit.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ollamaops.errors import InvalidValue
from ollamaops.manifest.disk import Disk, Folder, Named, is_there, read_bounded, reason_of
from ollamaops.manifest.document import MAX_BYTES, Items, Scalar, Table, parse_document
from ollamaops.manifest.problems import Findings
from ollamaops.manifest.types import Place

STDIN = "-"
_ENDINGS = (".yaml", ".yml", ".json")
_NO_MANIFEST = ".schema.json"  # what `ollamaops schema` writes may lie beside the manifests


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file that was read. `shown` is its path in messages and places."""

    shown: str
    folder: Folder
    root: Table


class SourceReader:
    """Reads manifest files and what they include."""

    def __init__(self, findings: Findings, stdin: BinaryIO, *, allow_outside: bool) -> None:
        self._findings = findings
        self._stdin = stdin
        self._allow_outside = allow_outside
        self._files: list[ManifestFile] = []
        self._seen: set[Path] = set()

    def read_all(self, paths: Sequence[str | Path]) -> list[ManifestFile]:
        """Every file that the paths stand for; those that cannot be read are problems and left out."""
        for path in paths:
            if str(path) == STDIN:
                here = Path.cwd()
                data = self._stdin.read(MAX_BYTES + 1)
                self._parse(data, "<stdin>", Folder(here, here), ())
            else:
                self._read_given(Path(path))
        return self._files

    def _read_given(self, path: Path) -> None:
        path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
        if not is_there(path) or not path.is_dir():
            self._read(path, path.parent, ())
            return
        try:
            found = [file for file in sorted(path.iterdir()) if _is_manifest(file)]
        except OSError as error:
            self._findings.add(Place(shown_path(path)), f"the folder cannot be read: {reason_of(error)}")
            return
        if not found:
            self._findings.add(Place(shown_path(path)), "no *.yaml, *.yml or *.json in this folder")
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
            self._findings.add(Place(shown), str(error), error.hint)
            return
        self._parse(data, shown, Folder(path.parent, root), (*open_files, path))

    def _parse(self, data: bytes, shown: str, folder: Folder, open_files: tuple[Path, ...]) -> None:
        document = parse_document(data, shown)
        self._findings.extend(document.problems)
        if document.root is None:
            return
        root = document.root
        if not isinstance(root, Table):
            self._findings.add(
                root, "the manifest: expected a mapping", "begin with models: and a list of names"
            )
            return
        self._files.append(ManifestFile(shown, folder, root))
        include = root.get("include")
        for node in include.nodes if isinstance(include, Items) else ():
            if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
                self._include(node, folder, open_files)

    def _include(self, node: Scalar, folder: Folder, open_files: tuple[Path, ...]) -> None:
        if "${" in node.text:
            self._findings.add(node, "include: variables are not filled in here", "write the path itself")
            return
        matched = self._matched(node, folder)
        if matched == []:
            self._findings.add(node, *_why_nothing_matched(node, folder.path))
        for path in matched or ():
            if path in open_files:
                circle = " → ".join(shown_path(one) for one in (*open_files[open_files.index(path) :], path))
                self._findings.add(node, f"files include each other in a circle: {circle}")
            elif path.is_dir():
                hint = f"write {node.shown.rstrip('/')}/*.yaml"
                self._findings.add(node, f"include: {shown_path(path)} is a folder", hint)
            else:
                self._read(path, folder.root, open_files)

    def _matched(self, node: Scalar, folder: Folder) -> list[Path] | None:
        """What the glob matches; None, and a problem, if it may not be used."""
        disk = Disk({}, self._findings, allow_outside=self._allow_outside)
        if disk.locate(Named(node.text, node.shown, node.place, folder)) is None:
            return None
        # unlike Path.glob it passes over hidden files, as a shell does
        names = sorted(glob.glob(node.text, root_dir=folder.path, recursive=True))  # noqa: PTH207
        located = [disk.locate(Named(name, name, node.place, folder)) for name in names]
        return [path for path in located if path is not None] or ([] if not names else None)


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
    return name.endswith(_ENDINGS) and not name.endswith(_NO_MANIFEST) and not is_hidden and not path.is_dir()


def shown_path(path: Path) -> str:
    """The path for messages: relative to the current folder if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
