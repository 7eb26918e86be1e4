"""Plan pulls, undeclared bases, and copies: aliases, mirrors of a pulled reference, renames.

A model pulled under another reference is a copy of that reference's tag, which stays on the host. Two traps: an old
server rewrites the manifest that it pulls, so its digest is compared with a set of digests, or with what came out
when exactly this was pulled before; and an undeclared base is pulled without a fingerprint, so that it is never
remembered as ours and never pruned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from msgspec.structs import replace

from ollamaops.lockfile.build import NO_MODEL_HINT
from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.ollama.features import Endpoint
from ollamaops.plan.actions import CopyModel, HostPlan, PullModel, id_of
from ollamaops.plan.bases import is_strange, tell_of_stranger
from ollamaops.plan.comparison import Comparison, Differs, InSync, Unknown
from ollamaops.plan.costs import pull_cost
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.flaws import reason_unreadable
from ollamaops.plan.lookups import (
    Because,
    is_current,
    is_unusable,
    is_unwanted_stub,
    last_pulled,
    meets_pin,
    pins_of,
    remembered,
    tolerates_content,
    upstream_of,
)
from ollamaops.plan.observed import ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.templates import find_unlocked, say_unlocked
from ollamaops.plan.unclear import find_obstacle
from ollamaops.plan.versions import needs_verifying, versions_to_keep
from ollamaops.state.records import NO_FINGERPRINT

_STUB_HINT = (
    "delete it there, so that the model is pulled again; "
    "or name a cloud model by its own tag (…-cloud) to mean one"
)


def add_pull(builder: PlanBuilder, model: DesiredModel, pull: Pull, because: Because) -> bool:
    """Plan to pull `pull.ref`; False, with a note, when it cannot or may not be pulled."""
    refusal = _refusal(builder, model, pull)
    if refusal is not None:
        builder.give_up(model.name, *refusal, because=because)
        return False
    action = _pull_action(builder, model, pull, because)
    before = builder.actions.get(id_of(action))
    builder.add(_merge(before, action) if isinstance(before, PullModel) else action)
    if pull.ref == model.name:
        builder.add_verify(model, pull.ref)
    _tell_of_pin(builder, model)
    return True


def _tell_of_pin(builder: PlanBuilder, model: DesiredModel) -> None:
    """A pin is the registry's digest, and it does not tell what a server before 0.19 lists."""
    spec = model.spec
    is_known = builder.features.raw_registry_manifest or spec.accepts or upstream_of(model, builder.observed)
    if spec.digest and not is_known:
        builder.note(
            model.name,
            "servers before 0.19 list most pulled models under another digest than the registry's: "
            "without the registry's answer the pin may not be recognized, and the pull is then undone",
            "let the registry be asked, or lock the model: `ollamaops lock` writes down both digests",
        )


def _refusal(builder: PlanBuilder, model: DesiredModel, pull: Pull) -> tuple[str, str] | None:
    """What forbids the pull, and the way out."""
    if builder.features.suffix_routing and pull.ref.source_suffix == "local":
        found = f"cannot be pulled: servers from 0.18.0 on read '{pull.ref}' as '{pull.ref.pull_name}'"
        return found, "use another tag than local"
    if model.spec.update == "never":
        return "update: never forbids pulling it", "pull it by hand, or set update: missing"
    spec = model.spec
    is_set_aside = pins_of(spec) or needs_verifying(spec) or versions_to_keep(spec)
    endpoint: Endpoint | None = "copy" if is_set_aside and builder.find(pull.ref) else None
    obstacle = find_obstacle(pull.ref, builder.observed, endpoint)
    if obstacle is not None:
        return obstacle
    if builder.leaves_alone(pull.ref):
        return f"'{pull.ref}' would have to be pulled, but policy.ignore covers it", "take it out of ignore"
    answer = builder.observed.upstream.get(pull.ref)
    if answer is not None and answer.gone:
        asked = "if only the host may see it, --no-registry lets it try"
        return "its registry has no such model or tag", "; ".join(filter(None, (answer.hint, asked)))
    pins, upstream = pins_of(model.spec), upstream_of(model, builder.observed)
    if upstream is not None and upstream.foreign:
        return f"'{pull.ref}' is not an Ollama model: its registry has something else there", NO_MODEL_HINT
    if upstream is not None and pins and pins.isdisjoint(upstream.digests):
        pinned = model.spec.digest.hex if model.spec.digest else min(pins)
        return (
            f"pinned to {pinned[:12]}, but the registry now has {upstream.registry_digest[:12]}",
            "update digest: (or the lock) after a look at what changed, or push the pinned content again",
        )
    return None


