"""Writes the files and folders that a command is asked for, where the user said and nowhere else.

A checkout is somebody's input: a link in it must not lead what we write to a file outside of it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ollamaops.errors import UsageError

_PRIVATE, _USUAL = 0o600, 0o666


def write_output(path: Path, text: str, *, is_private: bool = False, is_new: bool = False) -> None:
    """Write UTF-8 text. `is_private`: for this user only. `is_new`: FileExistsError where something is there.

    Pipes and devices are written to as they are. UsageError where a link leads out of the folder; OSError.
    """
    is_stream = path.parts[:2] in (("/", "dev"), ("/", "proc"))  # where links are the system's own
    target = path if is_stream else inside_its_folder(path)
    how = os.O_APPEND if is_stream else os.O_NOFOLLOW | (os.O_EXCL if is_new else os.O_TRUNC)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | how, _PRIVATE if is_private else _USUAL)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _leads_away(path, "elsewhere") from error  # it became a link since we looked
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if is_private and not is_stream and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, _PRIVATE)
        file.write(text)


def open_private(path: Path, how: int) -> int:
    """A descriptor of a file for this user only, made if need be, in such a folder. OSError, also for a link."""
    make_private_folder(path.parent)
    return os.open(path, how | os.O_CREAT | os.O_NOFOLLOW, _PRIVATE)


def refuse_link(path: Path) -> None:
    """OSError where the path itself is a link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))


def make_private_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing, for this user only. OSError."""
    for path in (*reversed(folder.parents), folder):
        if path == folder or not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def inside_its_folder(path: Path) -> Path:
    """The path with its links resolved. UsageError if a link leads to a file outside of the path's own folder, or
    the folder of a relative path out of the current one."""
    folder = path.parent
    here = Path(os.path.realpath("."))
    is_typed = path.is_absolute() or ".." in path.parts
    if not is_typed and not Path(os.path.realpath(folder)).is_relative_to(here):
        raise _leads_away(folder, os.path.realpath(folder))
    target = Path(os.path.realpath(path))
    is_kept = target.is_relative_to(os.path.realpath(folder)) or _is_special(target)
    if not is_kept:
        raise _leads_away(path, str(target))
    return target


def _is_special(path: Path) -> bool:
    """Whether this is a pipe, a terminal or another device; /dev/stdout is a link to one."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _leads_away(path: Path, where: str) -> UsageError:
    return UsageError(f"{path} is a link that leads to {where}", hint="name the file itself")
