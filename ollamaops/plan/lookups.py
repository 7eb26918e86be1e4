"""What tags, memory and registry digests settle, and what else has to be looked up before a plan can be made.

A model whose tags digest is the one that we remember, with a verdict that still holds (verdict.py), is in sync and
not looked into, so a steady host costs no `show` at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import Difference
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.diff import ignores_weights
from ollamaops.plan.flaws import layers_of
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.plan.verdict import holds, is_known_to_hold, is_remembered
from ollamaops.plan.versions import needs_verifying, previous_of
from ollamaops.state.records import ModelRecord

Because = tuple[Difference, ...]


class PlanOptions(Struct, frozen=True, kw_only=True):
    """How to plan.

    `distrust` are models that this run has just changed, so what we remember of them does not count; `made` those of
    them that it built. `ask_registry` False takes the server's word for `latest`. `residency_done` are models that
    this run has loaded or unloaded already. `evicted` are those that did not stay in memory after the last run had
    loaded them, each with what was declared resident beside it. `release` forgets rollbacks.
    `look_inside` shows also what memory or tags settle, to see which template makes its prompts.
    """

    verify_weights: bool = False
    ask_registry: bool = True
    distrust: frozenset[ModelName] = frozenset()
    made: frozenset[ModelName] = frozenset()
    residency_done: frozenset[ModelName] = frozenset()
    evicted: Mapping[ModelName, frozenset[ModelName]] = field(default_factory=dict)
    release: bool = False
    look_inside: bool = False


class Lookups(Struct, frozen=True, kw_only=True):
    """What has to be found out before a plan can be made: models to `show`, registry names to ask for.

    `open` are models that have to be looked into only to see which weights layers they have, or why they can do
    nothing; what else is in them is not compared.
    """

    show: frozenset[ModelName] = frozenset()
    open: frozenset[ModelName] = frozenset()
    upstream: frozenset[ModelName] = frozenset()


def lookups(desired: DesiredHost, observed: ObservedHost, options: PlanOptions) -> Lookups:
    """What `plan_host` needs to know beyond tags and memory."""
    models = [
        model
        for model in desired.models
        if not is_left_alone(desired, model.name) and (options.release or not is_rolled_back(model, observed))
    ]
    upstream = {name for model in models for name in _to_ask(model, desired, observed)}
    return Lookups(
        show=frozenset(name for model in models for name in _to_show(model, desired, observed, options)),
        open=frozenset(name for model in models for name in _to_open(model, desired, observed)),
        upstream=frozenset(upstream) if options.ask_registry else frozenset(),
    )


def _to_show(
    model: DesiredModel, desired: DesiredHost, observed: ObservedHost, options: PlanOptions
) -> Iterator[ModelName]:
    """The model and its base, if it is built, there, and not settled by memory. Cloud stubs have no inside."""
    place = place_of(model, desired, observed)
    is_settled = not (model.recipe or model.spec.templates) or is_trusted(model, observed, options, place)
    if place is None or (is_settled and not options.look_inside):
        return
    base = model.recipe.base if model.recipe else None
    for name in (place, _base_place(base, desired, observed)):
        there = observed.models.get(name) if name else None
        if there and not there.is_cloud:
            yield there.name


def _to_open(model: DesiredModel, desired: DesiredHost, observed: ObservedHost) -> Iterator[ModelName]:
    """The model, and what it is a copy of, as long as their weights layers are not known or they can do nothing."""
    source = model.spec.source
    place = place_of(model, desired, observed)
    own = observed.models.get(place) if place else None
    mirrored = observed.models.get(source.ref) if isinstance(source, Pull) else None
    if mirrored and own and mirrored.digest == own.digest:
        mirrored = None
    for there in (own, mirrored):
        if there and not there.is_cloud and (not there.is_able or layers_of(there, observed) is None):
            yield there.name


def _base_place(base: ModelName | None, desired: DesiredHost, observed: ObservedHost) -> ModelName | None:
    """Where the base is, which may have to be renamed itself."""
    model = desired.find(base)
    return place_of(model, desired, observed) if model else base


def _to_ask(model: DesiredModel, desired: DesiredHost, observed: ObservedHost) -> Iterator[ModelName]:
    spec, own = model.spec, observed.models.get(model.name)
    if isinstance(spec.source, Pull) and _is_open(model, own, observed):
        yield spec.source.ref
    if spec.push and own and model.name in desired.pushes:
        yield spec.push
        if isinstance(spec.source, Pull) and not (spec.accepts or is_pushed(spec, own, observed)):
            yield spec.source.ref  # it can tell that the registry has the same content in another layout
    base = desired.find(model.made_from)
    if base and isinstance(base.spec.source, Pull) and strange_content(base, model, observed):
        yield base.spec.source.ref


def _is_open(model: DesiredModel, own: ObservedModel | None, observed: ObservedHost) -> bool:
    """Whether only the registry can tell if a pulled model is what it should be."""
    spec = model.spec
    if own is None:
        return bool(pins_of(spec)) and spec.update != "never" and not model.implicit
    if tolerates_content(spec):
        return False
    if spec.digest is not None:
        return not meets_pin(model, own, observed)
    return spec.update == "latest"


def is_left_alone(desired: DesiredHost, name: ModelName) -> bool:
    """Whether policy.ignore says that `name` is never looked at."""
    return any(pattern.matches(name) for pattern in desired.policy.ignore)


def place_of(model: DesiredModel, desired: DesiredHost, observed: ObservedHost) -> ModelName | None:
    """Where the model is: under its name, or still under the one it had before. None: it is not there."""
    return model.name if model.name in observed.models else former_of(model, desired, observed)


def former_of(model: DesiredModel, desired: DesiredHost, observed: ObservedHost) -> ModelName | None:
    """The name that the model had before, if something is there that may be renamed."""
    former = model.spec.moved_from
    before = observed.models.get(former) if former else None
    if before is None or is_unwanted_stub(model, before) or is_left_alone(desired, before.name):
        return None
    return former


def is_unwanted_stub(model: DesiredModel, there: ObservedModel) -> bool:
    """Whether what is there only sends prompts elsewhere, which nobody has declared: whatever it is called, it is
    not what is meant, and nothing is made from it."""
    return there.is_cloud and not model.in_cloud


def is_trusted(
    model: DesiredModel, observed: ObservedHost, options: PlanOptions, place: ModelName | None = None
) -> bool:
    """Whether what we remember settles that `model` is in sync, without a look inside. `place` is where it is found
    if it still has the name it had before."""
    place = place or model.name
    own, memory = observed.models.get(place), observed.memory.get(place)
    if own is None or memory is None or place in options.distrust or is_unwanted_stub(model, own):
        return False
    if options.verify_weights and not memory.weights_verified:
        return False
    return holds(memory, model, observed.features) and is_as_made(model, observed, place)


def is_as_made(model: DesiredModel, observed: ObservedHost, place: ModelName) -> bool:
    """Whether what is at `place` is what we remember of this declaration, and its base is the same as then."""
    own, memory = observed.models.get(place), observed.memory.get(place)
    if own is None or memory is None or not is_remembered(memory, model, own.digest):
        return False
    base = observed.models.get(model.recipe.base) if model.recipe and model.recipe.base else None
    if base is not None and is_unwanted_stub(model, base):
        return False
    return base is None or memory.base_digest == base.digest


def remembered(model: DesiredModel, own: ObservedModel, observed: ObservedHost) -> list[ModelRecord]:
    """What was filed when exactly this content was pulled or copied for exactly this declaration."""
    source = model.spec.source
    names = (model.name, source.ref) if isinstance(source, Pull) else (model.name,)
    found = (observed.memory.get(name) for name in dict.fromkeys(names))
    return [
        memory
        for memory in found
        if memory and memory.digest == own.digest and memory.is_applied_for(model.fingerprint)
    ]


def last_pulled(model: DesiredModel, own: ObservedModel, observed: ObservedHost) -> str:
    """When the host pulled exactly this content for exactly this declaration; "" if that is not known."""
    return max((each.at for each in remembered(model, own, observed) if each.how == "pulled"), default="")


def upstream_of(model: DesiredModel, observed: ObservedHost) -> RegistryAnswer | None:
    """What the registry is known to have for a pull; None if it was not asked or could not say."""
    source = model.spec.source
    upstream = observed.upstream.get(source.ref) if isinstance(source, Pull) else None
    return upstream if upstream and not upstream.error else None


def pins_of(spec: ModelSpec) -> frozenset[str]:
    """The tags digests one of which a pull has to give: of the manifest's pin, of the lock; none: any."""
    return frozenset((*spec.accepts, spec.digest.hex) if spec.digest else spec.accepts)


