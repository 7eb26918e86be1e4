"""Plan deletions: former names, what is declared absent, and what nobody declares.

A declared removal stands by itself. A former name and an undeclared model go only after everything else on the host
has worked, because they may be all that still works: `ollamaops prune` deletes nothing while other changes wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from ollamaops.manifest.types import AbsentSpec
from ollamaops.names import ModelName
from ollamaops.plan.actions import DeleteModel, HostPlan, Note
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.guard import PENDING, changes_of, is_prune
from ollamaops.plan.lookups import Because
from ollamaops.plan.observed import ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder


def plan_moves(draft: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Remove the former name of everything that was renamed, once the new one stands."""
    for model in models:
        former = model.spec.moved_from
        before = draft.find(former)
        if former is None or before is None or former in draft.desired.needed or draft.leaves_alone(former):
            continue
        if _is_succeeded(draft, model, before):
            because = draft.why(former, "moved", desired=str(model.name))
            _add_delete(draft, former, because, proven=True, by=model.name)
        elif draft.find(model.name) and not _is_absent(draft, former):
            draft.note(
                former,
                f"moved_from: '{former}' and '{model.name}' are both there, and they differ",
                f"delete one of them, or declare '{former}' with ensure: absent",
            )


def _is_succeeded(draft: PlanBuilder, model: DesiredModel, before: ObservedModel) -> bool:
    """Whether the new name takes the former one's place: made from it in this plan, equal, or both ours."""
    now = draft.find(model.name)
    if now is None:
        return model.name in draft.changing
    if now.digest == before.digest:
        return True
    stands = model.name in draft.unchanged or model.name in draft.changing
    return stands and _is_ours(draft, now) and _is_ours(draft, before)


def _is_absent(draft: PlanBuilder, name: ModelName) -> bool:
    return any(entry.pattern.matches(name) for entry in draft.desired.absent)


def _is_ours(draft: PlanBuilder, model: ObservedModel) -> bool:
    """Whether we made exactly this content."""
    memory = draft.recall(model.name)
    return memory is not None and memory.is_ours and memory.digest == model.digest


def plan_absent(draft: PlanBuilder) -> None:
    """Remove what is declared absent."""
    needed = draft.desired.needed
    for entry in draft.desired.absent:
        for name in _deletable(draft):
            if entry.pattern.matches(name) and name not in needed:
                _add_delete(draft, name, draft.why(name, "unwanted"), proven=False)
        _note_contradiction(draft, entry, needed)


def _note_contradiction(draft: PlanBuilder, entry: AbsentSpec, needed: frozenset[ModelName]) -> None:
    """A glob passes over what is needed; a name that is absent and needed cannot have been meant."""
    name = ModelName.parse(entry.pattern.text) if entry.pattern.is_literal else None
    if name is not None and name in needed:
        draft.doubt(name, "declared absent, but needed by another entry", "take one of the two out")


def plan_prune(draft: PlanBuilder) -> tuple[ModelName, ...]:
    """Remove what is undeclared and in the scope of prune; returns what is undeclared and stays."""
    if not draft.desired.complete:
        return ()
    claimed, unmanaged = draft.desired.claimed, []
    for name in _deletable(draft):
        if name in claimed:
            continue
        if _is_prunable(draft, name):
            _add_delete(draft, name, draft.why(name, "undeclared"), proven=True)
        else:
            unmanaged.append(name)
    return tuple(unmanaged)


def _deletable(draft: PlanBuilder) -> list[ModelName]:
    """What is there, may be looked at, and is not changed by this plan."""
    names = sorted(draft.observed.models)
    return [name for name in names if name not in draft.changing and not draft.leaves_alone(name)]


def _is_prunable(draft: PlanBuilder, name: ModelName) -> bool:
    """Whether prune covers the model. Cloud stubs are nobody's weights, and are never pruned; nor is what is
    protected, nor, as owned, what somebody has put in the place of what we made."""
    prune, model = draft.desired.policy.prune, draft.observed.models[name]
    if prune is False or model.is_cloud or draft.desired.protects(name):
        return False
    if prune == "owned":
        return _is_ours(draft, model)
    return any(pattern.matches(name) for pattern in prune)


def _add_delete(
    draft: PlanBuilder, name: ModelName, because: Because, *, proven: bool, by: ModelName | None = None
) -> None:
    """Delete `name`; `proven` deletions need everything else on the host to have worked."""
    if draft.features.suffix_routing and name.source_suffix == "local":
        draft.doubt(
            name,
            f"cannot be deleted: servers from 0.18.0 on would delete '{name.pull_name}' instead",
            "remove its file below manifests/ on the server by hand",
        )
        return
    others = (action_id for action_id, action in draft.actions.items() if not isinstance(action, DeleteModel))
    draft.add(
        DeleteModel(
            host=draft.host,
            model=name,
            because=because,
            needs=tuple(others) if proven else (),
            expects=draft.expect(name, by),
        )
    )


def only_prune(plan: HostPlan, *, force: Collection[str] = ()) -> HostPlan:
    """The plan with nothing but deletions of undeclared models, and none of them while other changes are pending.

    `force` with `pending` deletes them all the same.
    """
    deletions = tuple(replace(action, needs=()) for action in plan.actions if is_prune(action))
    others = len(changes_of(plan)) - len(deletions)
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
