"""Plan pulls, the bases that nobody declared, and copies: aliases, mirrors of a pulled reference, renames.

A model pulled under another reference is a copy of that reference's tag, which stays on the host. Two traps: an old
server rewrites the manifest that it pulls, so its digest is compared with a set of digests, or with what came out
when exactly this was pulled before; and an undeclared base is pulled without a fingerprint, so that it is never
remembered as ours and never pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from ollamaops.lockfile.build import NO_MODEL_HINT
from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import CopyModel, Cost, HostPlan, PullModel, id_of
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import (
    Because,
    awaits_proof,
    is_current,
    is_unusable,
    meets_pin,
    pins_of,
    remembered,
    tolerates_content,
    upstream_of,
)
from ollamaops.plan.observed import ObservedModel, RegistryAnswer
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.versions import is_proven_first
from ollamaops.state.records import NO_FINGERPRINT


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
        draft.add_probe(model, pull.ref)
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
        fingerprint=NO_FINGERPRINT if model.implicit else model.fingerprint,
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


def add_copy(
    draft: PlanBuilder,
    model: DesiredModel,
    source: ModelName,
    because: Because,
    *,
    to: ModelName | None = None,
) -> None:
    """Plan to make `model` (or `to`, which is then not remembered as ours) the same as `source`."""
    name = to or model.name
    needs = draft.needs(source)
    if to is None and because[0].kind != "moved":
        draft.add_probe(model, source)
        needs = tuple(dict.fromkeys((*draft.needs(name), *needs)))
    draft.add(
        CopyModel(
            host=draft.host,
            model=name,
            source=source,
            because=because,
            needs=needs,
            expects=draft.expect(name, source),
            keep=0 if to else model.spec.keep_previous,
            fingerprint=NO_FINGERPRINT if to else model.fingerprint,
            retries=model.spec.retries,
        )
    )


def rename(draft: PlanBuilder, model: DesiredModel) -> bool:
    """Plan to copy `model` from the name it had before; False when there is nothing to copy, or the wrong thing."""
    former = model.spec.moved_from
    before = draft.find(former)
    if former is None or before is None or draft.leaves_alone(former):
        return False
    if model.spec.digest and not meets_pin(model, before, draft.observed):
        return False
    because = draft.why(model.name, "moved", desired=str(model.name), observed=str(former))
    add_copy(draft, model, former, because)
    return True


def plan_copy(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> None:
    """An alias has the digest of its source."""
    name, own = model.name, draft.find(model.name)
    if draft.find(source) is None and _is_settled(draft, model, source):
        return
    if not ensure(draft, source, name):
        return
    because = _copy_reasons(draft, model, source)
    if because is None:
        draft.wait(name, source)
    elif not because:
        draft.keep(model)
    elif own is not None and model.spec.update == "never":
        draft.give_up(name, "another model than its source, and update: never forbids replacing it")
    else:
        add_copy(draft, model, source, because)


def _is_settled(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> bool:
    """Without its undeclared source an alias is what we remember to have made, or what it was under its old name."""
    own = draft.find(model.name)
    if draft.implicit(source) is None:
        return False
    if own is None:
        return rename(draft, model)
    if remembered(model, own, draft.observed):
        draft.keep(model)
        return True
    return False


def _copy_reasons(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> Because | None:
    """Why the alias must be set; None while its source is on its way."""
    own, origin = draft.find(model.name), draft.find(source)
    if own is None:
        return draft.why(model.name, "missing")
    if tolerates_content(model.spec):
        return ()
    if source in draft.replaced:
        return draft.why(model.name, "base", desired=str(source))
    if origin is None:
        return None
    if own.digest == origin.digest:
        return ()
    wanted = f"{source} ({origin.digest[:12]})"
    return draft.why(model.name, "alias", "digest", desired=wanted, observed=own.digest[:12])


def plan_pulls(draft: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Everything that is pulled. All pulls come before the copies of them, whichever entry asks for the pull."""
    copies = []
    for model in models:
        pull = model.spec.source
        if not isinstance(pull, Pull) or (draft.find(model.name) is None and rename(draft, model)):
            continue
        if pull.ref == model.name:
            _plan_pull(draft, model, pull)
        elif because := _plan_mirror(draft, model, pull):
            copies.append((model, pull, because))
    for model, pull, because in copies:
        add_copy(draft, model, pull.ref, because)


