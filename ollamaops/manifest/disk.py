"""The files that a manifest names: where a path leads, whether it may be read, and what is in it.

No path leaves the manifest's folder unless the user lifts that. `shown` is what messages show instead of a path that
came from `${env:NAME}`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath

from msgspec import Struct

from ollamaops.errors import InvalidValue, Problem
from ollamaops.files.confine import confine
from ollamaops.manifest.document import MAX_BYTES, Scalar
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Place
from ollamaops.names import hide_credentials


class Folder(Struct, frozen=True):
    """Where the paths in a file start, and the folder that they may not leave."""

    path: Path
    root: Path


class Named(Struct, frozen=True):
    """A path as it is written, where, and relative to what. `shown` differs from `text` if that is a secret."""

    text: str
    shown: str
    place: Place
    folder: Folder


class Disk:
    """Finds and reads files. `folders` has one Folder for each manifest file, by the path that places show."""

    def __init__(self, folders: Mapping[str, Folder], *, allow_outside: bool) -> None:
        self._folders = folders
        self._allow_outside = allow_outside

    def folder_of(self, place: Place) -> Folder:
        return self._folders[place.path]

    def named(self, node: Scalar) -> Named:
        """The path in a value of a manifest file."""
        shown = node.text if node.secret_as is None else node.shown
        return Named(node.text, shown, node.place, self.folder_of(node.place))

    def locate(self, named: Named) -> Path | Problem:
        """Where the path leads, absolute; the problem if it may not be used."""
        folder, text = named.folder, named.text
        if text.strip() and not text.startswith("~"):
            text = str(PurePath(os.path.relpath(folder.path, folder.root)) / text)
        shown = None if text == named.text else named.text
        try:
            path = confine(folder.root, text, shown=shown, allow_outside=self._allow_outside)
            return Path(os.path.normpath(path))
        except InvalidValue as error:
            if named.shown == named.text == _without_password(named.text):
                return problem_at(named.place, str(error), error.hint)
            return about(named, "not a path in the manifest's folder")

    def find_trusted(self, node: Scalar, *, must_exist: bool) -> Path | Problem:
        """The path of a certificate, key or secret. An absolute one may be anywhere: it is not sent as a model.

        With `must_exist` it is a problem when nothing is at a relative path.
        """
        if PurePath(node.text).is_absolute():
            return Path(node.text)
        named = self.named(node)
        return self.existing(named) if must_exist else self.locate(named)

    def existing(self, named: Named) -> Path | Problem:
        """Where the path leads; a problem if nothing is there."""
        path = self.locate(named)
        if isinstance(path, Problem) or is_there(path):
            return path
        return about(named, "no such file or folder", "paths are relative to the file that names them")

    def read(self, named: Named) -> bytes | Problem:
        """What is in the file, at most 4 MiB."""
        path = self.existing(named)
        if isinstance(path, Problem):
            return path
        try:
            return read_bounded(path)
        except InvalidValue as error:
            return about(named, str(error))

    def read_text(self, named: Named) -> str | Problem:
        """The UTF-8 text of the file, without a byte order mark."""
        data = self.read(named)
        try:
            return data if isinstance(data, Problem) else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return about(named, "is not UTF-8 text", "save the file as UTF-8")


def about(named: Named, why: str, hint: str | None = None) -> Problem:
    """A problem about a path."""
    return problem_at(named.place, f"{_without_password(named.shown)}: {why}", hint)


def is_there(path: Path) -> bool:
    """Whether something is at the path; False for a name that is too long and a folder that may not be entered."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def is_folder(path: Path) -> bool:
    """Whether a folder is at the path; False where that cannot be known."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered


def read_bounded(path: Path) -> bytes:
    """The bytes of a file; InvalidValue says why it cannot be read, or that it has more than 4 MiB."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidValue(f"cannot be read: {reason_of(error)}") from None
    if len(data) > MAX_BYTES:
        raise InvalidValue(f"the file is too large: {MAX_BYTES} bytes are allowed")
    return data


def reason_of(error: OSError) -> str:
    """What the system says about it, in lower case."""
    return (error.strerror or "unknown reason").lower()


def _without_password(text: str) -> str:
    """The path, for a message; what is written there may be a model's name with a password in it."""
    return hide_credentials(text) if ":" in text.partition("@")[0] else text
