"""Plan one host: desired and observed in, a HostPlan out.

The order: pulls, what is made from other models, pushes, what is loaded into memory, deletions. What cannot be found
out becomes an unresolved note, never "in sync". Entries that would undo each other's work in every run are found
here by the names that they write on the host; nothing is planned for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ollamaops.manifest.types import Copy, Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import HostPlan
from ollamaops.plan.builds import plan_build
from ollamaops.plan.deletions import plan_absent, plan_moves, plan_prune
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import Lookups, PlanOptions, is_held, is_trusted, questions
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.pulls import plan_copy, plan_pulls
from ollamaops.plan.pushes import plan_pushes
from ollamaops.plan.residency import plan_residency

__all__ = ["Lookups", "PlanOptions", "is_trusted", "plan_host", "questions"]


def plan_host(desired: DesiredHost, observed: ObservedHost, options: PlanOptions | None = None) -> HostPlan:
    """Everything this host needs, deletions last."""
    draft = PlanBuilder(desired, observed, options or PlanOptions())
    models, held = _plannable(draft)
    plan_pulls(draft, models)
    for model in models:
        _plan_made(draft, model)
    plan_pushes(draft, models)
    plan_residency(draft, [*models, *held])
    plan_moves(draft, models)
    plan_absent(draft)
    return draft.finish(unmanaged=plan_prune(draft))


def _plannable(draft: PlanBuilder) -> tuple[list[DesiredModel], list[DesiredModel]]:
    """The declared models but those that are never looked at, that contradict each other, or whose weights nobody
    knows (a note each); and those that a rollback holds."""
    conflicts = find_conflicts(draft.desired.declared)
    models, held = [], []
    for model in draft.desired.models:
        if model.implicit:
            continue
        if draft.leaves_alone(model.name):
            draft.note(model.name, "declared, but policy.ignore covers it: not looked at")
        elif model.name in conflicts:
            draft.give_up(model.name, conflicts[model.name], "change one of the entries")
        elif model.unavailable is not None:
            why = f"its weights cannot be asked about: {model.unavailable.error}"
            draft.give_up(model.name, why, model.unavailable.hint)
        elif is_held(model, draft.observed) and not draft.options.release:
            draft.hold(model)
            held.append(model)
        else:
            models.append(model)
    return models, held


def _plan_made(draft: PlanBuilder, model: DesiredModel) -> None:
    """What is made from another model on the host; everything that is pulled has been planned before."""
    source = model.spec.source
    if isinstance(source, Copy):
        plan_copy(draft, model, source.source)
    elif model.recipe is not None:
        plan_build(draft, model, model.recipe)


def find_conflicts(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Models for which nothing can be planned, each with what is wrong."""
    declared = {model.name: model for model in models}
    found = _pinned_twice(declared.values()) | _pushed_twice(declared.values())
    for model in declared.values():
        spec = model.spec
        if isinstance(spec.source, Pull) and _is_made_otherwise(spec.source.ref, declared):
            found[spec.name] = f"pulled as '{spec.source.ref}', which another entry makes on the host"
        elif spec.push and spec.push != spec.name and spec.push in declared:
            found[spec.name] = f"pushed as '{spec.push}', which another entry declares or is made from"
    return found


def _is_made_otherwise(ref: ModelName, declared: Mapping[ModelName, DesiredModel]) -> bool:
    source = declared[ref].spec.source if ref in declared else None
    return source is not None and not (isinstance(source, Pull) and source.ref == ref)


def _pinned_twice(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Entries that pull one reference with different pins."""
    pinned: dict[ModelName, list[DesiredModel]] = {}
    for model in models:
        if isinstance(model.spec.source, Pull) and model.spec.digest:
            pinned.setdefault(model.spec.source.ref, []).append(model)
    return {
        model.name: f"'{ref}' is pinned to {len({other.spec.digest for other in group})} different digests"
        for ref, group in pinned.items()
        for model in group
        if len({other.spec.digest for other in group}) > 1
    }


def _pushed_twice(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Entries that push to one name: whoever is last wins, in every run."""
    pushing: dict[ModelName, list[DesiredModel]] = {}
    for model in models:
        if model.spec.push:
            pushing.setdefault(model.spec.push, []).append(model)
    return {
        model.name: f"'{ref}' is where {len(group)} entries push to"
        for ref, group in pushing.items()
        for model in group
        if len(group) > 1
    }
