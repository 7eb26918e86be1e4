"""What we remember of a host's models, and remembering models that were found in sync."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from ollamaops.errors import StateError
from ollamaops.names import Digest, ModelName
from ollamaops.observe.session import HostSession
from ollamaops.plan.actions import HostPlan
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.lookups import PlanOptions, is_trusted
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.verdict import record_in_sync
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import ModelRecord


def load_evictions(ledger: Ledger, host: str) -> Mapping[ModelName, frozenset[ModelName]]:
    """As the ledger's own. When it cannot be used, nothing is known: a host that keeps its ledger itself goes on."""
    try:
        return ledger.load_evictions(host)
    except StateError:
        return {}


def load_memory(host: HostSession) -> dict[ModelName, ModelRecord]:
    """What we remember of the host's models. StateError, for a ledger on the host also RemoteError."""
    return {ModelName.parse(key): record for key, record in host.ledger.load(host.spec.memory_key).items()}


def load_pushes(host: HostSession) -> dict[tuple[ModelName, ModelName], frozenset[str]]:
    """Model and registry name → the digests that were pushed there last."""
    return {
        (ModelName.parse(model), ModelName.parse(ref)): frozenset(digests)
        for (model, ref), digests in host.ledger.load_pushes(host.spec.memory_key).items()
    }


def load_layers(host: HostSession, records: Iterable[ModelRecord]) -> dict[str, tuple[Digest, ...]]:
    """Tags digest → the weights layers of that content, from earlier looks inside and from what was made."""
    known = {record.digest: record.blobs for record in records if record.digest and record.blobs}
    known |= host.ledger.load_layers(host.spec.memory_key)
    return {digest: tuple(map(Digest.parse, layers)) for digest, layers in known.items()}


def remember_layers(host: HostSession, observed: ObservedHost) -> None:
    """Keep the layers of what is on the host. When that fails, the next run looks inside once more."""
    there = {model.digest for model in observed.models.values()}
    layers = {
        digest: tuple(map(str, layers)) for digest, layers in observed.layers.items() if digest in there
    }
    with suppress(StateError):
        host.ledger.remember_layers(host.spec.memory_key, layers)


def remember_in_sync(
    host: HostSession, desired: DesiredHost, observed: ObservedHost, plan: HostPlan, options: PlanOptions
) -> None:
    """Remember the models that were looked into and found in sync, so that the next run need not look.

    Nothing is lost when the state folder cannot be written: the next run looks again.
    """
    unverified = {note.model for note in plan.notes if note.unverified}
    records: dict[str, ModelRecord] = {}
    for model in desired.models:
        own = observed.shown.get(model.name)
        if model.name not in plan.unchanged or own is None or is_trusted(model, observed, options):
            continue
        known = observed.memory.get(model.name)
        if model.recipe is None and known is not None and known.digest != own.digest:
            continue  # pulled, and replaced by somebody: what was pulled is remembered
        verified = model.name not in unverified
        records[model.name.key] = record_in_sync(
            model, own, observed, weights_verified=verified, at=host.run.now()
        )
    if records:
        with suppress(StateError):
            host.ledger.remember(host.spec.memory_key, records)
