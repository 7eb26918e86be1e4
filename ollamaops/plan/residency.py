"""Plan what is loaded into memory or dropped from it, once everything else is done.

A model that this run has loaded and that is gone again was evicted by the next one. It is reported and not loaded
once more, in later runs neither, as long as the same models are declared and in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from msgspec.structs import replace

from ollamaops.manifest.types import ModelSpec
from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import Features
from ollamaops.plan.actions import LoadModel, UnloadModel, UploadBlob
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import is_left_alone
from ollamaops.plan.observed import Loaded, ObservedHost, ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.units import format_size

FOREVER = -1.0
# why a model has to be loaded → what is said of it
LoadReason = Literal["absent", "changing", "stale", "too short", "too long"]
LOAD_REASONS: Mapping[LoadReason, str] = {
    "absent": "not in memory",
    "changing": "its content changes",
    "stale": "an older content is in memory",
    "too short": "in memory for a while only",
    "too long": "in memory for good",
}
# what servers up to 0.33 start a runner anew for, besides other weights and adapters
_RUNNER_OPTIONS = (
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock"),
    *("low_vram", "f16_kv", "logits_all", "vocab_only", "numa"),
)


def wants_loaded(spec: ModelSpec) -> bool:
    """Whether the model is declared to be in memory; a duration of 0 means the same as false."""
    return bool(spec.resident)


def keep_alive_of(spec: ModelSpec) -> float:
    """For how many seconds after its last use the model is to stay in memory; negative: for ever."""
    return FOREVER if spec.resident is True else float(spec.resident or 0)


def wants_unloaded(spec: ModelSpec) -> bool:
    """Whether the model is declared not to be in memory."""
    return spec.resident is not None and not spec.resident


def kept_loaded(specs: Iterable[ModelSpec]) -> frozenset[ModelName]:
    """The names under which models are in memory because they are declared to be, which says nothing of their use."""
    names = ((spec.name, spec.moved_from) for spec in specs if wants_loaded(spec))
    return frozenset(name for pair in names for name in pair if name)


def is_managed(desired: DesiredHost) -> bool:
    """Whether the host has to be asked what is in its memory."""
    return bool(managed_of(desired))


def residents_of(desired: DesiredHost) -> tuple[ModelName, ...]:
    """Every model that is declared to be in memory."""
    wanted = (model.name for model in desired.models if wants_loaded(model.spec))
    return tuple(name for name in wanted if not is_left_alone(desired, name))


def managed_of(desired: DesiredHost) -> tuple[ModelName, ...]:
    """Every model that is declared to be in memory, or not to be."""
    declared = (model.name for model in desired.models if model.spec.resident is not None)
    return tuple(name for name in declared if not is_left_alone(desired, name))


def to_compare(residents: Iterable[ModelName], observed: ObservedHost) -> frozenset[ModelName]:
    """Models to look into, to see whether one of `residents` that is not listed shares the runner of one that is."""
    found = [observed.models[name] for name in residents if name in observed.models]
    hidden = {own.name for own in found if not own.is_cloud and not _serving(observed, own)}
    listed = {one.name for one in observed.loaded or () if _is_current(one, observed)}
    return frozenset(hidden | listed) if hidden and listed else frozenset()


def with_sharers(
    residents: Iterable[ModelName], loaded: Iterable[Loaded], inside: Mapping[ModelName, Contents]
) -> tuple[Loaded, ...]:
    """What is loaded, each with the residents that would use its runner; `inside` is what was looked into."""
    names = [name for name in residents if name in inside]
    return tuple(_with_sharers(one, names, inside) for one in loaded)


def _with_sharers(one: Loaded, names: Iterable[ModelName], inside: Mapping[ModelName, Contents]) -> Loaded:
    own = inside.get(one.name)
    if own is None or own.digest != one.digest:
        return one
    sharers = (name for name in names if name != one.name and share_runner(inside[name], own))
    return replace(one, also=frozenset(sharers))


def share_runner(one: Contents, other: Contents) -> bool:
    """Whether a server uses one runner for both: the same weights, adapters and options of loading."""
    if not one.blobs or (one.blobs, one.adapters) != (other.blobs, other.adapters):
        return False
    return all(one.parameters.get(name) == other.parameters.get(name) for name in _RUNNER_OPTIONS)


def _is_current(one: Loaded, observed: ObservedHost) -> bool:
    there = observed.models.get(one.name)
    return there is not None and there.digest == one.digest


def _serving(observed: ObservedHost, own: ObservedModel) -> list[Loaded]:
    return [one for one in observed.loaded or () if one.serves(own.name, own.digest)]


def plan_residency(builder: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Load and unload what the declaration says. Those that stay for ever come last: they may share a runner."""
    if builder.observed.loaded is None:
        return
    for model in sorted(models, key=lambda model: model.spec.resident is True):
        if wants_loaded(model.spec):
            _plan_load(builder, model)
        elif wants_unloaded(model.spec):
            _plan_unload(builder, model)


