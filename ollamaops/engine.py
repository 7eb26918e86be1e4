"""One cycle: observe, plan, guard, apply, observe again. Reads as a table of contents.

`plan_hosts` and `apply_hosts` run one function per host, of picklable values, through an executor; what they run is
in apply/plan_host.py and apply/converge.py. Nothing here knows the command line or makes words for people. What
only carries out is imported when it is needed, so that a plan starts quickly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ollamaops.apply.plan_host import find_changes, judge_again, survey_host
from ollamaops.errors import OllamaopsError, RefusedError, RemoteError, StateError
from ollamaops.files.location import Location, Weights
from ollamaops.manifest.hosts import absent_on, models_on
from ollamaops.manifest.types import HostSpec, Manifest
from ollamaops.names import ModelName
from ollamaops.observe.run import HostCase, Options, Surroundings, desired_of
from ollamaops.plan.actions import HostPlan, Plan, UnreachedHost

if TYPE_CHECKING:
    from ollamaops.plan.results import RunReport

__all__ = [
    "HostCase",
    "Options",
    "Surroundings",
    "apply_hosts",
    "build_cases",
    "check_facts",
    "desired_of",
    "plan_hosts",
    "plan_rollbacks",
    "release_hosts",
]

Job = TypeVar("Job")
Result = TypeVar("Result")


def build_cases(
    manifest: Manifest, hosts: Sequence[HostSpec], files: Mapping[Location, Weights], options: Options
) -> tuple[HostCase, ...]:
    """One case per host. A model is pushed by the first of `hosts` that has it."""
    pushed: set[ModelName] = set()
    cases = []
    for host in hosts:
        models = models_on(host, manifest)
        mine = frozenset(model.name for model in models if model.push) - pushed
        pushed |= mine
        cases.append(
            HostCase(
                spec=host,
                models=tuple(models),
                absent=tuple(absent_on(host, manifest)),
                policy=manifest.policy,
                pushes=mine,
                files=files,
                options=options,
                state=manifest.state,
            )
        )
    return tuple(cases)


def plan_hosts(cases: Sequence[HostCase], around: Surroundings) -> Plan:
    """The plan for all hosts; a host that cannot be reached is listed as such and nothing is planned for it."""
    found = _for_each(cases, cases, lambda case: survey_host(case, around))
    return Plan(
        hosts=tuple(each for each in found if isinstance(each, HostPlan)),
        unreached=tuple(each for each in found if isinstance(each, UnreachedHost)),
    )


def apply_hosts(plan: Plan, cases: Sequence[HostCase], around: Surroundings) -> RunReport:
    """Carry out `plan` and look again, host by host, in parallel. A refused plan must not be given here.

    A plan that was saved (it says what it was made from) is carried out exactly; any other is followed by rounds
    of mending. RefusedError when another run has the lock of a host that keeps its own ledger.
    """
    from ollamaops.apply.converge import reconcile_host
    from ollamaops.apply.locks import holding_ledgers
    from ollamaops.plan.results import RunReport

    began = time.monotonic()
    plans = {host.host: host for host in plan.hosts}
    jobs = [(case, plans[case.spec.name]) for case in cases if case.spec.name in plans]
    exact = bool(plan.made_from)
    with holding_ledgers([case for case, host in jobs if _may_write(case, host)], around) as holding:
        reports = _for_each(cases, jobs, lambda job: reconcile_host(*job, holding, exact=exact))
    return RunReport(
        run_id=cases[0].options.run_id if cases else "",
        plan=plan,
        hosts=tuple(reports),
        interrupted=around.cancel.is_set(),
        seconds=time.monotonic() - began,
    )


def _may_write(case: HostCase, plan: HostPlan) -> bool:
    return bool(plan.actions or plan.leftovers or case.options.release)


def plan_rollbacks(cases: Sequence[HostCase], around: Surroundings, version: int) -> Plan:
    """What rolling the targets back by `version` versions takes on all hosts; it is carried out exactly."""
    from ollamaops.apply.rollback import survey_rollback

    found = _for_each(cases, cases, lambda case: survey_rollback(case, around, version))
    return Plan(
        hosts=tuple(each for each in found if isinstance(each, HostPlan)),
        unreached=tuple(each for each in found if isinstance(each, UnreachedHost)),
        made_from={"rollback": str(version)},
    )


def release_hosts(
    cases: Sequence[HostCase], around: Surroundings
) -> tuple[dict[str, tuple[ModelName, ...]], dict[str, OllamaopsError]]:
    """Let go of what was rolled back: host → the models that were held, and host → why it could not be done."""
    from ollamaops.apply.locks import holding_ledgers
    from ollamaops.apply.rollback import release_host

    released: dict[str, tuple[ModelName, ...]] = {}
    failed: dict[str, OllamaopsError] = {}
    with holding_ledgers(cases, around) as writing:
        for case in cases:
            try:
                released[case.spec.name] = release_host(case, writing)
            except (RemoteError, StateError) as error:
                failed[case.spec.name] = error
    return released, failed


def check_facts(plan: Plan, cases: Sequence[HostCase], around: Surroundings) -> Plan:
    """`plan`, for the hosts that answer, if everything it relies on is still so; its pulls may give nothing else.

    The rules whose answer depends on the moment are asked again. RefusedError names each fact that has changed; a
    host that does not answer becomes an unreached one.
    """
    from ollamaops.plan.pulls import pin_to_registry

    by_host = {case.spec.name: case for case in cases}
    jobs = [(by_host[host.host], host) for host in plan.hosts]
    found = _for_each(cases, jobs, lambda job: find_changes(*job, around))
    changes = dict.fromkeys(
        change for each in found if not isinstance(each, UnreachedHost) for change in each
    )
    if changes:
        raise RefusedError("the plan no longer fits: " + "; ".join(changes), hint="plan again")
    judged = _for_each(cases, jobs, lambda job: judge_again(*job, around))
    unreached = tuple(dict.fromkeys(each for each in (*found, *judged) if isinstance(each, UnreachedHost)))
    silent = {each.host for each in unreached}
    return replace(
        plan,
        hosts=tuple(
            pin_to_registry(each) for each in judged if isinstance(each, HostPlan) and each.host not in silent
        ),
        unreached=(*plan.unreached, *unreached),
    )


def _for_each(cases: Sequence[HostCase], jobs: Sequence[Job], work: Callable[[Job], Result]) -> list[Result]:
    """`work` done for all jobs, in their order, on as many hosts at once as the cases' options say."""
    if len(jobs) <= 1:
        return [work(job) for job in jobs]
    from concurrent.futures import ThreadPoolExecutor

    workers = max(1, min(cases[0].options.jobs, len(jobs)))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="host") as pool:
        return list(pool.map(work, jobs))
