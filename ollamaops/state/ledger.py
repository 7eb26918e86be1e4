"""The ledger: what ollamaops remembers between runs, in `ledger.sqlite3` in the state folder.

What a lost ledger costs: local weights are hashed, models are looked into again, and those with expectations are
verified again. What we pulled, created or copied counts as somebody else's, so it is never pruned. And the next apply
rolls a model forward that was rolled back, because only the ledger knows that it should stay at its previous version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ollamaops.errors import InvalidValue
from ollamaops.names import Digest, ModelName
from ollamaops.state.database import Cell, Database, Row
from ollamaops.state.records import STATUSES, WAYS, Fingerprint, How, ModelRecord, RunRecord, Status
from ollamaops.state.upgrade import is_evictions, is_layers

if TYPE_CHECKING:
    from ollamaops.files.digest import FileStamp

FILE_NAME = "ledger.sqlite3"
BUSY_TIMEOUT_S = 30.0

_MODEL_COLUMNS = (
    "model, how, status, words, weights, entry, digest, base_digest, blobs, weights_verified, declared, seen_on, "
    "verified_for, at"
)
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

    # Models and pushes (a LedgerStore)

    def load(self, host: str) -> Mapping[str, ModelRecord]:
        """What is known of one host, by `ModelName.key`."""
        rows = self._database.query(
            f"SELECT {_MODEL_COLUMNS} FROM model WHERE host = ? ORDER BY model",  # noqa: S608
            host,
        )
        return {str(model): self._record(cells) for model, *cells in rows}

    def remember(self, host: str, records: Mapping[str, ModelRecord]) -> None:
        """Keep the records, in one transaction; older ones about the same models are replaced."""
        self._database.write_rows(
            f"REPLACE INTO model (host, {_MODEL_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            [(host, model, *_cells(record)) for model, record in records.items()],
        )

    def forget(self, host: str, model: str) -> None:
        """Drop what is known of one model on one host."""
        self._database.write("DELETE FROM model WHERE host = ? AND model = ?", host, model)

    def _record(self, cells: list[Cell]) -> ModelRecord:
        how, status, words, weights, entry, digest, base_digest, blobs, *rest = cells
        weights_verified, declared, seen_on, verified_for, at = rest
        if how not in WAYS or status not in STATUSES:
            raise self._database.damaged(f"a model cannot be {how!r} and {status!r}")
        return ModelRecord(
            how=cast("How", how),
            status=cast("Status", status),
            fingerprint=Fingerprint(str(words), str(weights)),
            entry=str(entry),
            digest=str(digest),
            base_digest=None if base_digest is None else str(base_digest),
            blobs=self._texts(blobs),
            weights_verified=bool(weights_verified),
            declared=str(declared),
            seen_on=str(seen_on),
            verified_for=str(verified_for),
            at=str(at),
        )

    def load_pushes(self, host: str) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(`ModelName.key`, reference) → the digests of what was pushed there last."""
        rows = self._database.query("SELECT model, ref, digests FROM push WHERE host = ?", host)
        return {(str(model), str(ref)): self._texts(digests) for model, ref, digests in rows}

    def remember_push(self, host: str, model: str, ref: str, digests: Iterable[str]) -> None:
        """Keep that this was pushed to `ref`: its tags digest and, if known, the registry's."""
        self._database.write(
            "REPLACE INTO push (host, model, ref, digests) VALUES (?, ?, ?, ?)",
            host,
            model,
            ref,
            json.dumps(list(digests)),
        )

    def load_layers(self, host: str) -> Mapping[str, tuple[str, ...]]:
        """Tags digest → the digests of the weights layers of that content; none where a server shows none."""
        for (models,) in self._database.query("SELECT models FROM weights_layers WHERE host = ?", host):
            layers = self._json(models)
            if not is_layers(layers):
                raise self._database.damaged(f"{models!r} does not say which layers models have")
            return {digest: tuple(texts) for digest, texts in layers.items()}
        return {}

    def remember_layers(self, host: str, layers: Mapping[str, Iterable[str]]) -> None:
        """Keep the layers of everything on that host, in the place of what was known before."""
        models = {digest: list(texts) for digest, texts in layers.items()}
        self._database.write(
            "REPLACE INTO weights_layers (host, models) VALUES (?, ?)", host, json.dumps(models)
        )

    def _texts(self, cell: Cell) -> tuple[str, ...]:
        texts = self._json(cell)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self._database.damaged(f"{cell!r} is not a list of texts")
        return tuple(texts)

    def _json(self, cell: Cell) -> Any:
        try:
            return json.loads(str(cell))
        except ValueError as error:
            raise self._database.damaged(f"{cell!r} is not JSON") from error

    # Evictions

    def load_evictions(self, host: str) -> Mapping[ModelName, frozenset[ModelName]]:
        """Models that left memory although the last run on that host (by its name in the manifest) had loaded them,
        each with what else was declared resident then."""
        for (models,) in self._database.query("SELECT models FROM eviction WHERE host = ?", host):
            evictions = self._json(models)
            if not is_evictions(evictions):
                raise self._database.damaged(f"{models!r} does not say which models were evicted")
            parse = ModelName.parse
            return {parse(name): frozenset(map(parse, beside)) for name, beside in evictions.items()}
        return {}

    def remember_evictions(self, host: str, evictions: Mapping[ModelName, Iterable[ModelName]]) -> None:
        """Keep what the last run on that host could not keep in memory, in the place of what was known before."""
        models = {str(name): [str(other) for other in beside] for name, beside in evictions.items()}
        self._database.write("REPLACE INTO eviction (host, models) VALUES (?, ?)", host, json.dumps(models))

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

    def record_run(self, run: RunRecord) -> None:
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

    def runs(self, limit: int = 50) -> tuple[RunRecord, ...]:
        """The last runs, the one recorded last first."""
        rows = self._database.query(
            f"SELECT {_RUN_COLUMNS} FROM run ORDER BY rowid DESC LIMIT ?",  # noqa: S608
            limit,
        )
        return tuple(_run(row) for row in rows)

    def find_runs(self, prefix: str) -> tuple[RunRecord, ...]:
        """The runs whose id begins with `prefix`, the one recorded last first."""
        rows = self._database.query(
            f"SELECT {_RUN_COLUMNS} FROM run WHERE substr(run_id, 1, ?) = ? ORDER BY rowid DESC",  # noqa: S608
            len(prefix),
            prefix,
        )
        return tuple(_run(row) for row in rows)


def _reopen(folder: Path, busy_timeout_s: float) -> Ledger:
    return Ledger(folder, busy_timeout_s=busy_timeout_s)


def _cells(record: ModelRecord) -> tuple[Cell, ...]:
    """The record as columns of the table `model`, after host and model."""
    return (
        record.how,
        record.status,
        record.fingerprint.words,
        record.fingerprint.weights,
        record.entry,
        record.digest,
        record.base_digest,
        json.dumps(record.blobs),
        int(record.weights_verified),
        record.declared,
        record.seen_on,
        record.verified_for,
        record.at,
    )


def _run(row: Row) -> RunRecord:
    run_id, at, command, hosts, manifest_digest, exit_code, *rest = row
    plan, outcomes, who, commit, ended_at = map(str, rest)
    return RunRecord(
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


__all__ = ["Ledger", "ModelRecord", "RunRecord"]
