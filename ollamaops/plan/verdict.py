"""What a verdict depends on, so that it is believed again only while all of that is the same.

A tags digest vouches for a content and for nothing else. Whether that content is as declared also depends on all that
the declaration says and tolerates, on the base whose values are inherited, on the server, which may not know a field
that another version of it has, and on the rules that we compared by.
"""

from __future__ import annotations

import hashlib
import json

import msgspec
from msgspec.structs import replace

from ollamaops.about import __version__
from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import Features
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.expectations import Expectation, read_expectations
from ollamaops.plan.observed import ObservedHost
from ollamaops.state.records import Fingerprint, ModelRecord

_OF_WEIGHTS = frozenset({"weights", "from", "files", "digest", "adapters"})  # fields of `ignore`


def declaration_of(model: DesiredModel) -> str:
    """Changes whenever the declaration asks for something else, or tolerates something else."""
    said = [model.fingerprint.words, model.fingerprint.weights, *sorted(model.spec.ignore)]
    said += [f"template {digest}" for digest in model.spec.templates]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def judge_of(features: Features) -> str:
    """Who said so: the server's version, and ours, because rules of comparing change with it."""
    return f"Ollama {features.version}, ollamaops {__version__}"


def verified_for(expectations: tuple[Expectation, ...], digest: str, features: Features) -> str:
    """What is remembered when these expectations held for the content of that digest. Another version of the server
    may not do with it what this one did."""
    said = msgspec.json.encode([expectations, digest, str(features.version)], order="sorted")
    return hashlib.sha256(said).hexdigest()[:32]


def is_remembered(memory: ModelRecord, model: DesiredModel, digest: str) -> bool:
    """Whether this very content was made for this declaration, or found to meet it, on whatever server."""
    if memory.digest != digest or memory.status != "applied":
        return False
    return memory.fingerprint == model.fingerprint or memory.declared == declaration_of(model)


def holds(memory: ModelRecord, model: DesiredModel, features: Features) -> bool:
    """Whether what a look found then is what it would find now, if content and base are the same."""
    return memory.declared == declaration_of(model) and memory.seen_on == judge_of(features)


def record_in_sync(
    model: DesiredModel, own: Contents, observed: ObservedHost, *, weights_verified: bool, at: str
) -> ModelRecord:
    """What to remember of a model that was looked into and found in sync.

    What is tolerated was not compared, so what is known of it stays as it was, or is not known.
    """
    memory, made_from = observed.memory.get(model.name), model.made_from
    known = memory if memory and memory.digest == own.digest else None
    before = known.fingerprint if known else Fingerprint()
    tolerated = frozenset(model.spec.ignore)
    are_words_compared = tolerated <= _OF_WEIGHTS
    are_weights_compared = tolerated.isdisjoint(_OF_WEIGHTS) and _is_base_seen(made_from, observed)
    base = observed.models.get(made_from) if made_from else None
    pulled = (
        known if isinstance(model.spec.source, Pull) else None
    )  # it keeps which registry manifest it was made of
    record = ModelRecord(
        how=memory.how if memory and memory.is_ours else "adopted",
        fingerprint=Fingerprint(
            model.fingerprint.words if are_words_compared else before.words,
            model.fingerprint.weights if are_weights_compared else before.weights,
        ),
        digest=own.digest,
        at=at,
        base_digest=base.digest if base else pulled.base_digest if pulled else None,
        blobs=tuple(str(blob) for blob in (*own.blobs, *own.adapters)),
        weights_verified=weights_verified,
        declared=declaration_of(model),
        seen_on=judge_of(observed.features),
        verified_for=_known_to_hold(model, own.digest, observed),
    )
    if known is None or are_weights_compared:
        return record
    return replace(
        record,
        base_digest=known.base_digest,
        blobs=known.blobs,
        weights_verified=known.weights_verified,
    )


def is_known_to_hold(model: DesiredModel, digest: str, observed: ObservedHost) -> bool:
    """Whether the model's expectations held for that content on this version of the server, under whatever name."""
    wanted = verified_for(read_expectations(model.spec.expect), digest, observed.features)
    return any(record.verified_for == wanted for record in observed.memory.values())


def _known_to_hold(model: DesiredModel, digest: str, observed: ObservedHost) -> str:
    """What is to be remembered of the expectations that held: a run may have died between verifying the content under
    another name and switching to it."""
    if is_known_to_hold(model, digest, observed):
        return verified_for(read_expectations(model.spec.expect), digest, observed.features)
    memory = observed.memory.get(model.name)
    return memory.verified_for if memory else ""


def _is_base_seen(base: ModelName | None, observed: ObservedHost) -> bool:
    return base is None or base in observed.shown