def _pull_action(builder: PlanBuilder, model: DesiredModel, pull: Pull, because: Because) -> PullModel:
    upstream, pins = upstream_of(model, builder.observed), pins_of(model.spec)
    is_in_place = pull.ref == model.name
    if upstream and pins:
        pins |= upstream.digests  # the same content, as servers of other versions write it
    return PullModel(
        host=builder.host,
        model=pull.ref,
        because=because,
        expects=builder.expect(pull.ref),
        cost=pull_cost(pull.ref, builder.observed, builder.actions.values()),
        insecure=pull.insecure,
        registry_digest=upstream.registry_digest if upstream else "",
        current=tuple(sorted(upstream.digests)) if upstream else (),
        pin=tuple(sorted(pins)),
        verify=is_in_place and needs_verifying(model.spec),
        keep=versions_to_keep(model.spec) if is_in_place else 0,
        fingerprint=NO_FINGERPRINT if model.implicit else model.fingerprint,
        retries=model.spec.retries,
        template_change=builder.observed.template_changes.get(pull.ref, ()),
    )


def pin_to_registry(plan: HostPlan) -> HostPlan:
    """A saved plan brings what it said: each pull has to give what the registry had when it was made."""
    actions = (
        replace(action, pin=action.pin or action.current) if isinstance(action, PullModel) else action
        for action in plan.actions
    )
    return replace(plan, actions=tuple(actions))


def _merge(one: PullModel, other: PullModel) -> PullModel:
    """One pull that serves two entries, whichever came first. Two different pins are refused before."""
    strict, mild = sorted((one, other), key=lambda pull: (pull.pin, pull.fingerprint), reverse=True)
    return replace(
        strict,
        because=(*one.because, *other.because),
        insecure=one.insecure or other.insecure,
        verify=one.verify or other.verify,
        keep=max(one.keep, other.keep),
        retries=max(strict.retries, mild.retries),
    )


def ensure(builder: PlanBuilder, source: ModelName, for_model: ModelName, because: Because = ()) -> bool:
    """Have `source` there before `for_model`, which differs by `because`, is made from it; False, with a note, when
    that cannot be."""
    if source in builder.unusable:
        builder.give_up(for_model, f"made from '{source}', of which nothing can be planned", because=because)
        return False
    made = builder.desired.find(for_model)
    stub = builder.stub_at(source, made) if made else None
    if stub is not None and source not in builder.changing:
        builder.give_up(
            for_model, f"made from '{source}', which is {describe_stub(stub)}", _STUB_HINT, because=because
        )
        return False
    flaw = builder.flaw_of(source)
    if builder.is_pending(source) or (builder.find(source) and flaw is None):
        return True
    base = builder.implicit(source)
    if flaw is not None and base is None:
        builder.give_up(for_model, f"made from '{source}', and {flaw.words}", because=because)
        return False
    if base is None or not isinstance(base.spec.source, Pull):
        builder.give_up(
            for_model, f"made from '{source}', which is not there and will not be", because=because
        )
        return False
    add_pull(builder, base, base.spec.source, builder.damage(source) or builder.why(source, "missing"))
    return ensure(builder, source, for_model, because)


