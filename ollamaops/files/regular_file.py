"""Opens local weights files: regular files only, and every failure becomes a WeightsError.

Opening a FIFO blocks until something is written to it, so the kind of file is checked first.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from ollamaops.errors import WeightsError

_HINTS = {
    errno.ENOENT: "check the path in the manifest; it is read relative to the manifest's folder",
    errno.EACCES: "give the user that runs ollamaops the right to read it",
    errno.ELOOP: "the symbolic links lead in a circle; point the path at the file itself",
}


@contextmanager
def open_weights(path: Path) -> Iterator[FileIO]:
    """A regular file opened for reading, unbuffered. WeightsError if it is missing, unreadable or not a file;
    also for a read that fails while the file is open."""
    try:
        require_regular(path)
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def require_regular(path: Path) -> None:
    """WeightsError for a directory, socket, FIFO or device. OSError if nothing is there."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise WeightsError(
            f"{path}: is a directory, not a weights file",
            hint="name the files in it, or a folder with safetensors where a folder is allowed",
        )
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{path}: is not a regular file", hint="copy the weights into an ordinary file")


def unreadable(path: Path, error: OSError) -> WeightsError:
    """The same failure in our words: "weights/a.gguf: cannot be read: no such file or directory"."""
    reason = (error.strerror or str(error)).lower()
    return WeightsError(f"{path}: cannot be read: {reason}", hint=_HINTS.get(error.errno or 0))
