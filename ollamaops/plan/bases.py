"""Having a model there that others are made from: the pull itself, and the bases that nobody declared.

Decides what a pull asks for and what it costs; why a declared model is pulled is pulls.py's. The fact a reader would
miss: an implicit base is pulled without a fingerprint, so that it is never remembered as ours and never pruned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ollamaops.lockfile.build import NO_MODEL_HINT
from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import Cost, HostPlan, PullModel, id_of
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import Because, pins_of, upstream_of
from ollamaops.plan.observed import RegistryAnswer
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.staging import add_probe, is_proven_first


def add_pull(draft: PlanBuilder, model: DesiredModel, pull: Pull, because: Because) -> bool:
    """Plan to pull `pull.ref`; False, with a note, when it cannot or may not be pulled."""
    refusal = _refusal(draft, model, pull)
    if refusal is not None:
        draft.give_up(model.name, *refusal)
        return False
    action = _pull_action(draft, model, pull, because)
    before = draft.actions.get(id_of(action))
    draft.add(_merge(before, action) if isinstance(before, PullModel) else action)
    if pull.ref == model.name:
        add_probe(draft, model, pull.ref)
    _tell_of_pin(draft, model)
    return True


def _tell_of_pin(draft: PlanBuilder, model: DesiredModel) -> None:
    """A pin is the registry's digest, and from that alone nobody knows what a server before 0.19 lists."""
    spec = model.spec
    is_known = draft.features.raw_registry_manifest or spec.accepts or upstream_of(model, draft.observed)
    if spec.digest and not is_known:
        draft.note(
            model.name,
            "servers before 0.19 list most pulled models under another digest than the registry's: "
            "without the registry's answer the pin may not be recognized, and the pull is then undone",
            "let the registry be asked, or lock the model: `ollamaops lock` writes down both digests",
        )


def _refusal(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> tuple[str, str] | None:
    """What forbids the pull, and the way out."""
    if draft.features.suffix_routing and pull.ref.source_suffix == "local":
        found = f"cannot be pulled: servers from 0.18.0 on read '{pull.ref}' as '{pull.ref.pull_name}'"
        return found, "use another tag than local"
    if model.spec.update == "never":
        found = "not there" if draft.find(model.name) is None else "not the pinned content"
        hint = "pull it by hand, or set update: missing"
        return f"{found}, and update: never forbids pulling it", hint
    if draft.leaves_alone(pull.ref):
        return f"'{pull.ref}' would have to be pulled, but policy.ignore covers it", "take it out of ignore"
    pins, upstream = pins_of(model.spec), upstream_of(model, draft.observed)
    if upstream is not None and upstream.foreign:
        return f"'{pull.ref}' is no Ollama model: its registry has something else there", NO_MODEL_HINT
    if upstream is not None and pins and pins.isdisjoint(upstream.digests):
        pinned = model.spec.digest.hex if model.spec.digest else min(pins)
        return (
            f"pinned to {pinned[:12]}, but the registry now has {upstream.registry_digest[:12]}",
            "update digest: (or the lock) after a look at what changed, or push the pinned content again",
        )
    return None


def _pull_action(draft: PlanBuilder, model: DesiredModel, pull: Pull, because: Because) -> PullModel:
    upstream, pins = upstream_of(model, draft.observed), pins_of(model.spec)
    is_in_place = pull.ref == model.name
    if upstream and pins:
        pins |= upstream.digests  # the same content, as servers of other versions write it
    return PullModel(
        host=draft.host,
        model=pull.ref,
        because=because,
        expects=draft.expect(pull.ref),
        cost=_cost(draft, pull.ref, upstream),
        insecure=pull.insecure,
        registry_digest=upstream.registry_digest if upstream else "",
        current=tuple(sorted(upstream.digests)) if upstream else (),
        pin=tuple(sorted(pins)),
        on_trial=is_in_place and is_proven_first(model.spec),
        keep=model.spec.keep_previous if is_in_place else 0,
        fingerprint="" if model.implicit else model.fingerprint,
        retries=model.spec.retries,
    )


def hold_to_registry(plan: HostPlan) -> HostPlan:
    """A saved plan brings what it said: each pull has to give what the registry had when it was made."""
    actions = (
        replace(action, pin=action.pin or action.current) if isinstance(action, PullModel) else action
        for action in plan.actions
    )
    return replace(plan, actions=tuple(actions))


def _cost(draft: PlanBuilder, ref: ModelName, upstream: RegistryAnswer | None) -> Cost:
    """What the pull moves; layers that an earlier pull of this plan brings are moved once."""
    if upstream is None:
        return Cost(download_bytes=None)
    present = sum(size for digest, size in upstream.layers if digest in draft.observed.present_blobs)
    others = {digest for pull in _pulls_but(draft, ref) for digest, _ in pull.layers}
    coming = others - draft.observed.present_blobs
    shared = sum(size for digest, size in upstream.layers if digest in coming)
    return Cost(download_bytes=upstream.total_bytes - present - shared, present_bytes=present)


def _pulls_but(draft: PlanBuilder, ref: ModelName) -> Iterator[RegistryAnswer]:
    """What all other pulls that are planned so far bring, as far as it is known."""
    for action in draft.actions.values():
        if isinstance(action, PullModel) and action.model != ref:
            known = draft.observed.upstream.get(action.model)
            if known is not None:
                yield known


def _merge(one: PullModel, other: PullModel) -> PullModel:
    """One pull that serves two entries, whichever came first. Two different pins are refused before."""
    strict, mild = sorted((one, other), key=lambda pull: (pull.pin, pull.fingerprint), reverse=True)
    return replace(
        strict,
        because=(*one.because, *other.because),
        insecure=one.insecure or other.insecure,
        on_trial=one.on_trial or other.on_trial,
        keep=max(one.keep, other.keep),
        retries=max(strict.retries, mild.retries),
    )


def ensure(draft: PlanBuilder, source: ModelName, for_model: ModelName) -> bool:
    """Have `source` there before `for_model` is made from it; False, with a note, when that cannot be."""
    if source in draft.unusable:
        draft.give_up(for_model, f"made from '{source}', of which nothing can be planned")
        return False
    if draft.find(source) or source in draft.changing:
        return True
    base = draft.implicit(source)
    if base is None or not isinstance(base.spec.source, Pull):
        draft.give_up(for_model, f"made from '{source}', which is not there and will not be")
        return False
    add_pull(draft, base, base.spec.source, draft.why(source, "missing"))
    return ensure(draft, source, for_model)