def meets_pin(model: DesiredModel, own: ObservedModel, observed: ObservedHost) -> bool:
    """Whether `own` is the pinned content: by its digest, by memory, or as an older server writes it."""
    pins = pins_of(model.spec)
    if own.digests <= pins:
        return True
    if model.spec.digest and any(memory.weights_verified for memory in remembered(model, own, observed)):
        return True
    upstream = upstream_of(model, observed)
    return upstream is not None and own.digests <= upstream.digests and not pins.isdisjoint(upstream.digests)


def is_current(model: DesiredModel, own: ObservedModel, observed: ObservedHost) -> bool:
    """Whether `own` is what the registry has: by its digest, or because pulling exactly that gave it."""
    upstream = upstream_of(model, observed)
    if upstream is None:
        return False
    made_of = {memory.base_digest for memory in remembered(model, own, observed)}
    return own.digests <= upstream.digests or upstream.registry_digest in made_of


def strange_content(base: DesiredModel, model: DesiredModel, observed: ObservedHost) -> str:
    """The digest of what a pulled `base` was when it was pulled, or when `model` was made from it, if something else
    is there now and nothing says that it is wanted: no pin, no lock, no registry. Else empty.

    An undeclared base is whatever is there, unless its registry has something else.
    """
    own, spec = observed.models.get(base.name), base.spec
    if own is None or not isinstance(spec.source, Pull) or tolerates_content(spec):
        return ""
    if is_current(base, own, observed) or (pins_of(spec) and meets_pin(base, own, observed)):
        return ""
    if base.implicit and upstream_of(base, observed) is None:
        return ""
    pulled, made = observed.memory.get(base.name), observed.memory.get(model.name)
    known = [pulled.digest if pulled else "", (made.base_digest if made else None) or ""]
    known = [digest for digest in known if digest]
    if len(own.digests) > 1:
        return ""  # which of several contents was pulled is not told
    return known[0] if known and own.digest not in known else ""


