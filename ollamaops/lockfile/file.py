"""The lock file on disk: read it whole, replace it in one step.

A new lock is written beside the old one and renamed over it, so that neither a crash nor a full disk leaves half a
lock, and another reader never sees one.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ollamaops.errors import ManifestError, Problem, StateError
from ollamaops.files.output import inside_its_folder
from ollamaops.lockfile.lock import ANEW_HINT, MAX_LOCK_CHARACTERS, Lock, parse_lock, render_lock

_MODE = 0o666


def load_lock(path: Path) -> Lock | None:
    """The lock in the file, None when there is no file. ManifestError with every flaw and its place."""
    try:
        if _blocks(path):
            raise _unusable(path, "not a regular file", "name an ordinary file with --lock-file")
        with path.open("rb") as stream:
            data = stream.read(4 * MAX_LOCK_CHARACTERS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    try:
        return parse_lock(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise _unusable(path, "not UTF-8 text") from None


def save_lock(path: Path, lock: Lock) -> bool:
    """Write the lock unless the file has exactly these bytes; True if it was written. StateError when it cannot be.

    A symbolic link to a file of the same folder stays one: that file is replaced. The file keeps its permissions.
    """
    data = render_lock(lock).encode()
    target = inside_its_folder(path)
    try:
        if target.exists() and target.read_bytes() == data:
            return False
        _replace(target, data)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="check the folder, or use --lock-file"
        ) from error
    return True


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(_mode_of(target))
        Path(name).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _mode_of(target: Path) -> int:
    """The permissions the file has, or those that a new file gets (mkstemp's are for its owner only)."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return _MODE & ~mask


def _blocks(path: Path) -> bool:
    """Whether reading could block: opening a pipe waits until something writes to it."""
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _unusable(path: Path, why: str, hint: str = ANEW_HINT) -> ManifestError:
    return ManifestError([Problem(str(path), 0, 0, f"the lock: {why}", hint)])
