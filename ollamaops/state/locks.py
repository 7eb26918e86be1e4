"""One writer per host: who has a host's lock, and the lock that is a file in the state folder.

The lock is flock's, not the file's: the file stays when the lock is free, and a killed owner's lock is free at once,
whatever the file still says. A lock on a server (server_ledger.py) has an end instead, because nobody there notices
that its owner was killed.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from ollamaops.errors import StateError
from ollamaops.files.output import open_private, refuse_link

FOLDER = "locks"
_MOST_BYTES = 4096
_HINT = "choose a folder on a local disk that can be written with --state-dir"


class LockOwner(Struct, frozen=True, kw_only=True):
    """The owner of a lock. `token` is the run's id, `who` is `user@machine`; moments are RFC 3339 with an offset.

    `expires_at` "" means that the lock ends with its process. `process` is a process id that counts at `place`.
    """

    token: str
    who: str
    process: int
    since: str
    expires_at: str = ""
    place: str = ""

    def has_expired(self, now: datetime) -> bool:
        """Whether the lock has run out; one whose end cannot be read has."""
        if not self.expires_at:
            return False
        try:
            return datetime.fromisoformat(self.expires_at) <= now
        except (ValueError, TypeError):  # TypeError: a moment without an offset
            return True

    def __str__(self) -> str:
        """`alice@build-7, process 4711, since 2026-11-22T18:42:00Z`; just the first when no more is known."""
        return f"{self.who}, process {self.process}, since {self.since}" if self.since else self.who


UNKNOWN_OWNER = LockOwner(token="", who="another run", process=0, since="")


def owner_to_json(owner: LockOwner) -> dict[str, str | int]:
    """Plain JSON values."""
    return asdict(owner)


def owner_from_json(value: object) -> LockOwner | None:
    """The owner in what owner_to_json made; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    texts = {key: value.get(key) for key in ("token", "who", "since")}
    texts |= {key: value.get(key, "") for key in ("expires_at", "place")}
    process = value.get("process")
    if type(process) is not int or not all(isinstance(text, str) for text in texts.values()):
        return None
    return LockOwner(**{key: str(text) for key, text in texts.items()}, process=process)


def who_am_i() -> str:
    """`user@machine`, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry for this user: containers run as any number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def where_am_i() -> str:
    """What two processes share that know each other by number: the boot of the system and the PID namespace.

    The machine's name where the system does not tell (it is not Linux).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def has_died(owner: LockOwner) -> bool:
    """Whether the owner is known to have ended: we would see its process from here, and it is not there."""
    if not owner.place or owner.place != where_am_i():
        return False
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's process; a number that no process can have
        return False
    return False


class HostLock:
    """The lock of one host, known by `host` (its identity), for all runs that share the state folder `folder`.

    Nothing is created before `take`. Not for several threads.
    """

    def __init__(self, folder: Path, host: str) -> None:
        self.path = folder / FOLDER / f"{hashlib.sha256(host.encode()).hexdigest()[:24]}.lock"
        self._descriptor: int | None = None

    def take(self, owner: LockOwner) -> LockOwner | None:
        """Take the lock; None when it is ours now, else who has it. StateError if the file cannot be used."""
        try:
            refuse_link(self.path.parent)
            descriptor = open_private(self.path, os.O_RDWR)
            try:
                other = _lock(descriptor, owner)
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


def _lock(descriptor: int, owner: LockOwner) -> LockOwner | None:
    """None when the file is locked now and names `owner`, else who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner_in(os.pread(descriptor, _MOST_BYTES, 0))
    text = json.dumps(owner_to_json(owner)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    return None


def _owner_in(text: bytes) -> LockOwner:
    """Who wrote the file; a lock is taken a moment before its owner is written."""
    try:
        return owner_from_json(json.loads(text)) or UNKNOWN_OWNER
    except ValueError:
        return UNKNOWN_OWNER
