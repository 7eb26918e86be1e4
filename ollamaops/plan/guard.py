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
    CopyModel,
    CreateModel,
    DeleteModel,
    HostPlan,
    PullModel,
    Refusal,
)
from ollamaops.plan.desired import DesiredHost
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
    for name in _touched(plan, observed):
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
    return by_pattern or any(model.spec.protect for model in desired.models if model.name == name)


def _touched(plan: HostPlan, observed: ObservedHost) -> list[ModelName]:
    """Models that are there and would be deleted or replaced, each once."""
    return list(dict.fromkeys([*_deleted(plan), *_replaced(plan, observed)]))


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
    if limit is None:
        return
    total, changed = len(observed.models), len(set(names))
    allowed = limit.count
    if limit.percent is not None and total >= PERCENT_FROM_MODELS:
        allowed = int(total * limit.percent / 100)
    if allowed is not None and changed > allowed:
        of_percent = f" ({limit.percent:g} % of {total})" if limit.percent is not None else ""
        yield Refusal(
            rule=f"max_change.{what}",
            host=plan.host,
            message=f"{changed} models to {what}, {allowed} allowed{of_percent}",
            hint=f"raise policy.max_change.{what}, or use --force max_change.{what} for this run",
        )


def _empty_manifest(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    deleted = _deleted(plan)
    if deleted and not desired.models and not desired.absent:
        yield Refusal(
            rule="empty-manifest",
            host=plan.host,
            message=f"the manifest declares no model for this host, and prune would delete {len(deleted)}",
            hint="check -f, -e and where:, or use --force empty-manifest if that is meant",
        )


def _registries(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    allowed = desired.policy.registries
    if allowed is None:
        return
    folded = {entry.lower() for entry in allowed}
    for action in plan.actions:
        if isinstance(action, PullModel) and action.model.registry_host.lower() not in folded:
            yield Refusal(
                rule="registries",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' comes from {action.model.registry_host}, "
                f"which policy.allow.registries does not name",
                hint="add the registry there, or use --force registries for this run",
            )


def _cloud(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    if desired.policy.cloud:
        return
    for action in plan.actions:
        if isinstance(action, PullModel) and action.model.source_suffix == "cloud":
            yield Refusal(
                rule="cloud",
                host=plan.host,
                model=action.model,
                message=f"'{action.model}' runs on ollama.com, not on this host",
                hint="set policy.allow.cloud: true if prompts may leave the host",
            )


RULES: dict[str, Rule] = {
    "protect": _protect,
    "max_change.delete": _max_delete,
    "max_change.replace": _max_replace,
    "empty-manifest": _empty_manifest,
    "registries": _registries,
    "cloud": _cloud,
}
