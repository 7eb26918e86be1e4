"""What has to be done to one host: desired and observed in, a HostPlan out.

Decides the order in which things are decided: pulls, then what is made from others, pushes, what is loaded into
memory, and deletions at the end; each has its own module. guard.py decides whether the plan may be carried out,
apply/ does it. The fact a reader would miss: what cannot be found out becomes an unresolved note, never "in sync".
"""

from __future__ import annotations

from ollamaops.manifest.types import Copy
from ollamaops.plan.actions import HostPlan
from ollamaops.plan.builds import plan_build
from ollamaops.plan.conflicts import find_conflicts
from ollamaops.plan.copies import plan_copy
from ollamaops.plan.deletions import plan_absent, plan_moves, plan_prune
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import Lookups, PlanOptions, is_trusted, questions
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.pulls import plan_pulls
from ollamaops.plan.pushes import plan_pushes
from ollamaops.plan.residency import plan_residency
from ollamaops.plan.rolled_back import is_held

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