def _plan_pull(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> None:
    because = _pull_reasons(draft, model, pull)
    if because:
        add_pull(draft, model, pull, because)
    elif because is not None and awaits_proof(model, draft.observed):
        draft.add_probe(model, pull.ref, draft.why(model.name, "unproven"))
    elif because is not None:
        draft.keep(model)


def _plan_mirror(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> Because:
    """Pull the reference if need be; returns why the name must become a copy of it, nothing when it need not."""
    own, source = draft.find(model.name), draft.find(pull.ref)
    is_at_hand = source is not None and _is_good(draft, model, pull, source)
    if own is None and is_at_hand:
        return draft.why(model.name, "missing")
    because = _pull_reasons(draft, model, pull)
    if because is None:
        return ()
    if because and not is_at_hand and not add_pull(draft, model, pull, because):
        return ()
    if any(reason.kind == "unknown" for reason in because):
        return ()  # after the pull somebody looks again
    if not because and own and source and _has_moved(draft, model, own, source):
        because = draft.why(model.name, "alias", desired=str(pull.ref), observed=own.digest[:12])
    if not because:
        draft.keep(model)
    return because


def _is_good(draft: PlanBuilder, model: DesiredModel, pull: Pull, source: ObservedModel) -> bool:
    """Whether what the reference's tag holds may be copied from."""
    if is_unusable(source, draft.observed):
        return False
    if pins_of(model.spec):
        return meets_pin(model, source, draft.observed)
    if model.spec.update != "latest":
        return True
    return is_current(model, source, draft.observed) or _was_just_pulled(draft, pull)


def _was_just_pulled(draft: PlanBuilder, pull: Pull) -> bool:
    """Whether this run had the server pull it, which is all that is wanted when no registry is asked from here."""
    return not draft.options.ask_registry and pull.ref in draft.options.distrust


def _has_moved(draft: PlanBuilder, model: DesiredModel, own: ObservedModel, source: ObservedModel) -> bool:
    """Whether the name must follow the reference's tag: not what was copied there, and not good by itself either."""
    if own.digest == source.digest or model.spec.digest or tolerates_content(model.spec):
        return False
    match model.spec.update:
        case "never":
            return False
        case "latest":
            return _was_just_pulled(draft, Pull(ref=source.name))
        case "missing" | "locked":
            return not remembered(model, own, draft.observed)
        case _:
            assert_never(model.spec.update)


def _pull_reasons(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> Because | None:
    """Why `model` must be pulled; None, with a note, when that cannot be told."""
    own, pin = draft.find(model.name), model.spec.digest
    if own is None:
        return draft.why(model.name, "missing")
    if is_unusable(own, draft.observed):
        return draft.why(model.name, "missing", observed="listed, but it cannot be opened")
    if tolerates_content(model.spec):
        return ()
    if pin is not None:
        is_met = meets_pin(model, own, draft.observed)
        return () if is_met else draft.why(model.name, "content", desired=pin.hex, observed=own.digest)
    return _latest_reasons(draft, model, pull, own) if model.spec.update == "latest" else ()


def _latest_reasons(
    draft: PlanBuilder, model: DesiredModel, pull: Pull, own: ObservedModel
) -> Because | None:
    if is_current(model, own, draft.observed) or _was_just_pulled(draft, pull):
        return ()
    if not draft.options.ask_registry:
        return draft.why(model.name, "unknown", desired="latest")
    known = upstream_of(model, draft.observed)
    if known is not None:
        return draft.why(model.name, "content", desired=known.registry_digest, observed=own.digest)
    answer = draft.observed.upstream.get(pull.ref)
    error = answer.error if answer else "the registry was not asked"
    hint = "use --no-registry to let the servers ask it, or update: missing"
    draft.doubt(model.name, f"whether it is the latest is not known: {error}", hint)
    return None
