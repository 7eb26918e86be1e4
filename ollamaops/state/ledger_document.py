"""The ledger that lives on a host, as a value and as text: facts, pushes, the lock, and which writes it has seen.

Decides the format of the text and how a change is laid on a document; leaves reading and writing it to
server_ledger.py. The one fact a reader would miss: a server has no compare-and-swap, so every write has a `revision`
of its own and names those before it (`ancestors`). Who does not find its own among them was overwritten.

The text has to come back byte for byte from every server since 0.3: one line of ASCII letters, packed and in base64,
which no quoting rule of a Modelfile touches.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from ollamaops.errors import StateError
from ollamaops.names import LEDGER_MODEL, ModelName
from ollamaops.state.facts import WAYS, Applied, How
from ollamaops.state.lock_owner import LockOwner, holder_from_json, holder_to_json

LEDGER_NAME = ModelName.parse(f"{LEDGER_MODEL}:state")
VERSION = 1
MOST_ANCESTORS = 64
MOST_BYTES = 64 * 1024 * 1024

_TEXT = re.compile(r"ollamaops ledger ([0-9]{1,4}): ([A-Za-z0-9+/=]+)\s*", re.ASCII)
_FACT_TEXTS = ("how", "fingerprint", "digest", "at")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDocument:
    """What the ledger on one host says. `facts` are by `ModelName.key`; their `host` is left empty."""

    revision: str = ""
    ancestors: tuple[str, ...] = ()
    facts: Mapping[str, Applied] = field(default_factory=dict)
    pushes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    holder: LockOwner | None = None

    def has_seen(self, revision: str) -> bool:
        """Whether the write of that name is part of this one."""
        return revision == self.revision or revision in self.ancestors

    def succeeded_by(self, revision: str) -> SharedDocument:
        """The same as a new write."""
        before = (self.revision, *self.ancestors) if self.revision else ()
        return replace(self, revision=revision, ancestors=before[:MOST_ANCESTORS])

    def with_facts(self, facts: Iterable[Applied]) -> SharedDocument:
        new = {fact.model: replace(fact, host="") for fact in facts}
        return replace(self, facts={**self.facts, **new})

    def without_fact(self, model: str) -> SharedDocument:
        return replace(self, facts={key: fact for key, fact in self.facts.items() if key != model})

    def with_push(self, model: str, ref: str, digest: str) -> SharedDocument:
        return replace(self, pushes={**self.pushes, (model, ref): digest})


def render_document(document: SharedDocument) -> str:
    """The text that a server keeps; equal documents give equal texts."""
    body = {
        "revision": document.revision,
        "ancestors": list(document.ancestors),
        "facts": {key: _fact_to_json(fact) for key, fact in document.facts.items()},
        "pushes": [[model, ref, digest] for (model, ref), digest in sorted(document.pushes.items())],
        "holder": holder_to_json(document.holder) if document.holder else None,
    }
    packed = zlib.compress(json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), 9)
    return f"ollamaops ledger {VERSION}: {base64.b64encode(packed).decode()}"


def parse_document(text: str) -> SharedDocument:
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
        return _document(json.loads(_unpacked(match[2])))
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
        hint=f"delete '{LEDGER_NAME}' on the host; a new one is started, "
        "and models are recognized again by their contents",
    )


def _document(body: object) -> SharedDocument:
    tree = _table(body)
    facts = {key: _fact(key, value) for key, value in _table(tree.get("facts")).items()}
    pushes = {(model, ref): digest for model, ref, digest in map(_texts, _list(tree.get("pushes")))}
    return SharedDocument(
        revision=_text(tree.get("revision")),
        ancestors=_texts(tree.get("ancestors")),
        facts=facts,
        pushes=pushes,
        holder=holder_from_json(tree.get("holder")),
    )


def _fact_to_json(fact: Applied) -> dict[str, object]:
    return {key: value for key, value in asdict(fact).items() if key not in ("host", "model")}


def _fact(model: str, value: object) -> Applied:
    tree = _table(value)
    how, fingerprint, digest, at = (_text(tree.get(key)) for key in _FACT_TEXTS)
    base, verified = tree.get("base"), tree.get("verified")
    if how not in WAYS or not isinstance(verified, bool):
        raise ValueError(f"{model[:80]!r} has no usable fact")
    return Applied(
        host="",
        model=model,
        how=cast("How", how),
        fingerprint=fingerprint,
        digest=digest,
        at=at,
        base=None if base is None else _text(base),
        weights=_texts(tree.get("weights")),
        verified=verified,
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
