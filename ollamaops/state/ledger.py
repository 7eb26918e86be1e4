"""The ledger: what ollamaops remembers between runs, in `ledger.sqlite3` in the state folder.

Decides which facts there are and what identifies each; leaves storing them safely to database.py and what they mean
to plan/. The one fact a reader would miss: the ledger is only a memory. Nothing on a host depends on it, so a
lost one costs comparisons and hashing, never a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ollamaops.errors import InvalidValue
from ollamaops.names import Digest
from ollamaops.state.database import Database, Row
from ollamaops.state.facts import WAYS, Applied, How, Run

if TYPE_CHECKING:
    from ollamaops.files.digest import FileStamp

FILE_NAME = "ledger.sqlite3"
BUSY_TIMEOUT_S = 30.0

_APPLIED_COLUMNS = "host, model, how, fingerprint, digest, base, weights, verified, at"
_RUN_COLUMNS = (
    "run_id, at, command, hosts, manifest_digest, exit_code, plan, outcomes, who, commit_id, ended_at"
)


class Ledger:
    """The ledger in the folder `folder`, neither of which needs to exist: reading then finds nothing and creates
    nothing, the first write makes both, for this user only.

    Safe to use from several threads and processes at once, to pickle and to fork; another writer is waited for,
    up to `busy_timeout_s` seconds. Every method raises StateError when the file cannot be used.
    """

    def __init__(self, folder: Path | str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.folder = Path(folder)
        self._database = Database(self.folder / FILE_NAME, busy_timeout_s=busy_timeout_s)
        self._file_digests: dict[bytes, tuple[str, str]] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.folder, self._database.busy_timeout_s))

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self._database.path

    # What was applied

    def remember(self, fact: Applied) -> None:
        """Keep the fact; an older one about the same model on the same host is replaced."""
        self._database.write(
            f"REPLACE INTO applied ({_APPLIED_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            fact.host,
            fact.model,
            fact.how,
            fact.fingerprint,
            fact.digest,
            fact.base,
            " ".join(fact.weights),
            int(fact.verified),
            fact.at,
        )

    def remember_all(self, facts: Iterable[Applied]) -> None:
        """Keep all of them, each in a write of its own."""
        for fact in facts:
            self.remember(fact)

    def recall(self, host: str) -> Mapping[str, Applied]:
        """Everything known of one host, by `ModelName.key`."""
        rows = self._database.query(
            f"SELECT {_APPLIED_COLUMNS} FROM applied WHERE host = ? ORDER BY model",  # noqa: S608
            host,
        )
        facts = (self._applied(row) for row in rows)
        return {fact.model: fact for fact in facts}

    def forget(self, host: str, model: str) -> None:
        """Drop what is known of one model on one host."""
        self._database.write("DELETE FROM applied WHERE host = ? AND model = ?", host, model)

    def _applied(self, row: Row) -> Applied:
        host, model, how, fingerprint, digest, base, weights, verified, at = row
        if how not in WAYS:
            raise self._database.damaged(f"{how!r} is no way to apply a model")
        return Applied(
            host=str(host),
            model=str(model),
            how=cast("How", how),
            fingerprint=str(fingerprint),
            digest=str(digest),
            base=None if base is None else str(base),
            weights=tuple(str(weights).split()),
            verified=bool(verified),
            at=str(at),
        )

    # What was pushed

    def remember_push(self, host: str, model: str, ref: str, digest: str) -> None:
        """Keep that this was pushed to `ref`: its tags digest and, if known, the registry's after a blank."""
        self._database.write(
            "REPLACE INTO pushed (host, model, ref, digest) VALUES (?, ?, ?, ?)", host, model, ref, digest
        )

    def recall_pushes(self, host: str) -> Mapping[tuple[str, str], str]:
        """(`ModelName.key`, ref) → the digests of what was pushed there last, as they were given."""
        rows = self._database.query("SELECT model, ref, digest FROM pushed WHERE host = ?", host)
        return {(str(model), str(ref)): str(digest) for model, ref, digest in rows}

    # Digests of local files (a DigestCache)

    def get(self, stamp: FileStamp) -> Digest | None:
        """The digest of the file that looked exactly so when it was hashed."""
        seen, digest = self._known_files().get(os.fsencode(stamp.path), ("", ""))
        if seen != _stamp_text(stamp):
            return None
        try:
            return Digest.parse(digest)
        except InvalidValue as error:
            raise self._database.damaged(str(error)) from error

    def has_seen(self, path: Path) -> bool:
        """Whether the digest of a file of that path was kept, whatever it looked like."""
        return os.fsencode(os.path.abspath(path)) in self._known_files()  # noqa: PTH100  as in a FileStamp

    def _known_files(self) -> dict[bytes, tuple[str, str]]:
        if self._file_digests is None:
            rows = self._database.query("SELECT path, stamp, digest FROM file_digest")
            self._file_digests = {_as_bytes(path): (str(seen), str(digest)) for path, seen, digest in rows}
        return self._file_digests

    def put(self, stamp: FileStamp, digest: Digest) -> None:
        """Keep the digest of a file; an older one of the same path is replaced."""
        path, seen = os.fsencode(stamp.path), _stamp_text(stamp)
        self._database.write(
            "REPLACE INTO file_digest (path, stamp, digest) VALUES (?, ?, ?)", path, seen, digest.hex
        )
        if self._file_digests is not None:
            self._file_digests[path] = (seen, digest.hex)

    # Runs

    def record_run(self, run: Run) -> None:
        """Keep a run; recording it again (with its exit code) replaces it."""
        self._database.write(
            f"REPLACE INTO run ({_RUN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            run.run_id,
            run.at,
            run.command,
            run.hosts,
            run.manifest_digest,
            run.exit_code,
            run.plan,
            run.outcomes,
            run.who,
            run.commit,
            run.ended_at,
        )

    def runs(self, limit: int = 50) -> tuple[Run, ...]:
        """The last runs, the one recorded last first."""
        rows = self._database.query(
            f"SELECT {_RUN_COLUMNS} FROM run ORDER BY rowid DESC LIMIT ?",  # noqa: S608
            limit,
        )
        return tuple(_run(row) for row in rows)

    def find_runs(self, prefix: str) -> tuple[Run, ...]:
        """The runs whose id begins with `prefix`, the one recorded last first."""
        rows = self._database.query(
            f"SELECT {_RUN_COLUMNS} FROM run WHERE substr(run_id, 1, ?) = ? ORDER BY rowid DESC",  # noqa: S608
            len(prefix),
            prefix,
        )
        return tuple(_run(row) for row in rows)


def _reopen(folder: Path, busy_timeout_s: float) -> Ledger:
    return Ledger(folder, busy_timeout_s=busy_timeout_s)


def _run(row: Row) -> Run:
    run_id, at, command, hosts, manifest_digest, exit_code, *rest = row
    plan, outcomes, who, commit, ended_at = map(str, rest)
    return Run(
        run_id=str(run_id),
        at=str(at),
        command=str(command),
        hosts=str(hosts),
        manifest_digest=str(manifest_digest),
        exit_code=exit_code if isinstance(exit_code, int) else 1,
        plan=plan,
        outcomes=outcomes,
        who=who,
        commit=commit,
        ended_at=ended_at,
    )


def _as_bytes(cell: object) -> bytes:
    return cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "surrogateescape")


def _stamp_text(stamp: FileStamp) -> str:
    """All of the stamp but the path, as text: inodes of some file systems exceed SQLite's integers."""
    return f"{stamp.size_bytes} {stamp.mtime_ns} {stamp.ctime_ns} {stamp.inode} {stamp.device}"


__all__ = ["Applied", "How", "Ledger", "Run"]
