"""One look at one host and the plan that follows from it: ask, gather, decide.

Leaves what is asked to observe.py, what follows to plan/. The fact a reader would miss: what is found in sync is
remembered on the way, so that the next run need not look into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ollamaops.apply.archives import with_archives
from ollamaops.errors import Cancelled, OllamaopsError, RemoteError
from ollamaops.events import HostObserved, HostUnreached
from ollamaops.names import ModelName
from ollamaops.observe.contents import short_digest
from ollamaops.observe.guard_facts import with_circumstances
from ollamaops.observe.host import Eyes, Glance, look, look_at_digests, remember_in_sync
from ollamaops.observe.memory import ledger_of, load_evictions
from ollamaops.observe.run import HostCase, Surroundings, desired_of
from ollamaops.observe.weights import with_headers
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import HostPlan, PullModel, UnreachedHost
from ollamaops.plan.deletions import only_prune
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.guard import guard, guard_again
from ollamaops.plan.lookups import PlanOptions, is_trusted
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.planner import plan_host
from ollamaops.plan.residency import is_managed


def survey_host(case: HostCase, around: Surroundings) -> HostPlan | UnreachedHost:
    """What one host needs, or why that is not known. Errors that are not about the host are raised."""
    try:
        client = around.open_client(case.spec, around.cancel)
    except OllamaopsError as error:
        return unreached(case, around, error)
    with client:
        return survey(case, client, around)


def survey(
    case: HostCase,
    client: OllamaClient,
    around: Surroundings,
    *,
    distrust: frozenset[ModelName] = frozenset(),
    made: frozenset[ModelName] = frozenset(),
    settled: frozenset[ModelName] = frozenset(),
) -> HostPlan | UnreachedHost:
    """Look at one host and plan what it needs. `distrust`, `made` and `settled` are those of PlanOptions.

    StateError, WeightsError and Cancelled are raised: they say nothing about the host.
    """
    desired = desired_of(case)
    options = PlanOptions(
        verify_weights=case.options.verify_weights,
        ask_registry=case.options.ask_registry,
        distrust=distrust,
        made=made,
        residency_done=settled,
        evicted=load_evictions(around.ledger, case.spec.name) if is_managed(desired) else {},
        release=case.options.release,
    )
    eyes = _eyes(case, client, around)
    try:
        observed = look(eyes, desired, options)
    except RemoteError as error:
        return unreached(case, around, error)
    _tell(case, client, around, observed)
    desired = _with_headers(case, desired, observed, options)
    desired = with_archives(desired, observed, options, around.cancel.is_set)
    plan = plan_host(desired, observed, options)
    remember_in_sync(eyes, desired, observed, plan, options=options, now=around.now())
    if case.options.prune_only:
        plan = only_prune(plan, force=case.options.force)
    return guarded(case, eyes, plan, desired, observed, around) if case.options.guarded else plan


def guarded(
    case: HostCase,
    glance: Glance,
    plan: HostPlan,
    desired: DesiredHost,
    observed: ObservedHost,
    around: Surroundings,
) -> HostPlan | UnreachedHost:
    """The plan with what the rules say against it."""
    force = case.options.force
    try:
        observed = with_circumstances(
            glance, around.registries, case.policy, plan, observed, at=around.moment(), lifted=force
        )
    except RemoteError as error:
        return unreached(case, around, error)
    return guard(plan, desired, observed, force=force)


def judge_again(case: HostCase, plan: HostPlan, around: Surroundings) -> HostPlan | UnreachedHost:
    """A saved plan with what the rules say now whose answer depends on the moment: windows, and models in use."""
    if not (case.policy.windows or case.policy.busy):
        return plan
    try:
        with around.open_client(case.spec, around.cancel) as client:
            glance = _glance(case, client, around)
            observed = with_circumstances(
                glance,
                around.registries,
                replace(case.policy, licenses=None),
                plan,
                glance.models(),
                at=around.moment(),
                lifted=case.options.force,
            )
    except Cancelled:
        raise
    except OllamaopsError as error:
        return unreached(case, around, error)
    return guard_again(plan, desired_of(case), observed, force=case.options.force)


def _with_headers(
    case: HostCase, desired: DesiredHost, observed: ObservedHost, options: PlanOptions
) -> DesiredHost:
    """The headers of local weights are read when a model of theirs has to be compared or built."""
    is_needed = any(model.weights and not is_trusted(model, observed, options) for model in desired.models)
    return desired_of(replace(case, files=with_headers(case.files))) if is_needed else desired


def find_changes(case: HostCase, plan: HostPlan, around: Surroundings) -> list[str] | UnreachedHost:
    """Every fact that the plan relies on and that is no longer so, in words."""
    try:
        with around.open_client(case.spec, around.cancel) as client:
            digests = look_at_digests(_glance(case, client, around))
    except Cancelled:
        raise
    except OllamaopsError as error:
        return unreached(case, around, error)
    facts = dict.fromkeys(fact for action in plan.actions for fact in action.expects)
    changes = [
        f"'{fact.model}' on {plan.host} was {short_digest(fact.digest)}, "
        f"now it is {short_digest(digests.get(fact.model))}"
        for fact in facts
        if digests.get(fact.model) != fact.digest
    ]
    return [*changes, *_moved_tags(plan, around)] if case.options.ask_registry else changes


def _moved_tags(plan: HostPlan, around: Surroundings) -> Iterator[str]:
    """What a registry has other than when the plan was made; one that does not say is no change."""
    pulls = [action for action in plan.actions if isinstance(action, PullModel) and action.registry_digest]
    answers = around.registries.ask({pull.model: pull.insecure for pull in pulls})
    for pull in pulls:
        now = answers[pull.model].registry_digest
        if now and now != pull.registry_digest:
            yield f"'{pull.model}' in its registry was {pull.registry_digest[:12]}, now it is {now[:12]}"


def unreached(case: HostCase, around: Surroundings, error: OllamaopsError) -> UnreachedHost:
    """Tell of a host that does not answer."""
    around.emit(
        HostUnreached(
            run_id=case.options.run_id,
            at=around.now(),
            host=case.spec.name,
            error=str(error),
            hint=error.hint,
        )
    )
    return UnreachedHost(host=case.spec.name, error=str(error), hint=error.hint)


def _tell(case: HostCase, client: OllamaClient, around: Surroundings, observed: ObservedHost) -> None:
    around.emit(
        HostObserved(
            run_id=case.options.run_id,
            at=around.now(),
            host=case.spec.name,
            version=observed.version,
            models=len(observed.models),
            requests=client.transport.requests_sent,
        )
    )


def _glance(case: HostCase, client: OllamaClient, around: Surroundings) -> Glance:
    return Glance(spec=case.spec, client=client, cancel=around.cancel)


def _eyes(case: HostCase, client: OllamaClient, around: Surroundings) -> Eyes:
    return Eyes(
        spec=case.spec,
        client=client,
        ledger=ledger_of(case, client, around),
        registries=around.registries,
        cancel=around.cancel,
        costs=case.options.costs and case.options.ask_registry,
    )
