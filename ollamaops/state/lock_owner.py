"""Who holds a host: the owner of a lock, as a value that is written down for the others to read.

Decides what is said of an owner and when a lock has run out; leaves taking one to host_lock.py and server_ledger.py.
The one fact a reader would miss: only a lock on a server has an end (`expires_at`), because nobody there notices that
its owner was killed; the system frees a lock on a file by itself.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """The owner of a lock. `token` is the run's id, `who` is `user@machine`; moments are RFC 3339 with an offset.

    `expires_at` "" means that the lock ends with its process. `place` is where the number of the process counts.
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


def who_am_i() -> str:
    """`user@machine`, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry for this user: containers run as any number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


NOBODY_KNOWN = LockOwner(token="", who="another run", process=0, since="")


def holder_to_json(holder: LockOwner) -> dict[str, str | int]:
    """Plain JSON values."""
    return asdict(holder)


def holder_from_json(value: object) -> LockOwner | None:
    """The holder in what holder_to_json made; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    texts = {key: value.get(key) for key in ("token", "who", "since")}
    texts |= {key: value.get(key, "") for key in ("expires_at", "place")}
    process = value.get("process")
    if type(process) is not int or not all(isinstance(text, str) for text in texts.values()):
        return None
    return LockOwner(**{key: str(text) for key, text in texts.items()}, process=process)


def where_am_i() -> str:
    """What two processes have in common that see each other by number: the boot of the system, the PID namespace.

    The machine's name where the system does not tell (it is not Linux).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def has_died(holder: LockOwner) -> bool:
    """Whether the owner is known to have ended: its process would be seen from here, and is not there."""
    if not holder.place or holder.place != where_am_i():
        return False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's process; not the number of any
        return False
    return False
