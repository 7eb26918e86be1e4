"""Plan a rollback: one copy for each model, from a version that was kept, and a load if it is resident.

The switch moves no weights. The current version is kept in its turn, and the model stays rolled back until its entry
in the manifest changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from ollamaops.manifest.types import ModelSpec
from ollamaops.names import NamePattern
from ollamaops.plan.actions import CopyModel, Difference, Fact, HostPlan, LoadModel, Note, id_of
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import rollback_key_of
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.residency import LOAD_REASONS, cannot_stay, keep_alive_of, wants_loaded
from ollamaops.plan.versions import MOST_KEPT, kept_of, versions_to_keep


def plan_rollback(
    desired: DesiredHost, observed: ObservedHost, targets: Sequence[NamePattern], *, version: int = 1
) -> HostPlan:
    """Switch every declared model that a target means to its kept version: 1 is the one before the current one."""
    meant = [
        model
        for model in desired.models
        if not model.implicit and any(target.matches(model.name) for target in targets)
    ]
    found = [each for model in meant for each in _roll_back(desired.host, model, observed, version)]
    switches = [each for each in found if isinstance(each, CopyModel)]
    specs = {model.name: model.spec for model in meant}
    loads = [
        _load(switch, specs[switch.model])
        for switch in switches
        if wants_loaded(specs[switch.model])
        and cannot_stay(switch.model, observed.models.get(switch.model), observed.features) is None
    ]
    return HostPlan(
        host=desired.host,
        actions=(*switches, *loads),
        notes=tuple(each for each in found if isinstance(each, Note)),
        server_version=observed.version,
    )


def narrowed(seen: HostPlan, agreed: HostPlan) -> HostPlan:
    """What a look says of the models that `agreed` rolls back, which is all that a rollback answers for; everything,
    if it is not a rollback."""
    own = {action.model for action in agreed.actions if isinstance(action, CopyModel) and action.rollback_key}
    if not own:
        return seen
    return replace(
        seen,
        actions=tuple(action for action in seen.actions if action.model in own),
        notes=tuple(note for note in seen.notes if note.model in own),
    )


def _roll_back(
    host: str, model: DesiredModel, observed: ObservedHost, version: int
) -> Iterator[CopyModel | Note]:
    name, kept = model.name, kept_of(model.name, version)
    own, digest = observed.models.get(name), observed.set_aside.get(kept)
    if digest is None:
        count = sum(kept_of(name, i + 1) in observed.set_aside for i in range(MOST_KEPT))
        has = f"{count} {'is' if count == 1 else 'are'} kept" if count else "none is kept"
        yield Note(
            host=host,
            model=name,
            message=f"cannot be rolled back by {version}: {has}",
            hint="keep_previous: N in its entry keeps them from the next change on",
            unresolved=True,
        )
        return
    memory = observed.memory.get(kept)
    if memory is None:
        yield Note(host=host, model=name, message=f"nothing is remembered of '{kept}': it may be anything")
    elif memory.digest != digest:
        yield Note(
            host=host,
            model=name,
            message=f"cannot be rolled back by {version}: {memory.digest[:12]} was kept as '{kept}', "
            f"and somebody put {digest[:12]} in its place",
            hint="roll back by another number (--to), or delete it and apply the manifest of that version again",
            unresolved=True,
        )
        return
    now = own.digest if own else ""
    change = Difference(host=host, model=name, kind="content", desired=digest, observed=now)
    yield CopyModel(
        host=host,
        model=name,
        source=kept,
        because=(change,),
        expects=(Fact(name, now or None), Fact(kept, digest)),
        keep=max(1, versions_to_keep(model.spec)),
        rollback_key=rollback_key_of(model),
        retries=model.spec.retries,
    )


def _load(switch: CopyModel, spec: ModelSpec) -> LoadModel:
    """What is declared to be in memory gets there with the content that it was switched to."""
    why = Difference(
        host=switch.host,
        model=spec.name,
        kind="resident",
        desired="in memory",
        observed=LOAD_REASONS["changing"],
    )
    return LoadModel(
        host=switch.host,
        model=spec.name,
        because=(why,),
        needs=(id_of(switch),),
        keep_alive_s=keep_alive_of(spec),
        retries=spec.retries,
    )
