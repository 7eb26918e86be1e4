"""How what older versions remembered becomes what this one reads: the database's migrations, and their records.

0.1.0 kept a model's status as a mark in the text of its fingerprint, and pushed digests side by side in one text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, cast

from ollamaops.errors import InvalidName
from ollamaops.names import ModelName
from ollamaops.state.records import NO_FINGERPRINT, WAYS, Fingerprint, How, ModelRecord, Status

if TYPE_CHECKING:
    import sqlite3

_MARKS: Mapping[str, Status] = {"?": "unverified", "!": "unusable", ":": "doubted"}


def upgrade_record(
    how: str,
    fingerprint: str,
    digest: str,
    *,
    base_digest: str | None,
    blobs: tuple[str, ...],
    weights_verified: bool,
    at: str,
) -> ModelRecord:
    """The record that 0.1.0 kept with these values. ValueError for a `how` that it did not know."""
    status, entry = _MARKS.get(fingerprint[:1], "applied" if fingerprint else "doubted"), ""
    parsed = Fingerprint.parse(fingerprint.lstrip("?!"))
    if how == "held":
        how = "copied"
        if status == "applied":  # a look may have marked it as doubted since
            status, entry, parsed = "rolled_back", fingerprint, NO_FINGERPRINT
    if how not in WAYS:
        raise ValueError(f"{how!r} is not a way to apply a model")
    return ModelRecord(
        how=cast("How", how),
        digest=digest,
        status=status,
        fingerprint=parsed,
        entry=entry,
        base_digest=base_digest,
        blobs=blobs,
        weights_verified=weights_verified,
        at=at,
    )


def is_evictions(value: object) -> bool:
    """Whether the JSON value maps names of models to lists of such names."""
    if not isinstance(value, dict) or not all(isinstance(names, list) for names in value.values()):
        return False
    return all(map(_is_name, chain(value, *value.values())))


def is_layers(value: object) -> bool:
    """Whether the JSON value maps tags digests to lists of texts."""
    if not isinstance(value, dict) or not all(isinstance(layers, list) for layers in value.values()):
        return False
    return all(isinstance(layer, str) for layer in chain.from_iterable(value.values()))


def _is_name(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(ModelName.parse(value))
    except InvalidName:
        return False


def upgrade_pushed(digests: str) -> tuple[str, ...]:
    """The digests of one push, which 0.1.0 wrote side by side."""
    return tuple(digests.split())


def _move_models(connection: sqlite3.Connection) -> None:
    columns = "host, model, how, fingerprint, digest, base, weights, verified, at"
    for row in connection.execute(f"SELECT {columns} FROM applied").fetchall():  # noqa: S608
        host, model, how, fingerprint, digest, base, blobs, verified, at = row
        try:
            record = upgrade_record(
                how,
                fingerprint,
                digest,
                base_digest=base,
                blobs=tuple(blobs.split()),
                weights_verified=bool(verified),
                at=at,
            )
        except ValueError:
            continue  # nobody wrote that; the model is recognized again by its contents
        kind = (record.how, record.status, record.fingerprint.words, record.fingerprint.weights, record.entry)
        content = (digest, base, json.dumps(record.blobs), int(record.weights_verified), at)
        connection.execute(
            "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (host, model, *kind, *content)
        )


def _move_pushes(connection: sqlite3.Connection) -> None:
    for host, model, ref, digests in connection.execute(
        "SELECT host, model, ref, digest FROM pushed"
    ).fetchall():
        connection.execute(
            "INSERT INTO push VALUES (?, ?, ?, ?)", (host, model, ref, json.dumps(upgrade_pushed(digests)))
        )


# Statements that lead from version N to version N + 1. Published ones are never edited, only added to.
def _find_evictions(connection: sqlite3.Connection) -> None:
    """0.1.0 read what a run could not keep in memory out of the last runs in the history."""
    found: dict[str, str] = {}
    for (text,) in connection.execute("SELECT hosts FROM run ORDER BY rowid DESC LIMIT 20").fetchall():
        try:
            hosts = json.loads(text)
        except ValueError:
            continue
        for host, report in hosts.items() if isinstance(hosts, dict) else ():
            if isinstance(report, dict) and is_evictions(report.get("evicted")):
                found.setdefault(host, json.dumps(report["evicted"]))
    connection.executemany("INSERT INTO eviction VALUES (?, ?)", found.items())


MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = (
    (
        """CREATE TABLE applied (
            host TEXT NOT NULL, model TEXT NOT NULL, how TEXT NOT NULL, fingerprint TEXT NOT NULL,
            digest TEXT NOT NULL, base TEXT, weights TEXT NOT NULL, verified INTEGER NOT NULL, at TEXT NOT NULL,
            PRIMARY KEY (host, model))""",
        """CREATE TABLE pushed (
            host TEXT NOT NULL, model TEXT NOT NULL, ref TEXT NOT NULL, digest TEXT NOT NULL,
            PRIMARY KEY (host, model, ref))""",
        """CREATE TABLE file_digest (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL)""",
    ),
    (
        """CREATE TABLE run (
            run_id TEXT PRIMARY KEY, at TEXT NOT NULL, command TEXT NOT NULL, hosts TEXT NOT NULL,
            manifest_digest TEXT NOT NULL, exit_code INTEGER NOT NULL)""",
    ),
    (
        "ALTER TABLE run ADD COLUMN plan TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE run ADD COLUMN outcomes TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE run ADD COLUMN who TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE run ADD COLUMN commit_id TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE run ADD COLUMN ended_at TEXT NOT NULL DEFAULT ''",
    ),
    (
        """CREATE TABLE model (
            host TEXT NOT NULL, model TEXT NOT NULL, how TEXT NOT NULL, status TEXT NOT NULL, words TEXT NOT NULL,
            weights TEXT NOT NULL, entry TEXT NOT NULL, digest TEXT NOT NULL, base_digest TEXT, blobs TEXT NOT NULL,
            weights_verified INTEGER NOT NULL, at TEXT NOT NULL, PRIMARY KEY (host, model))""",
        """CREATE TABLE push (
            host TEXT NOT NULL, model TEXT NOT NULL, ref TEXT NOT NULL, digests TEXT NOT NULL,
            PRIMARY KEY (host, model, ref))""",
        "CREATE TABLE eviction (host TEXT PRIMARY KEY, models TEXT NOT NULL)",
        _move_models,
        _move_pushes,
        _find_evictions,
        "DROP TABLE applied",
        "DROP TABLE pushed",
    ),
    (
        # what was found before is not known to hold for what decides it now: each is looked into, or verified, once
        "ALTER TABLE model ADD COLUMN declared TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE model ADD COLUMN seen_on TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE model ADD COLUMN verified_for TEXT NOT NULL DEFAULT ''",
    ),
    ("CREATE TABLE weights_layers (host TEXT PRIMARY KEY, models TEXT NOT NULL)",),
)