def _plan_load(builder: PlanBuilder, model: DesiredModel) -> None:
    name = model.name
    if builder.find(name) is None and name not in builder.changing:
        return  # why it is not there has been said
    problem = cannot_stay(name, None if name in builder.changing else builder.find(name), builder.features)
    if problem is not None:
        builder.note(name, problem, "leave out resident")
        return
    why = _why_load(builder, model)
    if why is None:
        _note_leftovers(builder, name)
    elif name in builder.options.residency_done or (why == "absent" and _would_be_evicted(builder, name)):
        _report_eviction(builder, model, why)
    else:
        builder.add(
            LoadModel(
                host=builder.host,
                model=name,
                because=builder.why(name, "resident", desired="in memory", observed=LOAD_REASONS[why]),
                needs=_everything_about(builder, name),
                expects=builder.expect(name),
                keep_alive_s=keep_alive_of(model.spec),
                retries=model.spec.retries,
            )
        )


def cannot_stay(name: ModelName, own: ObservedModel | None, features: Features) -> str | None:
    """Why a model cannot be kept in memory; None if it can. `own` is what the host has under that name."""
    if (own and own.is_cloud) or (features.suffix_routing and name.source_suffix == "cloud"):
        return "runs on ollama.com, so it cannot be kept in this host's memory"
    if features.suffix_routing and name.source_suffix == "local":
        return f"cannot be loaded: servers from 0.18.0 on would load '{name.pull_name}' instead"
    return None


def _why_load(builder: PlanBuilder, model: DesiredModel) -> LoadReason | None:
    """What is not as declared; None if it is in memory, for as long as is wanted."""
    own = builder.find(model.name)
    if own is None:
        return "absent"
    if model.name in builder.replaced:
        return "changing"
    serving = _serving(builder.observed, own)
    if not serving:
        is_stale = any(one.name == own.name for one in builder.observed.loaded or ())
        return "stale" if is_stale else "absent"
    if model.spec.resident is True:
        return None if any(one.is_forever for one in serving) else "too short"
    is_too_long = all(one.is_forever and not _is_kept_for_another(builder, one) for one in serving)
    return "too long" if is_too_long else None


def _is_kept_for_another(builder: PlanBuilder, one: Loaded) -> bool:
    """Whether a model that is declared to stay for ever uses this runner too."""
    lasting = (builder.find(model.name) for model in builder.desired.models if model.spec.resident is True)
    return any(other and one.serves(other.name, other.digest) for other in lasting)


def _would_be_evicted(builder: PlanBuilder, name: ModelName) -> bool:
    """Whether all is as it was when the last run loaded it and the others drove it out again."""
    residents = (model.name for model in builder.desired.declared if wants_loaded(model.spec))
    beside = frozenset(other for other in residents if other != name and not builder.leaves_alone(other))
    others = [own for other in beside - builder.options.evicted.keys() if (own := builder.find(other))]
    is_same = builder.options.evicted.get(name) == beside and name not in builder.changing
    return is_same and bool(others) and all(_serving(builder.observed, own) for own in others)


def _everything_about(builder: PlanBuilder, name: ModelName) -> tuple[str, ...]:
    """The actions on the model that come before: it is loaded when it is what it should be, and verified."""
    return tuple(
        action_id
        for action_id, action in builder.actions.items()
        if action.model == name and not isinstance(action, UploadBlob)
    )


