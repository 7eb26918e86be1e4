"""One SQLite file, kept safe: created private, brought up to date, and every failure a StateError with a way out.

Each write is a transaction of its own and on disk when the call returns, so kill -9 loses at most what was being
written. Every call opens and closes its own connection (about 0.2 ms), so nothing is shared between threads, forks or
pickles, and no lock outlives a call. The journal is SQLite's rollback journal, not WAL: it also works in a read-only
folder and on network file systems.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ollamaops.errors import StateError, cut_text
from ollamaops.files.output import open_private, refuse_link
from ollamaops.state.upgrade import MIGRATIONS

Cell = str | bytes | int | float | None
Row = tuple[Cell, ...]

APPLICATION_ID = 0x6F6C6F70  # "olop", so that another program's database is not taken for ours
VERSION = len(MIGRATIONS)

_ELSEWHERE_HINT = "choose a folder that can be written with --state-dir"
_DAMAGED_HINT = (
    "move the file away: models are recognized again by their contents, "
    "but those that were rolled back are rolled forward"
)
_NEWER_HINT = "upgrade ollamaops, or choose another folder with --state-dir"
# SQLite's primary result codes (https://sqlite.org/rescode.html) → why, and the way out.
_REASONS: dict[int, tuple[str, str]] = {
    3: ("it may not be read or written", _ELSEWHERE_HINT),
    5: ("it is locked by another process", "wait until the other run has ended, then run again"),
    6: ("it is locked by another process", "wait until the other run has ended, then run again"),
    8: ("it is read-only", _ELSEWHERE_HINT),
    10: ("reading or writing it failed", "check the disk, or choose another folder with --state-dir"),
    13: ("the disk is full", "free some space, or choose another folder with --state-dir"),
    14: ("it cannot be opened", _ELSEWHERE_HINT),
}

# Closing any descriptor of a file drops all POSIX locks that the process holds on it, those of SQLite included;
# so no thread may begin to write while another one creates the file.
_creating = threading.Lock()


class Database:
    """The file `path`, which need not exist. Holds nothing open."""

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self.path = path
        self.busy_timeout_s = busy_timeout_s

    def query(self, statement: str, *parameters: Cell) -> list[Row]:
        """The rows of a SELECT; none if nothing was ever written, and nothing is created. StateError."""
        with self._naming_errors():
            refuse_link(self.path)
            if not self.path.exists():
                return []
            with self._connected() as connection:
                if not self._bring_up_to_date(connection, create=False):
                    return []
                return connection.execute(statement, _storable(parameters)).fetchall()

    def write(self, statement: str, *parameters: Cell) -> None:
        """Carry out one INSERT, REPLACE or DELETE; it is on disk when this returns. StateError."""
        self.write_rows(statement, [parameters])

    def write_rows(self, statement: str, rows: Iterable[Row]) -> None:
        """Carry out the statement once per row, in one transaction; all are on disk when this returns. StateError."""
        with self._naming_errors():
            self._create_file()
            with self._connected() as connection:
                self._bring_up_to_date(connection, create=True)
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(statement, map(_storable, rows))
                connection.execute("COMMIT")

    def damaged(self, why: str) -> StateError:
        """The error for contents that we did not write."""
        return StateError(f"{self.path}: not a usable ledger: {why}", hint=_DAMAGED_HINT)

    def _create_file(self) -> None:
        with _creating:
            refuse_link(self.path)
            if not self.path.exists():
                os.close(open_private(self.path, os.O_RDWR))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        uri = self.path.absolute().as_uri() + "?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=self.busy_timeout_s, isolation_level=None)
        with closing(connection):
            yield connection

    def _bring_up_to_date(self, connection: sqlite3.Connection, *, create: bool) -> bool:
        """Whether the tables of this version are there, having made or migrated them if need be."""
        version = self._version(connection)
        if version == 0 and not create:
            return False
        if version < VERSION:
            self._migrate(connection)
        return True

    def _version(self, connection: sqlite3.Connection) -> int:
        version = _pragma(connection, "user_version")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        is_new = version == 0 and tables == 0
        if not is_new and _pragma(connection, "application_id") != APPLICATION_ID:
            raise self.damaged("it is the database of another program")
        if version > VERSION:
            raise StateError(
                f"{self.path}: written by a newer ollamaops: version {version}, this one knows {VERSION}",
                hint=_NEWER_HINT,
            )
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """All steps in one transaction; another process may have taken them while this one waited for it."""
        connection.execute("BEGIN IMMEDIATE")
        for step in MIGRATIONS[self._version(connection) :]:
            for statement in step:
                if isinstance(statement, str):
                    connection.execute(statement)
                else:
                    statement(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # Errors that Python's binding raises by itself carry no code.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            why, hint = _REASONS.get(code, (f"it is damaged: {cut_text(str(error))}", _DAMAGED_HINT))
            raise StateError(f"{self.path}: the ledger cannot be used: {why}", hint=hint) from error
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise StateError(
                f"{self.path}: the ledger cannot be used: {why}", hint=_ELSEWHERE_HINT
            ) from error


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _storable(parameters: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """The same values, with what UTF-8 cannot hold (half of a surrogate pair, from an odd file name) escaped."""
    return tuple(
        cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell
        for cell in parameters
    )
