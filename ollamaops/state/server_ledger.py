"""The ledger of one host on that host, for controllers that share no disk: read it, change it, take its lock.

Servers have no compare-and-swap. So we write, look again, and write again what another writer has overwritten. A
ledger that may not write (plan and drift write to no server) keeps what it is told for the rest of its run.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Protocol

from msgspec.structs import replace

from ollamaops.errors import RemoteError, StateError
from ollamaops.names import new_id
from ollamaops.state.ledger_document import LedgerDocument, parse_document, render_document
from ollamaops.state.locks import LockOwner, has_died
from ollamaops.state.records import ModelRecord

ATTEMPTS = 6
SETTLE_S = 1.0
PAUSE_S = 0.2
LOOKS_FOR_MISSING = 4

Edit = Callable[[LedgerDocument], LedgerDocument]


class DocumentStore(Protocol):
    """Keeps one text on one host. Every method raises RemoteError when the host does not do it."""

    @property
    def host(self) -> str:
        """The host's name, for messages."""

    def digest(self) -> str | None:
        """What changes whenever the text does; None when there is no text."""

    def read(self) -> str | None:
        """The text; None when what it is kept in cannot be opened any more."""

    def write(self, text: str) -> None:
        """Put the text there, in the place of the old one."""


class _TakenOver(StateError):
    """Another run has the lock that was ours, or that we were about to take."""

    def __init__(self, host: str, by: LockOwner) -> None:
        super().__init__(
            f"{host}: the lock of this run was taken over by {by}", hint="run again when that run has ended"
        )
        self.by = by


