"""One look at one host, and the plan that follows from it: ask, gather, decide.

What is found in sync is remembered on the way, so that the next run need not look into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from ollamaops.errors import StateError
from ollamaops.events import HostObserved
from ollamaops.names import ModelName
from ollamaops.observe.broken import find_broken
from ollamaops.observe.contents import short_digest
from ollamaops.observe.host import (
    observe,
    observe_costs,
    observe_digests,
    observe_endpoints,
    observe_for_guards,
)
from ollamaops.observe.memory import load_evictions, load_memory, remember_in_sync
from ollamaops.observe.one_server import signs_of_several
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run, desired_of
from ollamaops.observe.session import HostSession, reach
from ollamaops.observe.weights import with_archives, with_headers
from ollamaops.plan.actions import HostPlan, PullModel, UnreachedHost, UploadBlob
from ollamaops.plan.deletions import only_prune
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.flaws import Broken
from ollamaops.plan.guard import changes_of, guard, guard_again
from ollamaops.plan.lookups import PlanOptions, is_trusted
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.one_server import note_of, refusal_of
from ollamaops.plan.repair import plan_repair
from ollamaops.plan.residency import is_managed
from ollamaops.plan.rollback import plan_rollback


def plan_task(task: HostTask, run: Run) -> HostPlan | UnreachedHost:
    """What one host needs, or why that is not known. Errors that are not about the host are raised."""
    return reach(task, run, partial(look_and_plan, repair=run.options.repair))


def look_and_plan(
    host: HostSession,
    *,
    costs: bool = True,
    distrust: frozenset[ModelName] = frozenset(),
    made: frozenset[ModelName] = frozenset(),
    residency_done: frozenset[ModelName] = frozenset(),
    repair: bool = False,
) -> HostPlan:
    """Look at the host and plan what it needs. `distrust`, `made` and `residency_done` are those of PlanOptions;
    `repair` also looks for broken files, which loads models, and plans to replace them.

    RemoteError if it does not answer. StateError, WeightsError and Cancelled say nothing about the host.
    """
    run, chosen, desired = host.run, host.run.options, desired_of(host.task)
    options = PlanOptions(
        verify_weights=chosen.verify_weights,
        ask_registry=chosen.ask_registry,
        distrust=distrust,
        made=made,
        residency_done=residency_done,
        evicted=load_evictions(run.ledger, host.name) if is_managed(desired) else {},
        release=chosen.release,
        look_inside=chosen.look_inside,
    )
    observed = observe(host, desired, options)
    desired = _with_headers(host.task, desired, observed, options)
    desired = with_archives(desired, observed, options, run.cancel.is_set)
    broken = find_broken(host, desired, observed) if repair else Broken()
    plan = plan_repair(desired, observed, options, broken)
    observed = observe_endpoints(host, observed, plan)
    if observed.lacks:
        plan = plan_repair(desired, observed, options, broken)
    if costs and chosen.costs and chosen.ask_registry and plan.actions:
        observed = observe_costs(host, desired, observed, plan)
        plan = plan_repair(desired, observed, options, broken)
    run.emit(
        HostObserved(
            **host.stamp(),
            version=observed.version,
            models=len(observed.models),
            requests=host.client.transport.requests_sent,
        )
    )
    remember_in_sync(host, desired, observed, plan, options)
    if chosen.prune_only:
        plan = only_prune(plan, force=chosen.force)
    plan = _guarded(host, plan, desired, observed) if chosen.guarded else plan
    if host.client.router and not plan.refusals:
        note = note_of(refusal_of(host.name, signs_of_several(host)))
        plan = replace(plan, notes=(*plan.notes, note))
    return plan


def plan_rollback_of_task(task: HostTask, run: Run, version: int) -> HostPlan | UnreachedHost:
    """What rolling the task's targets back takes; Cancelled is raised.

    Nothing is looked into and no registry is asked, so that the way back is open when little else works.
    """

    def look(host: HostSession) -> HostPlan:
        observed, desired = host.models(), desired_of(task)
        with suppress(StateError):
            observed = replace(observed, memory=load_memory(host))
        return _guarded(
            host, plan_rollback(desired, observed, task.targets, version=version), desired, observed
        )

    return reach(task, run, look)


def _guarded(host: HostSession, plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> HostPlan:
    """The plan with what the rules say against it."""
    force = host.run.options.force
    observed = observe_for_guards(host, host.task.policy, plan, observed, lifted=force)
    return guard(plan, desired, observed, force=force)


def _with_headers(
    task: HostTask, desired: DesiredHost, observed: ObservedHost, options: PlanOptions
) -> DesiredHost:
    """The headers of local weights are read when a model of theirs has to be compared or built."""
    is_needed = any(model.weights and not is_trusted(model, observed, options) for model in desired.models)
    return desired_of(replace(task, files=with_headers(task.files))) if is_needed else desired


# saved plans


def find_changes(task: HostTask, plan: HostPlan, run: Run) -> list[str] | UnreachedHost:
    """Every fact that the plan relies on and that is no longer so, in words."""
    digests = reach(task, run, observe_digests)
    if isinstance(digests, UnreachedHost):
        return digests
    facts = dict.fromkeys(fact for action in plan.actions for fact in action.expects)
    changes = [
        f"'{fact.model}' on {plan.host} was {short_digest(fact.digest)}, "
        f"now it is {short_digest(digests.get(fact.model))}"
        for fact in facts
        if digests.get(fact.model) != fact.digest
    ]
    changes += _not_declared(task, plan)
    return [*changes, *_moved_tags(plan, run.registries)] if run.options.ask_registry else changes


def _not_declared(task: HostTask, plan: HostPlan) -> Iterator[str]:
    """The files that the plan would send and that are not among those of the manifest, which are confined."""
    declared = {str(path) for path in task.files}
    for action in plan.actions:
        if isinstance(action, UploadBlob):
            for path in [path for _, path in action.parts] or [action.path]:
                if path not in declared:
                    yield f"'{action.model}' would be made from {path}, which the manifest does not name"


def _moved_tags(plan: HostPlan, registries: RegistryCache) -> Iterator[str]:
    """What a registry has other than when the plan was made; one that does not say is no change."""
    pulls = [action for action in plan.actions if isinstance(action, PullModel) and action.registry_digest]
    answers = registries.ask({pull.model: pull.insecure for pull in pulls})
    for pull in pulls:
        now = answers[pull.model].registry_digest
        if now and now != pull.registry_digest:
            yield f"'{pull.model}' in its registry was {pull.registry_digest[:12]}, now it is {now[:12]}"


def judge_again(task: HostTask, plan: HostPlan, run: Run) -> HostPlan | UnreachedHost:
    """A saved plan with what every rule says now."""
    policy = task.policy
    if not (policy.windows or policy.busy or changes_of(plan)):
        return plan
    force = run.options.force
    observed = reach(
        task, run, lambda host: observe_for_guards(host, policy, plan, host.models(), lifted=force)
    )
    if isinstance(observed, UnreachedHost):
        return observed
    return guard_again(plan, desired_of(task), observed, force=force)
