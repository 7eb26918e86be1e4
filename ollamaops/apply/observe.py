"""Hosts → ObservedState: ask as little as settles the question, and remember what was found in sync.

Version and tags come first; planner.questions then says which models have to be looked into and which registries
have to be asked. An unreachable host is `Unreached`, never an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ollamaops.apply.contents import contents_of
from ollamaops.apply.retry import attempt
from ollamaops.apply.upstream import Upstreams
from ollamaops.errors import AnswerError, Cancelled, InvalidName, RemoteError, StateError
from ollamaops.manifest.types import HostSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.wire import TaggedModel
from ollamaops.plan.actions import HostPlan, PullModel, UploadBlob
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.observed import (
    Contents,
    Memory,
    ObservedHost,
    ObservedModel,
    ObservedState,
    Unreached,
    Upstream,
)
from ollamaops.plan.planner import PlanOptions, is_trusted, plan_host, questions
from ollamaops.state.facts import Applied
from ollamaops.state.ledger import Ledger

RETRIES = 2
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes:
    """What looking at one host takes. `costs` also finds out how many bytes a plan would move."""

    spec: HostSpec
    client: OllamaClient
    ledger: Ledger
    upstreams: Upstreams
    cancel: CancelToken
    costs: bool = True

    def patiently(self, ask: Callable[[], Result]) -> Result:
        """`ask`, tried again while the error may pass."""
        return attempt(ask, retries=RETRIES, cancel=self.cancel, on_retry=lambda *_: None)


def look(eyes: Eyes, desired: DesiredHost, options: PlanOptions) -> ObservedState:
    """What the host has, as far as it matters for `desired`. Cancelled if somebody asked to stop."""
    try:
        return _look(eyes, desired, options)
    except Cancelled:
        raise
    except RemoteError as error:
        return Unreached(host=eyes.spec.name, error=str(error), hint=error.hint)


def _look(eyes: Eyes, desired: DesiredHost, options: PlanOptions) -> ObservedHost:
    features = eyes.patiently(eyes.client.features)
    listed = eyes.patiently(eyes.client.tags)
    observed = ObservedHost(
        host=eyes.spec.name,
        features=features,
        models={model.name: model for model in map(_observed, listed) if model is not None},
        memory=_recall(eyes),
        pushed={
            (ModelName.parse(model), ModelName.parse(ref)): digest
            for (model, ref), digest in eyes.ledger.recall_pushes(eyes.spec.memory_key).items()
        },
    )
    wanted = questions(desired, observed, options)
    observed = replace(
        observed,
        shown=_show_all(eyes, observed, wanted.show),
        upstream=_ask(eyes, desired, wanted.upstream),
    )
    return _with_costs(eyes, desired, observed, options) if eyes.costs else observed


def look_at_digests(client: OllamaClient, cancel: CancelToken) -> dict[ModelName, str]:
    """The tags digest of every model right now."""
    listed = attempt(client.tags, retries=RETRIES, cancel=cancel, on_retry=lambda *_: None)
    return {model.name: model.digest for model in map(_observed, listed) if model is not None}


def _observed(tagged: TaggedModel) -> ObservedModel | None:
    """One listed model; None for a name that no request could address."""
    with suppress(InvalidName):
        return ObservedModel(
            name=ModelName.parse(tagged.name),
            digest=tagged.digest.hex,
            size_bytes=tagged.size_bytes,
            modified_at=tagged.modified_at,
            parent=tagged.parent_model,
            is_cloud=tagged.is_cloud_stub,
        )
    return None


def _recall(eyes: Eyes) -> dict[ModelName, Memory]:
    return {
        ModelName.parse(key): Memory(
            fingerprint=fact.fingerprint,
            digest=fact.digest,
            how=fact.how,
            base_digest=fact.base,
            blobs=fact.weights,
            verified=fact.verified,
        )
        for key, fact in eyes.ledger.recall(eyes.spec.memory_key).items()
    }


def _show_all(eyes: Eyes, observed: ObservedHost, names: Iterable[ModelName]) -> dict[ModelName, Contents]:
    """What is in these models; one whose weights are gone cannot be shown and is left out."""
    found: dict[ModelName, Contents] = {}
    for name in sorted(names):
        model = observed.models[name]
        with suppress(AnswerError):
            shown = eyes.patiently(partial(eyes.client.show, model.name))
            found[name] = contents_of(shown, model.digest, observed.features)
    return found


def _ask(eyes: Eyes, desired: DesiredHost, names: Iterable[ModelName]) -> dict[ModelName, Upstream]:
    wanted = set(names)
    return eyes.upstreams.ask({name: insecure for name, insecure in _references(desired) if name in wanted})


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
    return eyes.patiently(lambda: eyes.client.has_blob(digest))


def learn(
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
    unverified = {note.model for note in plan.notes if note.model and not note.unresolved}
    for model in desired.models:
        own = observed.shown.get(model.name)
        if model.name not in plan.unchanged or own is None or is_trusted(model, observed, options):
            continue
        with suppress(StateError):
            eyes.ledger.remember(
                _fact(eyes, model, own, observed, now, verified=model.name not in unverified)
            )


def _fact(
    eyes: Eyes, model: DesiredModel, own: Contents, observed: ObservedHost, now: str, *, verified: bool
) -> Applied:
    memory = observed.memory.get(model.name)
    base = observed.models.get(model.made_from) if model.made_from else None
    return Applied(
        host=eyes.spec.memory_key,
        model=model.name.key,
        how=memory.how if memory and memory.is_ours else "adopted",
        fingerprint=model.fingerprint,
        digest=own.digest,
        at=now,
        base=base.digest if base else None,
        weights=tuple(str(blob) for blob in (*own.blobs, *own.adapters)),
        verified=verified,
    )
