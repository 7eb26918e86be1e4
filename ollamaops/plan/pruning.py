"""A plan cut down to the deletion of what is undeclared: what `ollamaops prune` does of it.

Decides when that may be done alone. The fact a reader would miss: what is undeclared may be all that still works
while its successor is not yet there, so nothing is deleted on a host with other changes pending; apply deletes last.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ollamaops.plan.actions import HostPlan, Note
from ollamaops.plan.guard import PENDING, changes_of, is_prune


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