def add_copy(
    builder: PlanBuilder,
    model: DesiredModel,
    source: ModelName,
    because: Because,
    *,
    to: ModelName | None = None,
) -> bool:
    """Plan to make `model` (or `to`, which is then not remembered as ours) the same as `source`; False, with a note,
    when that cannot be."""
    name = to or model.name
    obstacle = find_obstacle(name, builder.observed, "copy")
    if obstacle is not None:
        builder.give_up(model.name, *obstacle, because=because)
        return False
    needs = builder.needs(source)
    if to is None and because[0].kind != "moved":
        builder.add_verify(model, source)
        needs = tuple(dict.fromkeys((*builder.needs(name), *needs)))
    builder.add(
        CopyModel(
            host=builder.host,
            model=name,
            source=source,
            because=because,
            needs=needs,
            expects=builder.expect(name, source),
            keep=0 if to else versions_to_keep(model.spec),
            fingerprint=NO_FINGERPRINT if to else model.fingerprint,
            retries=model.spec.retries,
        )
    )
    return True


def describe_stub(there: ObservedModel) -> str:
    """What is there instead of a model."""
    return f"a cloud stub for {there.stands_for}" if there.stands_for else "a cloud stub"


def rename(builder: PlanBuilder, model: DesiredModel) -> bool:
    """Plan to copy `model` from the name it had before; False when there is nothing to copy, or the wrong thing."""
    former = model.spec.moved_from
    before = builder.find(former)
    if former is None or before is None or builder.leaves_alone(former):
        return False
    if builder.stub_at(former, model) or builder.flaw_of(former):
        return False
    if model.spec.digest and not meets_pin(model, before, builder.observed):
        return False
    because = builder.why(model.name, "moved", desired=str(model.name), observed=str(former))
    add_copy(builder, model, former, because)
    return True


def plan_copy(builder: PlanBuilder, model: DesiredModel, source: ModelName) -> None:
    """Plan an alias, which has the digest of its source."""
    name, own = model.name, builder.find(model.name)
    if builder.find(source) is None and _stands_without_source(builder, model, source):
        return
    if not ensure(builder, source, name, builder.damage(name) if own else builder.why(name, "missing")):
        return
    match _compare_copy(builder, model, source):
        case InSync():
            builder.record_unchanged(model)
        case Unknown(waits_for=waits_for) if waits_for is not None:
            builder.wait(name, source, builder.flaw_of(name))
        case Differs(differences) if own is not None and model.spec.update == "never":
            builder.give_up(name, "update: never forbids replacing it", because=differences)
        case Differs(differences):
            if not is_strange(builder, source, model, differences):
                add_copy(builder, model, source, differences)
        case Unknown(why, hint):
            builder.doubt(name, why, hint)
        case never:
            assert_never(never)


def _stands_without_source(builder: PlanBuilder, model: DesiredModel, source: ModelName) -> bool:
    """Without its undeclared source an alias is what we remember to have made, or what it was under its old name."""
    own = builder.find(model.name)
    if builder.implicit(source) is None:
        return False
    if own is None:
        return rename(builder, model)
    if builder.flaw_of(model.name) is None and remembered(model, own, builder.observed):
        builder.record_unchanged(model)
        return True
    return False


def _compare_copy(builder: PlanBuilder, model: DesiredModel, source: ModelName) -> Comparison:
    own, origin = builder.find(model.name), builder.find(source)
    if own is None:
        return Differs(builder.why(model.name, "missing"))
    if is_unwanted_stub(model, own):
        return Differs(builder.why(model.name, "missing", observed=describe_stub(own)))
    flaw = builder.flaw_of(model.name)
    if flaw is not None and builder.is_pending(source):
        return Unknown(waits_for=source)
    if (broken := _compare_files(builder, own)) is not None:
        return broken
    if tolerates_content(model.spec):
        return InSync()
    if origin is not None and is_unwanted_stub(model, origin):
        return Unknown(waits_for=source)
    if source in builder.replaced:
        return Differs(builder.why(model.name, "base", desired=str(source)))
    if origin is None:
        return Unknown(waits_for=source)
    if own.digest == origin.digest:
        return InSync()
    wanted = f"{source} ({origin.digest[:12]})"
    return Differs(builder.why(model.name, "alias", "digest", desired=wanted, observed=own.digest[:12]))


