"""Plan deletions: former names, what is declared absent, and what is not declared.

A declared removal stands by itself. A former name and an undeclared model go only after everything else on the host
has worked, because they may be all that still works: `ollamaops prune` deletes nothing while other changes wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec.structs import replace

from ollamaops.manifest.types import AbsentSpec
from ollamaops.names import ModelName
from ollamaops.plan.actions import DeleteModel, HostPlan, Note, is_check
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.guard import PENDING, changes_of, is_prune
from ollamaops.plan.lookups import Because, is_unwanted_stub
from ollamaops.plan.observed import ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder


def plan_moves(builder: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Remove the former name of everything that was renamed, once the new one stands."""
    for model in models:
        former = model.spec.moved_from
        before = builder.find(former)
        if (
            former is None
            or before is None
            or former in builder.desired.needed
            or builder.leaves_alone(former)
        ):
            continue
        if _is_succeeded(builder, model, before):
            because = builder.why(former, "moved", desired=str(model.name))
            _add_delete(builder, former, because, after_all=True, by=model.name)
        elif builder.find(model.name) and not _is_absent(builder, former):
            builder.note(
                former,
                f"moved_from: '{former}' and '{model.name}' are both there, and they differ",
                f"delete one of them, or declare '{former}' with ensure: absent",
            )


def _is_succeeded(builder: PlanBuilder, model: DesiredModel, before: ObservedModel) -> bool:
    """Whether the new name takes the former one's place: made from it in this plan, equal, or both ours."""
    now = builder.find(model.name)
    if is_unwanted_stub(model, before):
        return False
    if now is None:
        return model.name in builder.changing
    if now.digest == before.digest:
        return True
    stands = model.name in builder.unchanged or model.name in builder.changing
    return stands and _is_ours(builder, now) and _is_ours(builder, before)


def _is_absent(builder: PlanBuilder, name: ModelName) -> bool:
    return any(entry.pattern.matches(name) for entry in builder.desired.absent)


def _is_ours(builder: PlanBuilder, model: ObservedModel) -> bool:
    """Whether we made exactly this content."""
    memory = builder.recall(model.name)
    return memory is not None and memory.is_ours and memory.digest == model.digest


def plan_absent(builder: PlanBuilder) -> None:
    """Remove what is declared absent."""
    needed, is_exact = builder.desired.needed, not builder.features.folds_case
    spelt = {name.full for name in needed}
    for entry in builder.desired.absent:
        for name in _deletable(builder):
            is_needed = name.full in spelt if is_exact else name in needed
            if entry.pattern.matches(name, exact_case=is_exact) and not is_needed:
                _add_delete(builder, name, builder.why(name, "unwanted"), after_all=False)
        for name, why in builder.observed.models.unreadable.items():
            if entry.pattern.matches(name) and name not in needed:
                builder.doubt(name, f"declared absent; left alone, because its entry cannot be read: {why}")
        _note_contradiction(builder, entry, needed)


def _note_contradiction(builder: PlanBuilder, entry: AbsentSpec, needed: frozenset[ModelName]) -> None:
    """A glob passes over what is needed; a name that is absent and needed cannot have been meant."""
    name = ModelName.parse(entry.pattern.text) if entry.pattern.is_literal else None
    if name is not None and name in needed:
        builder.doubt(name, "declared absent, but needed by another entry", "take one of the two out")


def plan_prune(builder: PlanBuilder) -> tuple[ModelName, ...]:
    """Remove what is undeclared and in the scope of prune; returns what is undeclared and stays."""
    if not builder.desired.complete:
        return ()
    claimed, unmanaged = builder.desired.claimed, []
    spelt = {name.full for name in claimed}
    for name in _deletable(builder):
        if name in claimed:
            if not builder.features.folds_case and name.full not in spelt:
                unmanaged.append(
                    name
                )  # another model there, but so easily confused that it has to be named to go
            continue
        if _is_prunable(builder, name):
            _add_delete(builder, name, builder.why(name, "undeclared"), after_all=True)
        else:
            unmanaged.append(name)
    return tuple(unmanaged)


def _deletable(builder: PlanBuilder) -> list[ModelName]:
    """What is there, may be looked at, and is not changed by this plan."""
    names = sorted(builder.observed.models, key=lambda name: (name, name.full))
    return [name for name in names if name not in builder.changing and not builder.leaves_alone(name)]


def _is_prunable(builder: PlanBuilder, name: ModelName) -> bool:
    """Whether prune covers the model. Never cloud stubs, which have no weights, nor protected models; with
    `owned`, nor a content that replaced what we had made."""
    prune, model = builder.desired.policy.prune, builder.observed.models[name]
    if prune is False or model.is_cloud or builder.desired.protects(name):
        return False
    if prune == "owned":
        return _is_ours(builder, model)
    is_exact = not builder.features.folds_case
    return any(pattern.matches(name, exact_case=is_exact) for pattern in prune)


def _add_delete(
    builder: PlanBuilder, name: ModelName, because: Because, *, after_all: bool, by: ModelName | None = None
) -> None:
    """Delete `name`; with `after_all` only when everything else on the host has worked."""
    if builder.features.suffix_routing and name.source_suffix == "local":
        builder.doubt(
            name,
            f"cannot be deleted: servers from 0.18.0 on would delete '{name.pull_name}' instead",
            "remove its file below manifests/ on the server by hand",
        )
        return
    others = (
        action_id for action_id, action in builder.actions.items() if not isinstance(action, DeleteModel)
    )
    builder.add(
        DeleteModel(
            host=builder.host,
            model=name,
            because=because,
            needs=tuple(others) if after_all else (),
            expects=builder.expect(name, by),
        )
    )


def only_prune(plan: HostPlan, *, force: Collection[str] = ()) -> HostPlan:
    """The plan with nothing but deletions of undeclared models, and none of them while other changes are pending.

    `force` with `pending` deletes them all the same. What is only asked about by a pull is no pending change, but it
    is unknown, because prune pulls nothing.
    """
    deletions = tuple(replace(action, needs=()) for action in plan.actions if is_prune(action))
    pending = [action for action in changes_of(plan) if not (is_prune(action) or is_check(action))]
    lacking = [note for note in plan.notes if any(why.kind == "missing" for why in note.lasting)]
    others = len(pending) + len(lacking)
    plan = replace(
        plan, notes=tuple(replace(note, unresolved=note.unresolved or note.waits) for note in plan.notes)
    )
    if not deletions or not others or PENDING in force:
        return replace(plan, actions=deletions)
    names = ", ".join(str(action.model) for action in deletions)
    note = Note(
        host=plan.host,
        message=f"not pruned while other changes are pending ({others}): {names}",
        hint="run ollamaops apply first, or use --force pending for this run",
        unresolved=True,
    )
    return replace(plan, actions=(), notes=(*plan.notes, note))
