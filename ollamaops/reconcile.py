"""One cycle: observe, plan, guard, apply, observe again. Reads as a table of contents.

`plan_hosts` and `apply_hosts` run one function per host, of picklable values, through an executor. Nothing here
knows the command line; nothing here makes words for people. The fact a reader would miss: after applying, models
that this run touched are looked into again instead of being believed, up to three rounds, until nothing differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from ollamaops.apply.connect import connect
from ollamaops.apply.executor import execute
from ollamaops.apply.handlers import Workbench, perform, short_digest
from ollamaops.apply.observe import Eyes, learn, look, look_at_digests
from ollamaops.apply.upstream import Upstreams
from ollamaops.apply.weights import with_headers
from ollamaops.errors import OllamaopsError, RefusedError
from ollamaops.events import HostObserved, HostUnreached, RoundEnded, Sink, Succeeded, discard
from ollamaops.manifest.hosts import absent_on, models_on
from ollamaops.manifest.types import AbsentSpec, HostSpec, Manifest, ModelSpec, Policy
from ollamaops.names import ModelName, NamePattern
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import (
    Action,
    CreateModel,
    DeleteModel,
    Difference,
    HostPlan,
    Plan,
    UnreachedHost,
    UploadBlob,
    id_of,
)
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import guard
from ollamaops.plan.observed import FileInfo, ObservedHost, Unreached
from ollamaops.plan.planner import PlanOptions, plan_host
from ollamaops.plan.results import ActionResult, HostReport, RunReport
from ollamaops.state.ledger import Ledger

MAX_ROUNDS = 3
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run, beyond what the manifest says. Picklable. `jobs` is how many hosts are worked on at once."""

    targets: tuple[NamePattern, ...] = ()
    force: frozenset[str] = frozenset()
    verify_weights: bool = False
    ask_registry: bool = True
    costs: bool = True
    guarded: bool = True
    jobs: int = 8
    run_id: str = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCase:
    """Everything that one host's cycle starts from, as picklable values."""

    spec: HostSpec
    models: tuple[ModelSpec, ...]
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    pushes: frozenset[ModelName] = frozenset()
    files: Mapping[Path, FileInfo] = field(default_factory=dict)
    options: Options = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the cycles of a run share: memory, registries, listeners, the wish to stop, and a clock."""

    ledger: Ledger
    upstreams: Upstreams
    emit: Sink = discard
    cancel: CancelToken = field(default_factory=CancelToken)
    now: Callable[[], str] = lambda: (
        datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
    open_client: Callable[[HostSpec], OllamaClient] = connect


def build_cases(
    manifest: Manifest, hosts: Sequence[HostSpec], files: Mapping[Path, FileInfo], options: Options
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
            )
        )
    return tuple(cases)


# the whole fleet


def plan_hosts(cases: Sequence[HostCase], around: Surroundings) -> Plan:
    """The plan for all hosts; a host that cannot be reached is listed as such and nothing is planned for it."""
    found = _for_each(cases, lambda case: _plan_case(case, around), cases[0].options.jobs if cases else 1)
    return Plan(
        hosts=tuple(each for each in found if isinstance(each, HostPlan)),
        unreached=tuple(each for each in found if isinstance(each, UnreachedHost)),
    )


def apply_hosts(plan: Plan, cases: Sequence[HostCase], around: Surroundings) -> RunReport:
    """Carry out `plan` and look again, host by host, in parallel. A refused plan must not be given here."""
    began = time.monotonic()
    plans = {host.host: host for host in plan.hosts}
    jobs = [(case, plans[case.spec.name]) for case in cases if case.spec.name in plans]
    workers = cases[0].options.jobs if cases else 1
    reports = _for_each(jobs, lambda job: reconcile_host(job[0], job[1], around), workers)
    return RunReport(
        run_id=cases[0].options.run_id if cases else "",
        plan=plan,
        hosts=tuple(reports),
        interrupted=around.cancel.is_set(),
        seconds=time.monotonic() - began,
    )


def check_facts(plan: Plan, cases: Sequence[HostCase], around: Surroundings) -> Plan:
    """`plan` if everything it relies on is still so. RefusedError names each fact that has changed."""
    by_host = {case.spec.name: case for case in cases}
    jobs = [(host, by_host[host.host]) for host in plan.hosts]
    changed = _for_each(jobs, lambda job: _changed_facts(job[0], job[1], around), len(jobs))
    found = [fact for facts in changed for fact in facts]
    if found:
        raise RefusedError("the plan no longer fits: " + "; ".join(found), hint="plan again")
    return plan


def _changed_facts(plan: HostPlan, case: HostCase, around: Surroundings) -> list[str]:
    with around.open_client(case.spec) as client:
        digests = look_at_digests(client, around.cancel)
    facts = dict.fromkeys(fact for action in plan.actions for fact in action.expects)
    return [
        f"'{fact.model}' on {plan.host} was {short_digest(fact.digest)}, "
        f"now it is {short_digest(digests.get(fact.model))}"
        for fact in facts
        if digests.get(fact.model) != fact.digest
    ]


def _for_each(jobs: Sequence[Job], work: Callable[[Job], Result], workers: int) -> list[Result]:
    if len(jobs) <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(jobs))), thread_name_prefix="host") as pool:
        return list(pool.map(work, jobs))


# one host


def reconcile_host(case: HostCase, agreed: HostPlan, around: Surroundings) -> HostReport:
    """Carry out `agreed` on one host, then look again and mend what the first round could not know."""
    began = time.monotonic()
    try:
        client = around.open_client(case.spec)
    except OllamaopsError as error:
        return _unreached_report(case, agreed, error)
    with client:
        return replace(_rounds(case, agreed, client, around), seconds=time.monotonic() - began)


def _rounds(case: HostCase, agreed: HostPlan, client: OllamaClient, around: Surroundings) -> HostReport:
    results: list[ActionResult] = []
    touched: set[ModelName] = set()
    made: set[ModelName] = set()
    todo, rounds = agreed, 0
    while True:
        rounds += 1
        done = _carry_out(case, todo.actions, client, around, touched)
        results.extend(done)
        made |= _made(done)
        if around.cancel.is_set():
            return HostReport(host=agreed.host, plan=agreed, results=tuple(results), rounds=rounds)
        seen = survey(case, client, around, distrust=frozenset(touched), made=frozenset(made))
        if isinstance(seen, UnreachedHost):
            return HostReport(
                host=agreed.host, plan=agreed, results=tuple(results), rounds=rounds, unreached=seen
            )
        remaining = tuple(difference for action in seen.actions for difference in action.because)
        around.emit(
            RoundEnded(
                run_id=case.options.run_id,
                at=around.now(),
                host=agreed.host,
                round=rounds,
                remaining=tuple(id_of(action) for action in seen.actions),
            )
        )
        todo = replace(seen, actions=_follow_ups(seen, agreed, results))
        if not todo.actions or seen.refusals or rounds == MAX_ROUNDS:
            return _final_report(agreed, seen, results, remaining, rounds)


def _final_report(
    agreed: HostPlan,
    seen: HostPlan,
    results: list[ActionResult],
    remaining: tuple[Difference, ...],
    rounds: int,
) -> HostReport:
    return HostReport(
        host=agreed.host,
        plan=agreed,
        results=tuple(results),
        remaining=remaining,
        notes=seen.notes,
        rounds=rounds,
        verified=not remaining and not any(note.unresolved for note in seen.notes),
    )


def _carry_out(
    case: HostCase,
    actions: Sequence[Action],
    client: OllamaClient,
    around: Surroundings,
    touched: set[ModelName],
) -> tuple[ActionResult, ...]:
    bench = Workbench(
        spec=case.spec,
        client=client,
        ledger=around.ledger,
        cancel=around.cancel,
        emit=around.emit,
        run_id=case.options.run_id,
        now=around.now,
        uploads={action.digest: action for action in actions if isinstance(action, UploadBlob)},
        touched=touched,
    )
    return execute(
        actions,
        lambda action: perform(bench, action),
        parallel=case.spec.parallel,
        cancel=around.cancel,
    )


def _made(done: Iterable[ActionResult]) -> set[ModelName]:
    """Models that were built from uploads the server has checked."""
    return {
        result.action.model
        for result in done
        if isinstance(result.action, CreateModel) and isinstance(result.outcome, Succeeded)
    }


def _follow_ups(seen: HostPlan, agreed: HostPlan, results: Sequence[ActionResult]) -> tuple[Action, ...]:
    """What a further round may do: nothing that already failed or did not help, and no deletion nobody agreed to."""
    tried = {id_of(result.action) for result in results}
    agreed_ids = {id_of(action) for action in agreed.actions}
    spoiled = {result.action.model for result in results if not isinstance(result.outcome, Succeeded)}
    allowed = [
        action
        for action in seen.actions
        if action.model not in spoiled
        and (isinstance(action, UploadBlob) or id_of(action) not in tried)
        and (not isinstance(action, DeleteModel) or id_of(action) in agreed_ids)
    ]
    wanted = {need for action in allowed for need in action.needs}
    return tuple(
        action for action in allowed if not isinstance(action, UploadBlob) or id_of(action) in wanted
    )


def _unreached_report(case: HostCase, agreed: HostPlan, error: OllamaopsError) -> HostReport:
    unreached = UnreachedHost(host=case.spec.name, error=str(error), hint=error.hint)
    return HostReport(host=case.spec.name, plan=agreed, unreached=unreached)


# looking


def _plan_case(case: HostCase, around: Surroundings) -> HostPlan | UnreachedHost:
    try:
        client = around.open_client(case.spec)
    except OllamaopsError as error:
        return UnreachedHost(host=case.spec.name, error=str(error), hint=error.hint)
    with client:
        return survey(case, client, around)


def survey(
    case: HostCase,
    client: OllamaClient,
    around: Surroundings,
    *,
    distrust: frozenset[ModelName] = frozenset(),
    made: frozenset[ModelName] = frozenset(),
) -> HostPlan | UnreachedHost:
    """Look at one host and plan what it needs; what is found in sync is remembered for the next run."""
    options = PlanOptions(
        verify_weights=case.options.verify_weights,
        ask_registry=case.options.ask_registry,
        distrust=distrust,
        made=made,
    )
    eyes = Eyes(
        spec=case.spec,
        client=client,
        ledger=around.ledger,
        upstreams=around.upstreams,
        cancel=around.cancel,
        costs=case.options.costs and case.options.ask_registry,
    )
    desired = desired_of(case)
    observed = look(eyes, desired, options)
    if isinstance(observed, ObservedHost) and any(
        model.weights and {model.name, model.spec.moved_from} & observed.shown.keys()
        for model in desired.models
    ):
        desired = desired_of(replace(case, files=with_headers(case.files)))
    if isinstance(observed, Unreached):
        around.emit(
            HostUnreached(
                run_id=case.options.run_id,
                at=around.now(),
                host=case.spec.name,
                error=observed.error,
                hint=observed.hint,
            )
        )
        return UnreachedHost(host=observed.host, error=observed.error, hint=observed.hint)
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
    plan = plan_host(desired, observed, options)
    learn(eyes, desired, observed, plan, options=options, now=around.now())
    return guard(plan, desired, observed, force=case.options.force) if case.options.guarded else plan


def desired_of(case: HostCase) -> DesiredHost:
    """The DesiredHost of a case."""
    return build_desired(
        case.spec.name,
        case.models,
        absent=case.absent,
        policy=case.policy,
        files=case.files,
        targets=case.options.targets,
        pushes=case.pushes,
    )