def plan_pulls(builder: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Everything that is pulled. All pulls come before the copies of them, whichever entry asks for the pull."""
    copies = []
    for model in models:
        pull = model.spec.source
        if not isinstance(pull, Pull) or (builder.find(model.name) is None and rename(builder, model)):
            continue
        if pull.ref == model.name:
            _plan_pull(builder, model, pull)
        elif because := _plan_mirror(builder, model, pull):
            copies.append((model, pull, because))
    for model, pull, because in copies:
        add_copy(builder, model, pull.ref, because)


def _plan_pull(builder: PlanBuilder, model: DesiredModel, pull: Pull) -> None:
    match _compare_pull(builder, model, pull):
        case InSync():
            _settle(builder, model)
        case Differs(differences):
            if add_pull(builder, model, pull, differences):
                _stand_until_pulled(builder, model, differences)
        case Unknown(why, hint):
            builder.doubt(model.name, why, hint)
        case never:
            assert_never(never)


def _settle(builder: PlanBuilder, model: DesiredModel) -> None:
    """The content is as declared; the template that the server makes prompts with may not be the locked one."""
    tell_of_stranger(builder, model)
    own = builder.observed.shown.get(model.name)
    difference = find_unlocked(builder.host, model, own) if own else None
    if own is None or difference is None:
        builder.record_unchanged(model)
        return
    lock_it = f"ollamaops lock --update {model.name}"
    way_out = f"give the server OLLAMA_GO_TEMPLATE=1, or lock what it does now: {lock_it}"
    builder.cannot_mend(model.name, (difference,), say_unlocked(own), way_out)


def _plan_mirror(builder: PlanBuilder, model: DesiredModel, pull: Pull) -> Because:
    """Pull the reference if need be; returns why the name must become a copy of it, nothing when it need not."""
    own, source = builder.find(model.name), builder.find(pull.ref)
    is_at_hand = source is not None and _is_good(builder, model, pull, source)
    if own is None and is_at_hand:
        return builder.why(model.name, "missing")
    match _compare_pull(builder, model, pull):
        case InSync() if own and source and _has_moved(builder, model, own, source):
            return builder.why(model.name, "alias", desired=str(pull.ref), observed=own.digest[:12])
        case InSync():
            _settle(builder, model)
            return ()
        case Differs(differences):
            if not is_at_hand and not add_pull(builder, model, pull, differences):
                return ()
            # whether the pull brings anything new is seen in the next look
            return () if _stand_until_pulled(builder, model, differences) else differences
        case Unknown(why, hint):
            builder.doubt(model.name, why, hint)
            return ()
        case never:
            assert_never(never)


def _stand_until_pulled(builder: PlanBuilder, model: DesiredModel, because: Because) -> bool:
    """Whether the pull is only to find out if there is something newer. Until then the model is what it was when the
    host pulled it last."""
    own = builder.find(model.name)
    if own is None or any(why.kind != "unknown" for why in because):
        return False
    if at := last_pulled(model, own, builder.observed):
        builder.record_unchanged(model)
        builder.note(
            model.name,
            f"was the latest when it was pulled ({at}); its registry is not asked now",
            "ollamaops apply --no-registry has the host pull it again",
        )
    else:
        builder.wait_for_pull(model.name)
    return True


def _is_good(builder: PlanBuilder, model: DesiredModel, pull: Pull, source: ObservedModel) -> bool:
    """Whether what is under the reference's tag may be copied."""
    if is_unusable(source, builder.observed) or is_unwanted_stub(model, source):
        return False
    if builder.flaw_of(source.name):
        return False
    if pins_of(model.spec):
        return meets_pin(model, source, builder.observed)
    if model.spec.update != "latest":
        return True
    return is_current(model, source, builder.observed) or _was_just_pulled(builder, pull)


def _was_just_pulled(builder: PlanBuilder, pull: Pull) -> bool:
    """Whether this run had the server pull it, which is all that is wanted when no registry is asked from here."""
    return not builder.options.ask_registry and pull.ref in builder.options.distrust


def _has_moved(builder: PlanBuilder, model: DesiredModel, own: ObservedModel, source: ObservedModel) -> bool:
    """Whether the name must follow the reference's tag: not what was copied there, and not good by itself either."""
    if own.digest == source.digest or model.spec.digest or tolerates_content(model.spec):
        return False
    if is_unwanted_stub(model, source) or builder.flaw_of(source.name):
        return False
    match model.spec.update:
        case "never":
            return False
        case "latest":
            return _was_just_pulled(builder, Pull(ref=source.name))
        case "missing" | "locked":
            return not remembered(model, own, builder.observed)
        case _:
            assert_never(model.spec.update)


def _compare_pull(builder: PlanBuilder, model: DesiredModel, pull: Pull) -> Comparison:
    own, pin = builder.find(model.name), model.spec.digest
    if own is None:
        return Differs(builder.why(model.name, "missing"))
    if is_unusable(own, builder.observed):
        return Differs(builder.why(model.name, "missing", observed="listed, but it cannot be opened"))
    if is_unwanted_stub(model, own):
        return Differs(builder.why(model.name, "missing", observed=describe_stub(own)))
    if (broken := _compare_files(builder, own)) is not None:
        return broken
    if tolerates_content(model.spec):
        return InSync()
    if pin is not None and is_partly(own, pins_of(model.spec)):
        return _partly(own, "pinned")
    if pin is not None and not meets_pin(model, own, builder.observed):
        return Differs(builder.why(model.name, "content", desired=pin.hex, observed=own.digest))
    if pin is None and model.spec.update == "latest":
        return _compare_with_latest(builder, model, pull, own)
    return InSync()


def _compare_files(builder: PlanBuilder, own: ObservedModel) -> Differs | Unknown | None:
    """Whether the model is broken, or cannot be opened for another reason; None: neither is known."""
    damage, unreadable = builder.damage(own.name), reason_unreadable(own, builder.observed)
    if damage:
        return Differs(damage)
    if unreadable is not None:
        return Unknown(
            f"it cannot be opened: {unreadable.words}",
            f"it may need a newer Ollama than {builder.observed.version}: upgrade this host",
        )
    return None


def is_partly(own: ObservedModel, wanted: frozenset[str]) -> bool:
    """Whether a name that is listed several times has some of the wanted contents and others beside them."""
    return not own.digests.isdisjoint(wanted) and not own.digests <= wanted


def _partly(own: ObservedModel, where: str) -> Unknown:
    return Unknown(
        f"listed with {len(own.digests)} contents, not all of which are {where}",
        "the server has made one itself, or kept an old one: delete it there to have it pulled anew",
    )


def _compare_with_latest(
    builder: PlanBuilder, model: DesiredModel, pull: Pull, own: ObservedModel
) -> Comparison:
    if is_current(model, own, builder.observed) or _was_just_pulled(builder, pull):
        return InSync()
    if not builder.options.ask_registry:
        return Differs(builder.why(model.name, "unknown", desired="latest"))
    known = upstream_of(model, builder.observed)
    if known is not None and is_partly(own, known.digests):
        return _partly(own, "in its registry")
    if known is not None:
        return Differs(builder.why(model.name, "content", desired=known.registry_digest, observed=own.digest))
    answer = builder.observed.upstream.get(pull.ref)
    if answer is not None and answer.gone:
        return Unknown(
            "whether it is the latest is not known: its registry has no such tag any more", answer.hint
        )
    error = answer.error if answer else "the registry was not asked"
    return Unknown(
        f"whether it is the latest is not known: {error}",
        "use --no-registry to let the servers ask it, or update: missing",
    )