def _report_eviction(builder: PlanBuilder, model: DesiredModel, why: LoadReason) -> None:
    """This run or the last one has loaded it: to do so again would evict another one."""
    others = [one for one in builder.observed.loaded or () if one.name != model.name]
    listed = ", ".join(f"{one.name} ({format_size(one.size_bytes)})" for one in others)
    said = f"; in memory now: {listed}" if listed else ""
    if why == "absent":
        builder.doubt(
            model.name,
            f"was loaded, and is not in memory any more: evicted{said}",
            "they do not fit together: declare fewer models resident, or raise OLLAMA_MAX_LOADED_MODELS "
            "and restart the server",
        )
    else:
        builder.doubt(
            model.name,
            f"was loaded, but: {LOAD_REASONS[why]}{said}",
            "look at what else uses it, then run again",
        )


def in_use(
    names: Iterable[ModelName], kept: Collection[ModelName], observed: ObservedHost
) -> frozenset[ModelName]:
    """Which of `names` may be in use: their own name is in memory, or one that shares their weights. A runner that is
    there because a model is `kept` in memory says nothing of use."""
    digests = {name: own.digest for name, own in observed.models.items()}

    def runs(one: Loaded, name: ModelName) -> bool:
        return one.name == name or one.serves(name, digests.get(name, ""))

    used = [one for one in observed.loaded or () if not any(runs(one, name) for name in kept)]
    return frozenset(name for name in names if any(runs(one, name) for one in used))


def _plan_unload(builder: PlanBuilder, model: DesiredModel) -> None:
    """Nothing is unloaded that another model which shares its weights is declared to have in memory."""
    name, own = model.name, builder.find(model.name)
    loaded = builder.observed.loaded or ()
    if own is None:
        return
    by_name = [one for one in loaded if _is_listed_as(own, one, builder)]
    runners = [one for one in loaded if one in by_name or one.serves(name, own.digest)]
    if not runners:
        return
    residents = (other.name for other in builder.desired.declared if wants_loaded(other.spec))
    there = [other for resident in residents if (other := builder.find(resident))]
    sharer = next((other for other in there for one in runners if one.serves(other.name, other.digest)), None)
    if sharer is not None:
        builder.note(
            name,
            f"its weights are in memory: '{sharer.name}', which is declared resident, shares them",
            "leave out resident: false",
        )
        return
    if not by_name:
        _tell_of_sharer(builder, model, runners[0])
        return
    if name in builder.options.residency_done:
        builder.doubt(
            name,
            "was unloaded, and is still or again in memory",
            "something uses it: stop that, or leave out resident",
        )
        return
    builder.add(
        UnloadModel(
            host=builder.host,
            model=name,
            because=builder.why(name, "resident", desired=LOAD_REASONS["absent"], observed="in memory"),
            retries=model.spec.retries,
        )
    )


def _is_listed_as(own: ObservedModel, one: Loaded, builder: PlanBuilder) -> bool:
    return one.name == own.name if builder.features.folds_case else one.name.full == own.name.full


def _tell_of_sharer(builder: PlanBuilder, model: DesiredModel, one: Loaded) -> None:
    """It is in memory under the name of another, which servers from 0.32 on would unload with it. Servers do not say
    which of the two is in use."""
    listed = builder.desired.find(one.name)
    if listed is not None and wants_unloaded(listed.spec):
        return  # unloading that is planned
    because = builder.why(
        model.name, "resident", desired=LOAD_REASONS["absent"], observed=f"in memory as '{one.name}'"
    )
    said = "it shares its weights, so it would be unloaded too"
    hint = f"unload '{one.name}' when nobody uses it, or declare resident: false for it too"
    builder.cannot_mend(model.name, because, said, hint)


def _note_leftovers(builder: PlanBuilder, name: ModelName) -> None:
    """Weights that were replaced while they were kept for good have no name by which a server would drop them."""
    own = builder.find(name)
    for one in builder.observed.loaded or ():
        if own and one.name == name and one.digest != own.digest and one.is_forever:
            builder.note(
                name,
                f"an older content of it is in memory as well ({format_size(one.size_bytes)})",
                "the server drops it when it needs the space; to have it now, restart the server",
            )
