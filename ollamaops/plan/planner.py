"""Plan one host: desired and observed in, a HostPlan out.

The order: pulls, what is made from other models, pushes, what is loaded into memory, deletions. What cannot be found
out becomes an unresolved note, never "in sync". Entries that would revert each other's work in every run are found
here by the names that they write on the host; nothing is planned for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ollamaops.manifest.types import Copy, Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import HostPlan, Note
from ollamaops.plan.builds import plan_build
from ollamaops.plan.deletions import plan_absent, plan_moves, plan_prune
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.lookups import PlanOptions, is_rolled_back
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.pulls import plan_copy, plan_pulls
from ollamaops.plan.pushes import plan_pushes
from ollamaops.plan.residency import plan_residency
from ollamaops.plan.unclear import find_unclear

MOST_UNNAMED = 3


def plan_host(desired: DesiredHost, observed: ObservedHost, options: PlanOptions | None = None) -> HostPlan:
    """Everything this host needs, deletions last."""
    builder = PlanBuilder(desired, observed, options or PlanOptions())
    models, rolled_back = _plannable(builder)
    plan_pulls(builder, models)
    for model in models:
        _plan_made(builder, model)
    plan_pushes(builder, models)
    plan_residency(builder, [*models, *rolled_back])
    plan_moves(builder, models)
    plan_absent(builder)
    _note_unnamed(builder)
    _note_unseen_blobs(builder)
    return builder.build(unmanaged=plan_prune(builder))


def _note_unnamed(builder: PlanBuilder) -> None:
    """Entries of the host's list that nobody can be asked about, declared models never being among them."""
    unnamed = builder.observed.models.unnamed
    if unnamed:
        builder.notes.append(
            Note(
                host=builder.host,
                message=f"{len(unnamed)} of its listed models cannot be named, and are left alone: "
                + "; ".join(unnamed[:MOST_UNNAMED]),
            )
        )


def _note_unseen_blobs(builder: PlanBuilder) -> None:
    why = builder.observed.blobs_unseen
    if why:
        note = Note(
            host=builder.host,
            message=f"not known whether the weights are still on the host: {why}",
            hint="let HEAD /api/blobs through to the server; ollamaops verify loads every model",
        )
        builder.notes.append(note)


def _plannable(builder: PlanBuilder) -> tuple[list[DesiredModel], list[DesiredModel]]:
    """(models to plan, models that stay rolled back). Left out, with a note each: ignored models, entries that
    contradict each other, weights that are not known."""
    conflicts = find_conflicts(builder.desired.declared)
    models, rolled_back = [], []
    for model in builder.desired.models:
        if model.implicit:
            continue
        is_pushed = model.name in builder.desired.pushes
        if builder.leaves_alone(model.name):
            builder.note(model.name, "declared, but policy.ignore covers it: not looked at")
        elif unclear := find_unclear(model, builder.observed, is_pushed=is_pushed):
            builder.give_up(model.name, *unclear)
        elif model.name in conflicts:
            builder.give_up(model.name, conflicts[model.name], "change one of the entries")
        elif model.unavailable is not None:
            builder.give_up(model.name, model.unavailable.error, model.unavailable.hint)
        elif is_rolled_back(model, builder.observed) and not builder.options.release:
            builder.record_rolled_back(model)
            rolled_back.append(model)
            if damage := builder.damage(model.name):
                hint = f"bring back what is declared: ollamaops rollback {model.name} --release"
                builder.cannot_mend(model.name, damage, "it was rolled back, so it is not made again", hint)
        else:
            models.append(model)
    return models, rolled_back


def _plan_made(builder: PlanBuilder, model: DesiredModel) -> None:
    """What is made from another model on the host; everything that is pulled has been planned before."""
    source = model.spec.source
    if isinstance(source, Copy):
        plan_copy(builder, model, source.source)
    elif model.recipe is not None:
        plan_build(builder, model, model.recipe)


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
