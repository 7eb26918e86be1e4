"""One writer per host: a lock on a file in the state folder, with its owner written inside.

Decides how a lock is taken, named and given back; leaves waiting for one to apply/locks.py. The one fact a
reader would miss: the lock is flock's, not the file's. The file stays when nobody holds it, and a killed owner's
lock is free at once, whatever the file still says.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

from ollamaops.errors import StateError
from ollamaops.state.lock_owner import NOBODY_KNOWN, LockOwner, holder_from_json, holder_to_json

FOLDER = "locks"
_MOST_BYTES = 4096
_HINT = "choose a folder on a local disk that can be written with --state-dir"


class HostLock:
    """The lock of one host, known by `host` (its identity), for those who share the state folder `folder`.

    Nothing is created before `take`. Not for several threads.
    """

    def __init__(self, folder: Path, host: str) -> None:
        self.path = folder / FOLDER / f"{hashlib.sha256(host.encode()).hexdigest()[:24]}.lock"
        self._descriptor: int | None = None

    def take(self, holder: LockOwner) -> LockOwner | None:
        """Take the lock; None when it is ours now, else who has it. StateError if the file cannot be used."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                other = _lock(descriptor, holder)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise StateError(f"{self.path}: the lock cannot be used: {why}", hint=_HINT) from error
        if other is None:
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        return other

    def release(self) -> None:
        """Give the lock back, if it is ours."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # which also unlocks: nobody else has this descriptor
            self._descriptor = None


def _lock(descriptor: int, holder: LockOwner) -> LockOwner | None:
    """None when the file is locked and names `holder`, else its owner."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(os.pread(descriptor, _MOST_BYTES, 0))
    text = json.dumps(holder_to_json(holder)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    return None


def _owner(text: bytes) -> LockOwner:
    """Who wrote the file; a lock is taken a moment before its owner is written."""
    try:
        return holder_from_json(json.loads(text)) or NOBODY_KNOWN
    except ValueError:
        return NOBODY_KNOWN
