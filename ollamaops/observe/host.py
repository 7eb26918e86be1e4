"""Hosts → ObservedState: ask as little as settles the question, and remember what was found in sync.

Version and tags come first; plan/lookups.py then says which models have to be looked into and which registries
have to be asked. An unreachable host is an error, never an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ollamaops.errors import AnswerError, InvalidName, ProtocolError, StateError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import attempt
from ollamaops.manifest.types import HostSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.observe.contents import look_into
from ollamaops.observe.loaded import read_loaded
from ollamaops.observe.registries import RegistryCache
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import Features
from ollamaops.ollama.wire import TaggedModel
from ollamaops.plan.actions import HostPlan, PullModel, UploadBlob
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import PlanOptions, is_trusted, lookups
from ollamaops.plan.observed import (
    ObservedHost,
    ObservedModel,
    RegistryAnswer,
)
from ollamaops.plan.planner import plan_host
from ollamaops.plan.residency import is_managed, residents_of, to_compare, with_sharers
from ollamaops.state.records import LedgerStore, ModelRecord

RETRIES = 2
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What asking one host takes, and how patiently."""

    spec: HostSpec
    client: OllamaClient
    cancel: CancelToken

    def patiently(self, ask: Callable[[], Result]) -> Result:
        """`ask`, tried again while the error may pass."""
        return attempt(ask, retries=RETRIES, cancel=self.cancel)

    def models(self) -> ObservedHost:
        """Version and tags: two requests, or one when the version is known."""
        features = self.patiently(self.client.features)
        listed = self.patiently(self.client.tags)
        found = (_observed(tagged, features) for tagged in listed)
        models = {model.name: model for model in found if model is not None}
        asides = {name: model.digest for name, model in models.items() if name.is_aside}
        return ObservedHost(
            host=self.spec.name,
            features=features,
            models={name: model for name, model in models.items() if name not in asides},
            set_aside=asides,
        )

    def show(self, observed: ObservedHost, names: Iterable[ModelName]) -> dict[ModelName, Contents]:
        """What is in these models; one that cannot be opened, or runs in a cloud, is left out."""
        found: dict[ModelName, Contents] = {}
        for model in (observed.models[name] for name in sorted(names)):
            if model.is_cloud:
                continue
            ask = partial(self.client.show, model.name)
            contents = look_into(partial(self.patiently, ask), model.digest, observed.features)
            if contents is not None:
                found[model.name] = contents
        return found

    def loaded(self, observed: ObservedHost, residents: Sequence[ModelName]) -> ObservedHost:
        """The host with what is in its memory: one request, and looks inside where a resident may share a runner."""
        listed = self.patiently(lambda: read_loaded(self.client))
        observed = replace(observed, loaded=listed)
        inside = self.show(observed, to_compare(residents, observed))
        return replace(observed, loaded=with_sharers(residents, listed, inside))


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes(Glance):
    """What looking at one host takes. `costs` also finds out how many bytes a plan would move."""

    ledger: LedgerStore
    registries: RegistryCache
    costs: bool = True


def look(eyes: Eyes, desired: DesiredHost, options: PlanOptions) -> ObservedHost:
    """What the host has, as far as it matters for `desired`. RemoteError if it does not answer; Cancelled."""
    observed = replace(eyes.models(), memory=load_memory(eyes), pushed=_load_pushes(eyes))
    if any(model.name in observed.memory.keys() - observed.models.keys() for model in desired.models):
        # a list that is read while a manifest is rewritten misses that model (all servers up to 0.33)
        observed = replace(observed, models=eyes.models().models)
    if is_managed(desired):
        observed = eyes.loaded(observed, residents_of(desired))
    wanted = lookups(desired, observed, options)
    observed = replace(
        observed,
        shown=eyes.show(observed, wanted.show),
        upstream={
            **eyes.registries.recall(dict(_references(desired))),
            **_ask(eyes, desired, wanted.upstream),
        },
    )
    return _with_costs(eyes, desired, observed, options) if eyes.costs else observed


def look_at_digests(glance: Glance) -> dict[ModelName, str]:
    """The tags digest of every model right now. RemoteError if the host does not answer."""
    return {model.name: model.digest for model in glance.models().models.values()}