class ServerLedger:
    """A LedgerStore for one host; the `host` that records are asked by is not compared. Thread-safe.

    Reading raises RemoteError and StateError, writing StateError alone. `now` is an aware clock, `pause` waits
    for some seconds.
    """

    def __init__(
        self,
        store: DocumentStore,
        *,
        writing: bool,
        now: Callable[[], datetime],
        pause: Callable[[float], object],
        new_revision: Callable[[], str] = new_id,
    ) -> None:
        self._store = store
        self._writing = writing
        self._now = now
        self._pause = pause
        self._new_revision = new_revision
        self._lock = threading.RLock()
        self._seen: tuple[str | None, LedgerDocument] = (None, LedgerDocument())
        self._edits: list[Edit] = []  # all of this store's life, in order; doing one twice does no harm
        self._written: str | None = None
        self._owner: LockOwner | None = None

    # A LedgerStore

    def load(self, host: str) -> Mapping[str, ModelRecord]:
        """What is known of this host, by `ModelName.key`."""
        with self._lock:
            models = self._with_mine(self._look()).models
        return {key: models[key] for key in sorted(models)}

    def remember(self, host: str, records: Mapping[str, ModelRecord]) -> None:
        """Keep the records, in one write; older ones about the same models are replaced."""
        kept = dict(records)
        self._change(lambda document: document.with_models(kept))

    def forget(self, host: str, model: str) -> None:
        """Drop what is known of one model."""
        self._change(lambda document: document.without_model(model))

    def load_pushes(self, host: str) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(`ModelName.key`, reference) → the digests of what was pushed there last."""
        with self._lock:
            return self._with_mine(self._look()).pushes

    def remember_push(self, host: str, model: str, ref: str, digests: Iterable[str]) -> None:
        """Keep that this was pushed to `ref`: its tags digest and, if known, the registry's."""
        kept = tuple(digests)
        self._change(lambda document: document.with_push(model, ref, kept))

    def load_layers(self, host: str) -> Mapping[str, tuple[str, ...]]:
        """Tags digest → the digests of the weights layers of that content."""
        with self._lock:
            return self._with_mine(self._look()).layers

    def remember_layers(self, host: str, layers: Mapping[str, Iterable[str]]) -> None:
        """Keep the layers of everything on the host, in the place of what was known before."""
        kept = {digest: tuple(texts) for digest, texts in layers.items()}
        self._change(lambda document: document.with_layers(kept))

    def settle(self) -> None:
        """Make sure that everything written by this store is still there: another writer may not have seen it."""
        with self._lock:
            if self._written is not None:
                self._persist(_unchanged)

    # The lock

    def take(self, owner: LockOwner) -> LockOwner | None:
        """Take the host's lock; None when it is ours now, else who has it.

        One that has run out, or whose owner is known to have died, is taken over.
        """
        with self._lock:
            other = self._other_owner(self._looked_for_writing(), owner)
            if other is not None:
                return other
            self._owner = owner
            try:
                self._persist(_unchanged)
                self._pause(SETTLE_S)  # whoever looked before we wrote has written by then, and it is theirs
                self._persist(_unchanged)
            except _TakenOver as error:
                self._owner = None
                return error.by
            except StateError:
                self._owner = None
                raise
            return None

    def renew(self, expires_at: str) -> None:
        """Move the end of our lock. StateError when somebody else has taken it over."""
        with self._lock:
            if self._owner is not None:
                self._owner = replace(self._owner, expires_at=expires_at)
                self._persist(_unchanged)

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        with self._lock:
            owner, self._owner = self._owner, None
            if owner is not None:
                self._persist(lambda document: _without_owner(document, owner.token))

    def _other_owner(self, document: LedgerDocument, owner: LockOwner) -> LockOwner | None:
        other = document.lock_owner
        if other is None or other.token == owner.token or other.has_expired(self._now()):
            return None
        return None if has_died(other) else other

    # How

    def _change(self, edit: Edit) -> None:
        with self._lock:
            if self._writing:
                self._persist(edit)
            self._edits.append(edit)

    def _persist(self, edit: Edit) -> None:
        """Write until a look finds the write there, or it turns out that there is nothing to write."""
        cause: RemoteError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(random.uniform(0, PAUSE_S * attempt))  # noqa: S311  so that two writers get out of step
            try:
                if self._wrote(edit):
                    return
                cause = None
            except RemoteError as error:  # of any kind: while another one writes, what is there seems missing
                cause = error
        raise self._not_written(cause) from cause

    def _wrote(self, edit: Edit) -> bool:
        """One attempt; False when another writer came between."""
        document = self._look()
        wanted = edit(self._with_lock(self._with_mine(document)))
        if wanted == document:
            return True
        new = wanted.succeeded_by(self._new_revision())
        self._store.write(render_document(new))
        if not self._look().has_seen(new.revision):
            return False
        self._written = new.revision
        return True

    def _look(self) -> LedgerDocument:
        """The document as it is now; it is read again only when it has changed."""
        digest = self._digest()
        if digest != self._seen[0]:
            text = self._text() if digest else None
            self._seen = (digest, LedgerDocument() if text is None else self._parsed(text))
        return self._seen[1]

    def _digest(self) -> str | None:
        """None only when several looks find nothing: servers rewrite in place, and meanwhile list no such model."""
        looks = LOOKS_FOR_MISSING if self._seen[0] else 2
        for _ in range(looks - 1):
            digest = self._store.digest()
            if digest is not None:
                return digest
            self._pause(PAUSE_S)
        return self._store.digest()

    def _text(self) -> str | None:
        """None only when several looks cannot open it, for the same reason."""
        for _ in range(LOOKS_FOR_MISSING - 1):
            text = self._store.read()
            if text is not None:
                return text
            self._pause(PAUSE_S)
        return self._store.read()

    def _looked_for_writing(self) -> LedgerDocument:
        try:
            return self._look()
        except RemoteError as error:
            raise self._not_written(error) from error

    def _parsed(self, text: str) -> LedgerDocument:
        try:
            return parse_document(text)
        except StateError as error:
            raise StateError(f"{self._store.host}: {error}", hint=error.hint) from error

    def _with_mine(self, document: LedgerDocument) -> LedgerDocument:
        """The document with our changes, should another writer not have seen them."""
        if self._written is not None and document.has_seen(self._written):
            return document
        for edit in self._edits:
            document = edit(document)
        return document

    def _with_lock(self, document: LedgerDocument) -> LedgerDocument:
        if self._owner is None:
            return document
        other = self._other_owner(document, self._owner)
        if other is not None:
            raise _TakenOver(self._store.host, other)
        return replace(document, lock_owner=self._owner)

    def _not_written(self, cause: RemoteError | None) -> StateError:
        why = str(cause) if cause else f"{self._store.host}: {ATTEMPTS} writes in a row were overwritten"
        return StateError(
            f"the ledger on the host cannot be written: {why}",
            hint=(cause and cause.hint) or "let one controller at a time change the host",
        )


def _unchanged(document: LedgerDocument) -> LedgerDocument:
    return document


def _without_owner(document: LedgerDocument, token: str) -> LedgerDocument:
    is_ours = document.lock_owner is not None and document.lock_owner.token == token
    return replace(document, lock_owner=None) if is_ours else document
