"""Plan the repair of models whose files on the host are there and broken.

No server replaces a file that it has, so every model that shares it has to go before the file can come again. That is
planned only where all of them are declared and can be made again; otherwise nothing of it is touched, and it is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec.structs import replace

from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    Difference,
    Fact,
    HostPlan,
    Note,
    PullModel,
    UploadBlob,
    id_of,
)
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.flaws import Broken
from ollamaops.plan.lookups import PlanOptions
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.planner import plan_host

_MAKING = (PullModel, CreateModel, CopyModel)


def plan_repair(
    desired: DesiredHost, observed: ObservedHost, options: PlanOptions, broken: Broken
) -> HostPlan:
    """The plan of a host on which everything that shares a broken file is deleted first and made again; where that
    cannot be, the plan without it, and a note that says why. Without anything broken, `plan_host`."""
    observed = replace(observed, unreadable={**observed.unreadable, **broken.gone})
    if not broken.words:
        return plan_host(desired, observed, options)
    names, files = broken.sharers()
    reasons = {name: _why(desired.host, name, broken.words) for name in sorted(names)}
    plan = plan_host(desired, _without(observed, names, files), options)
    obstacle = _obstacle(names, observed, options, plan)
    if obstacle is not None:
        return _refused(plan_host(desired, observed, options), reasons, *obstacle)
    seen = observed.digests
    deletions = [
        DeleteModel(host=desired.host, model=name, because=(why,), expects=(Fact(name, seen.get(name)),))
        for name, why in reasons.items()
    ]
    return replace(plan, actions=(*deletions, *_after(deletions, plan.actions, reasons)))


def _why(host: str, name: ModelName, words: Mapping[ModelName, str]) -> Difference:
    """How the model is broken itself, or by whom it is known that its file is."""
    first = min(words)
    said = (
        f"it {words[name]}"
        if name in words
        else f"it shares its weights with '{first}', which {words[first]}"
    )
    return Difference(host=host, model=name, kind="damaged", observed=said)


def _without(observed: ObservedHost, names: Collection[ModelName], files: Collection[Digest]) -> ObservedHost:
    """The host as it will be without these models and files."""
    return replace(
        observed,
        models=observed.models.select(lambda name: name not in names),
        unreadable={name: why for name, why in observed.unreadable.items() if name not in names},
        shown={name: what for name, what in observed.shown.items() if name not in names},
        present_blobs=observed.present_blobs - frozenset(files),
    )


def _obstacle(
    names: Collection[ModelName], observed: ObservedHost, options: PlanOptions, plan: HostPlan
) -> tuple[str, str] | None:
    """Why not all of these models may be deleted, and the way out; None: the plan can make each of them again."""
    against = [note for note in plan.notes if note.model in names and (note.unresolved or note.lasting)]
    if against:  # the first is the root of the others, because they are in the order of planning
        first = against[0]
        return f"'{first.model}' could not be made again: {first.message}", first.hint or "mend that first"
    made = {action.model: action for action in plan.actions if isinstance(action, _MAKING)}
    for name in sorted(names):
        if name not in made and name.is_aside:
            return (
                f"the kept version '{name}' shares the broken file, and cannot be made again",
                "take keep_previous away and run ollamaops apply, which deletes it; then repair",
            )
        if name not in made:
            return (
                f"'{name}' shares the broken file and is not declared, so it could not be made again",
                "declare it, or delete it on the host: it does not work as it is",
            )
        why = _not_to_be_had(made[name], observed, options)
        if why:
            return f"'{name}' would have to be pulled again, and {why}", "repair when its registry has it"
    return None


def _not_to_be_had(action: Action, observed: ObservedHost, options: PlanOptions) -> str:
    """Why it is not known that a registry still has what the action pulls; "" when it has, or was not asked yet."""
    if not isinstance(action, PullModel):
        return ""
    if not options.ask_registry:
        return "no registry is asked whether it still has it"
    answer = observed.upstream.get(action.model)
    return f"its registry does not say that it has it: {answer.error}" if answer and answer.error else ""


def _refused(plan: HostPlan, reasons: Mapping[ModelName, Difference], message: str, hint: str) -> HostPlan:
    """The plan with nothing that touches these models, and what stands against their repair."""
    spoiled = {id_of(action) for action in plan.actions if action.model in reasons}
    while (
        more := {id_of(action) for action in plan.actions if not spoiled.isdisjoint(action.needs)} - spoiled
    ):
        spoiled |= more
    notes = [
        Note(host=plan.host, model=name, message=f"not repaired: {message}", hint=hint, lasting=(why,))
        for name, why in reasons.items()
    ]
    return replace(
        plan,
        actions=tuple(action for action in plan.actions if id_of(action) not in spoiled),
        unchanged=tuple(name for name in plan.unchanged if name not in reasons),
        notes=(*plan.notes, *notes),
    )


def _after(
    deletions: Collection[DeleteModel], actions: Iterable[Action], reasons: Mapping[ModelName, Difference]
) -> Iterator[Action]:
    """The actions, those that bring the files or the models back after all deletions, and for their reasons."""
    gone = tuple(map(id_of, deletions))
    for action in actions:
        if isinstance(action, UploadBlob):
            yield replace(action, needs=(*gone, *action.needs))
        elif isinstance(action, _MAKING) and action.model in reasons:
            yield replace(action, because=(reasons[action.model],), needs=(*gone, *action.needs))
        else:
            yield action