def look_at_all(client: OllamaClient, spec: HostSpec, cancel: CancelToken) -> ObservedHost:
    """Version, tags and contents of every model, without memory and registries. RemoteError, Cancelled."""
    glance = Glance(spec=spec, client=client, cancel=cancel)
    observed = glance.models()
    return replace(observed, shown=glance.show(observed, observed.models))


def _observed(tagged: TaggedModel, features: Features) -> ObservedModel | None:
    """One listed model; None for a name that no request could address, and for our ledger."""
    with suppress(InvalidName):
        name = ModelName.parse(tagged.name)
        if name.is_ledger:
            return None
        return ObservedModel(
            name=name,
            digest=tagged.digest.hex,
            size_bytes=tagged.size_bytes,
            modified_at=tagged.modified_at,
            parent=tagged.parent_model,
            quantization=tagged.quantization_level,
            is_cloud=tagged.is_cloud_stub or (features.suffix_routing and name.source_suffix == "cloud"),
        )
    return None


def load_memory(eyes: Eyes) -> dict[ModelName, ModelRecord]:
    """What we remember of the host's models. StateError, for a store on the host also RemoteError."""
    return {ModelName.parse(key): record for key, record in eyes.ledger.load(eyes.spec.memory_key).items()}


def _load_pushes(eyes: Eyes) -> dict[tuple[ModelName, ModelName], frozenset[str]]:
    return {
        (ModelName.parse(model), ModelName.parse(ref)): frozenset(digests)
        for (model, ref), digests in eyes.ledger.load_pushes(eyes.spec.memory_key).items()
    }


def _ask(eyes: Eyes, desired: DesiredHost, names: Iterable[ModelName]) -> dict[ModelName, RegistryAnswer]:
    wanted = set(names)
    return eyes.registries.ask({name: insecure for name, insecure in _references(desired) if name in wanted})


def _references(desired: DesiredHost) -> Iterable[tuple[ModelName, bool]]:
    """Every registry name of the declaration, with whether plain http is meant."""
    for model in desired.models:
        if isinstance(model.spec.source, Pull):
            yield model.spec.source.ref, model.spec.source.insecure
        if model.spec.push:
            yield model.spec.push, model.spec.push_insecure


def _with_costs(
    eyes: Eyes, desired: DesiredHost, observed: ObservedHost, options: PlanOptions
) -> ObservedHost:
    """Also find out what the plan would have to move: sizes from the registry, blobs that are there already."""
    actions = plan_host(desired, observed, options).actions
    pulled = {action.model for action in actions if isinstance(action, PullModel)}
    upstream = {**observed.upstream, **_ask(eyes, desired, pulled - observed.upstream.keys())}
    blobs = {action.digest for action in actions if isinstance(action, UploadBlob)}
    if observed.models:  # an empty host has no layers to share
        blobs |= {digest for name in pulled if name in upstream for digest, _ in upstream[name].layers}
    present = {blob for blob in sorted(blobs) if _has_blob(eyes, blob)}
    return replace(observed, upstream=upstream, present_blobs=frozenset(present))


def _has_blob(eyes: Eyes, digest: Digest) -> bool:
    """False also when the host does not say (a proxy may let no HEAD through): only the estimate of costs uses it."""
    with suppress(AnswerError, ProtocolError):
        return eyes.patiently(lambda: eyes.client.has_blob(digest))
    return False


def remember_in_sync(
    eyes: Eyes,
    desired: DesiredHost,
    observed: ObservedHost,
    plan: HostPlan,
    *,
    options: PlanOptions,
    now: str,
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
        records[model.name.key] = _record(
            model, own, observed, now, weights_verified=model.name not in unverified
        )
    if records:
        with suppress(StateError):
            eyes.ledger.remember(eyes.spec.memory_key, records)


def _record(
    model: DesiredModel, own: Contents, observed: ObservedHost, now: str, *, weights_verified: bool
) -> ModelRecord:
    memory = observed.memory.get(model.name)
    base = observed.models.get(model.made_from) if model.made_from else None
    return ModelRecord(
        how=memory.how if memory and memory.is_ours else "adopted",
        fingerprint=model.fingerprint,
        digest=own.digest,
        at=now,
        base_digest=base.digest if base else None,
        blobs=tuple(str(blob) for blob in (*own.blobs, *own.adapters)),
        weights_verified=weights_verified,
    )
