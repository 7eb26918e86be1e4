"""Keeps the paths in a manifest inside the manifest's folder, unless the user lifts that.

What comes back is the path as it was written, not the file that a symbolic link leads to, because the ending of the
name (`.gguf`) still matters.
"""

from __future__ import annotations

import os
from pathlib import Path

from ollamaops.errors import InvalidValue


def confine(root: Path, relative: str, *, shown: str | None = None, allow_outside: bool = False) -> Path:
    """The absolute path of `relative`, read from the folder `root`. Messages show `shown`, if that is given.

    InvalidValue for an empty or impossible path, and, unless `allow_outside`, for one that is absolute,
    begins with `~`, or leads out of `root` by `..` or by a symbolic link.
    """
    shown = repr(relative) if shown is None else f"'{shown}'"
    _require_possible(relative, shown)
    folder = Path(os.path.abspath(root))  # noqa: PTH100 - Path.resolve would follow links
    if allow_outside:
        return folder / _expand_home(relative, shown)
    if relative.startswith("~"):
        raise _outside(shown, "it begins with '~', a home folder", folder)
    if Path(relative).is_absolute():
        raise _outside(shown, "it is absolute", folder)
    path = folder / relative
    if not Path(os.path.normpath(path)).is_relative_to(folder):
        raise _outside(shown, "its '..' lead out of it", folder)
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(folder)):
        raise _outside(shown, f"a symbolic link leads to {target}", folder)
    return path


def _require_possible(relative: str, shown: str) -> None:
    if not relative.strip():
        raise InvalidValue("a path is empty", hint="name a file or folder")
    try:
        possible = b"\0" not in os.fsencode(relative)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise InvalidValue(f"{shown} is not a path: it has characters that no file name can have")


def _expand_home(relative: str, shown: str) -> Path:
    try:
        return Path(relative).expanduser()
    except RuntimeError as error:
        raise InvalidValue(
            f"{shown} cannot be read: no such user", hint="write the path without '~'"
        ) from error


def _outside(shown: str, why: str, folder: Path) -> InvalidValue:
    return InvalidValue(
        f"{shown} is outside the manifest's folder: {why}",
        hint=f"keep it below {folder}, or allow it with --allow-outside",
    )