def is_pushed(spec: ModelSpec, own: ObservedModel, observed: ObservedHost) -> bool:
    """Whether exactly this content was pushed to where it should be, as far as we remember."""
    return own.digest in pushed_digests(spec, observed)


def pushed_digests(spec: ModelSpec, observed: ObservedHost) -> frozenset[str]:
    """The digests of what we remember to have pushed last: on the host, and in the registry if that was seen."""
    return observed.pushed.get((spec.name, spec.push), frozenset()) if spec.push else frozenset()


def tolerates_content(spec: ModelSpec) -> bool:
    """Whether `ignore` allows any content, as long as a model of that name is there."""
    return ignores_weights(spec.ignore)


def rollback_key_of(model: DesiredModel) -> str:
    """What a rollback is remembered under. It changes when the entry says something else about content or updates."""
    spec = model.spec
    words = [str(model.fingerprint), str(spec.digest or ""), spec.update, *sorted(spec.accepts)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def is_rolled_back(model: DesiredModel, observed: ObservedHost) -> bool:
    """Whether the model was rolled back to what it is now, and its entry has not changed since."""
    own, memory = observed.models.get(model.name), observed.memory.get(model.name)
    if own is None or memory is None or memory.status != "rolled_back":
        return False
    return memory.digest == own.digest and memory.entry == rollback_key_of(model)


def is_unusable(own: ObservedModel, observed: ObservedHost) -> bool:
    """Whether the run that pulled this content found that the server cannot open it."""
    memory = observed.memory.get(own.name)
    return memory is not None and memory.digest == own.digest and memory.status == "unusable"


def awaits_verifying(model: DesiredModel, observed: ObservedHost) -> bool:
    """Whether the model was never seen to do what is expected of it: this content, on this version of the server.

    A model without expectations only awaits it if a run ended after pulling it and before verifying it: memory says
    so, or what was set aside.
    """
    name = model.name
    own, memory = observed.models.get(name), observed.memory.get(name)
    if own is None or not needs_verifying(model.spec):
        return False
    if model.spec.expect:
        return not is_known_to_hold(model, own.digest, observed)
    if memory is not None and memory.status == "unverified" and memory.digest in ("", own.digest):
        return True
    aside = observed.set_aside.get(previous_of(name))
    return aside is not None and aside != own.digest
