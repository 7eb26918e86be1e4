"""The ledger that lives on a host, as a value and as text: models, pushes, the lock, and which writes it has seen.

A server has no compare-and-swap, so every write has a `revision` of its own and names those before it (`ancestors`).
A writer that does not find its own revision among them was overwritten.

The text has to come back byte for byte from every server since 0.3: one line of ASCII letters, packed and in base64,
which no quoting rule of a Modelfile touches.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from typing import cast

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from ollamaops.errors import StateError
from ollamaops.names import LEDGER_MODEL, ModelName
from ollamaops.state.locks import LockOwner, owner_from_json, owner_to_json
from ollamaops.state.records import STATUSES, WAYS, Fingerprint, How, ModelRecord, Status
from ollamaops.state.upgrade import upgrade_pushed, upgrade_record

LEDGER_NAME = ModelName.parse(f"{LEDGER_MODEL}:state")
VERSION = 2  # 0.1.0 refuses it: it would drop what it does not know
MOST_ANCESTORS = 64
MOST_BYTES = 64 * 1024 * 1024

_TEXT = re.compile(r"ollamaops ledger ([0-9]{1,4}): ([A-Za-z0-9+/=]+)\s*", re.ASCII)
_RECORD_TEXTS = ("how", "status", "entry", "digest", "at")
_LATER_TEXTS = (
    "declared",
    "seen_on",
    "verified_for",
)  # absent in what was written before they were there: not known


class LedgerDocument(Struct, frozen=True, kw_only=True):
    """What the ledger on one host says. `models` are by `ModelName.key`, `pushes` by that and the reference, `layers`
    (the digests of weights layers) by tags digest."""

    revision: str = ""
    ancestors: tuple[str, ...] = ()
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    pushes: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lock_owner: LockOwner | None = None

    def has_seen(self, revision: str) -> bool:
        """Whether the write of that name is part of this one."""
        return revision == self.revision or revision in self.ancestors

    def succeeded_by(self, revision: str) -> LedgerDocument:
        """The same as a new write."""
        before = (self.revision, *self.ancestors) if self.revision else ()
        return replace(self, revision=revision, ancestors=before[:MOST_ANCESTORS])

    def with_models(self, records: Mapping[str, ModelRecord]) -> LedgerDocument:
        return replace(self, models={**self.models, **records})

    def without_model(self, model: str) -> LedgerDocument:
        return replace(self, models={key: record for key, record in self.models.items() if key != model})

    def with_push(self, model: str, ref: str, digests: tuple[str, ...]) -> LedgerDocument:
        return replace(self, pushes={**self.pushes, (model, ref): digests})

    def with_layers(self, layers: Mapping[str, tuple[str, ...]]) -> LedgerDocument:
        return replace(self, layers=layers)


def render_document(document: LedgerDocument) -> str:
    """The text that a server keeps; equal documents give equal texts."""
    body = {
        "revision": document.revision,
        "ancestors": list(document.ancestors),
        "models": {key: to_builtins(record) for key, record in document.models.items()},
        "pushes": [[model, ref, *digests] for (model, ref), digests in sorted(document.pushes.items())],
        "layers": {digest: list(layers) for digest, layers in document.layers.items()},
        "lock_owner": owner_to_json(document.lock_owner) if document.lock_owner else None,
    }
    packed = zlib.compress(json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), 9)
    return f"ollamaops ledger {VERSION}: {base64.b64encode(packed).decode()}"


def parse_document(text: str) -> LedgerDocument:
    """The document in what render_document made. StateError for anything else, and for a newer format."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise _not_ours("it holds something else")
    if int(match[1]) > VERSION:
        raise StateError(
            f"the ledger in '{LEDGER_NAME}' was written by a newer ollamaops: "
            f"version {int(match[1])}, this one knows {VERSION}",
            hint="upgrade ollamaops",
        )
    try:
        return _document(json.loads(_unpacked(match[2])), int(match[1]))
    except (ValueError, TypeError, zlib.error) as error:
        raise _not_ours(f"it is damaged: {error}") from error


def _unpacked(text: str) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
    if not unpacking.eof:
        raise ValueError("it is cut short or too large")
    return data


def _not_ours(why: str) -> StateError:
    return StateError(
        f"'{LEDGER_NAME}' is not a usable ledger: {why}",
        hint=f"delete '{LEDGER_NAME}' on the host: models are recognized again by their contents, "
        "but those that were rolled back are rolled forward",
    )


def _document(body: object, version: int) -> LedgerDocument:
    tree = _table(body)
    if version == 1:
        models = {key: _record_of_version_1(value) for key, value in _table(tree.get("facts")).items()}
    else:
        models = {key: _record(value) for key, value in _table(tree.get("models")).items()}
    rows = map(_texts, _list(tree.get("pushes")))
    pushes = {(model, ref): tuple(digests) for model, ref, *digests in rows}
    if version == 1:
        pushes = {key: upgrade_pushed(*digests) for key, digests in pushes.items()}
    return LedgerDocument(
        revision=_text(tree.get("revision")),
        ancestors=_texts(tree.get("ancestors")),
        models=models,
        pushes=pushes,
        # what an older version wrote has none
        layers={digest: _texts(texts) for digest, texts in _table(tree.get("layers", {})).items()},
        lock_owner=owner_from_json(tree.get("holder" if version == 1 else "lock_owner")),
    )


def _record(value: object) -> ModelRecord:
    tree = _table(value)
    how, status, entry, digest, at = (_text(tree.get(key)) for key in _RECORD_TEXTS)
    if how not in WAYS or status not in STATUSES:
        raise ValueError(f"a model cannot be {how[:80]!r} and {status[:80]!r}")
    fingerprint = _table(tree.get("fingerprint"))
    declared, seen_on, verified_for = (_text(tree.get(key, "")) for key in _LATER_TEXTS)
    return ModelRecord(
        how=cast("How", how),
        status=cast("Status", status),
        fingerprint=Fingerprint(_text(fingerprint.get("words")), _text(fingerprint.get("weights"))),
        entry=entry,
        digest=digest,
        base_digest=_text_or_none(tree.get("base_digest")),
        blobs=_texts(tree.get("blobs")),
        weights_verified=_flag(tree.get("weights_verified")),
        declared=declared,
        seen_on=seen_on,
        verified_for=verified_for,
        at=at,
    )


def _record_of_version_1(value: object) -> ModelRecord:
    tree = _table(value)
    return upgrade_record(
        _text(tree.get("how")),
        _text(tree.get("fingerprint")),
        _text(tree.get("digest")),
        base_digest=_text_or_none(tree.get("base")),
        blobs=_texts(tree.get("weights")),
        weights_verified=_flag(tree.get("verified")),
        at=_text(tree.get("at")),
    )


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("a mapping is missing")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a truth value is missing")
    return value
