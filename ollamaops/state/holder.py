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


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The owner of a lock. `token` is the run's id, `who` is `user@machine`; moments are RFC 3339 with an offset.

    `expires_at` "" means that the lock ends with its process.
    """

    token: str
    who: str
    process: int
    since: str
    expires_at: str = ""

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


NOBODY_KNOWN = Holder(token="", who="another run", process=0, since="")


def holder_to_json(holder: Holder) -> dict[str, str | int]:
    """Plain JSON values."""
    return asdict(holder)


def holder_from_json(value: object) -> Holder | None:
    """The holder in what holder_to_json made; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    texts = {key: value.get(key) for key in ("token", "who", "since")}
    process, expires_at = value.get("process"), value.get("expires_at", "")
    if not (type(process) is int and isinstance(expires_at, str)):
        return None
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return Holder(**{key: str(text) for key, text in texts.items()}, process=process, expires_at=expires_at)
