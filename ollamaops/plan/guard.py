"""Safety rules over a plan: values in, refusals out. A refused plan changes nothing on any host.

Each rule has a name, which is what `--force RULE` lifts, and speaks in numbers and says the way out. The fact a
reader would miss: percentages count only from ten models up, so that a host with three models can change one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ollamaops.manifest.types import Limit
from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    HostPlan,
    PullModel,
    Refusal,
)
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.locking import needs_lock
from ollamaops.plan.observed import ObservedHost

PERCENT_FROM_MODELS = 10

Rule = Callable[[HostPlan, DesiredHost, ObservedHost], Iterator[Refusal]]


def guard(
    plan: HostPlan, desired: DesiredHost, observed: ObservedHost, *, force: Iterable[str] = ()
) -> HostPlan:
    """`plan` with the refusals of every rule that says no and is not named in `force`."""
    lifted = frozenset(force)
    refusals = tuple(
        refusal
        for name, rule in RULES.items()
        if name not in lifted
        for refusal in rule(plan, desired, observed)
    )
    return replace(plan, refusals=refusals)


def _protect(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    for name in dict.fromkeys([*_deleted(plan), *_replaced(plan, observed)]):
        if is_protected(name, desired):
            yield Refusal(
                rule="protect",
                host=plan.host,
                model=name,
                message=f"'{name}' is protected, and this plan would delete or replace it",
                hint="take it out of protect, or use --force protect for this run",
            )


def is_protected(name: ModelName, desired: DesiredHost) -> bool:
    """Whether the manifest says that `name` is never deleted or replaced."""
    by_pattern = any(pattern.matches(name) for pattern in desired.policy.protect)
    return by_pattern or any(model.spec.protect and model.name == name for model in desired.declared)


def _deleted(plan: HostPlan) -> list[ModelName]:
    return [action.model for action in plan.actions if isinstance(action, DeleteModel)]


def _replaced(plan: HostPlan, observed: ObservedHost) -> list[ModelName]:
    return [
        action.model
        for action in plan.actions
        if isinstance(action, PullModel | CreateModel | CopyModel) and action.model in observed.models
    ]


def _max_delete(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    yield from _over(plan, desired.policy.max_delete, "delete", _deleted(plan), observed)


def _max_replace(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    yield from _over(plan, desired.policy.max_replace, "replace", _replaced(plan, observed), observed)


def _over(
    plan: HostPlan, limit: Limit | None, what: str, names: list[ModelName], observed: ObservedHost
) -> Iterator[Refusal]:
    total = len(observed.models)
    allowed, of_total = _allowed(limit, total) if limit else (None, "")
    if allowed is not None and len(names) > allowed:
        yield Refusal(
            rule=f"max_change.{what}",
            host=plan.host,
            message=f"{len(names)} models to {what}, {allowed} allowed{of_total}",
            hint=f"raise policy.max_change.{what}, or use --force max_change.{what} for this run",
        )


def _allowed(limit: Limit, total: int) -> tuple[int | None, str]:
    """How many changes are allowed (None: any number), and how that comes about."""
    if limit.percent is None or total < PERCENT_FROM_MODELS:
        return limit.count, ""
    return int(total * limit.percent / 100), f" ({limit.percent:g} % of {total})"


def _empty_manifest(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """A wrong -f, -e or where: must not empty a host."""
    pruned = [action for action in plan.actions if _is_prune(action)]
    if pruned and not desired.models:
        yield Refusal(
            rule="empty-manifest",
            host=plan.host,
            message=f"the manifest declares no model for this host, and prune would delete {len(pruned)}",
            hint="check -f, -e and where:, or use --force empty-manifest if that is meant",
        )


def _is_prune(action: Action) -> bool:
    return isinstance(action, DeleteModel) and any(reason.kind == "undeclared" for reason in action.because)


def _registries(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    allowed = desired.policy.registries
    if allowed is None:
        return
    folded = {entry.lower() for entry in allowed}
    for action in plan.actions:
        if isinstance(action, PullModel) and action.model.registry_host.lower() not in folded:
            registry = action.model.registry_host
            yield Refusal(
                rule="registries",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' comes from {registry}, which policy.allow.registries does not name",
                hint="add the registry there, or use --force registries for this run",
            )


def _cloud(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    if desired.policy.cloud:
        return
    for action in plan.actions:
        if _sends_prompts_away(action):
            yield Refusal(
                rule="cloud",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' runs on ollama.com, not on this host",
                hint="set policy.allow.cloud: true if prompts may leave the host, "
                "or use --force cloud for this run",
            )


def _sends_prompts_away(action: Action) -> bool:
    """Whether the result is a stub of a model that runs elsewhere: pulled, or made or copied from one."""
    match action:
        case PullModel(model=source) | CopyModel(source=source):
            return source.source_suffix == "cloud"
        case CreateModel(recipe=recipe):
            return recipe.base is not None and recipe.base.source_suffix == "cloud"
        case _:
            return False


def _locked(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """--locked: everything that may ever be pulled has to be in the lock, be it there already or not."""
    for model in desired.models if desired.policy.require_lock else ():
        if needs_lock(model.spec):
            yield Refusal(
                rule="locked",
                host=plan.host,
                model=model.name,
                message=f"'{model.name}' is not in the lock file, and this run is --locked",
                hint="write its entry with: ollamaops lock",
            )


RULES: dict[str, Rule] = {
    "protect": _protect,
    "max_change.delete": _max_delete,
    "max_change.replace": _max_replace,
    "empty-manifest": _empty_manifest,
    "registries": _registries,
    "cloud": _cloud,
    "locked": _locked,
}
