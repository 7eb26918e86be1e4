"""Changing hosts in an open run: take their locks, apply a plan, end a rollback, verify models.

engine.py opens the run. Every change is followed by a fresh look, and every run is kept in the history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec.structs import replace

from ollamaops.apply.converge import reconcile_host
from ollamaops.apply.history import recorded
from ollamaops.apply.locks import lock_hosts, lock_ledgers
from ollamaops.apply.remember import release
from ollamaops.engine import Engine, open_run
from ollamaops.errors import OllamaopsError, RefusedError, RemoteError, StateError, UsageError
from ollamaops.events import Sink, discard
from ollamaops.exits import INTERRUPTED
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import Manifest
from ollamaops.names import ModelName, NamePattern
from ollamaops.observe.one_server import find_same
from ollamaops.observe.run import HostTask, Run, RunOptions, for_each
from ollamaops.observe.session import session_of
from ollamaops.observe.verify import Depth, OnModel, verify_hosts
from ollamaops.plan.actions import Plan
from ollamaops.plan.guard import CHANGING
from ollamaops.plan.one_server import note_of_same
from ollamaops.plan.results import HostReport, HostVerdicts, RunReport
from ollamaops.state.ledger import Ledger


def lock(engine: Engine, emit: Sink | None = None) -> AbstractContextManager[None]:
    """Within the block no other run changes these hosts. RefusedError says who has one; waiting is told."""
    specs = [task.spec for task in engine.tasks]
    return lock_hosts(specs, engine.run if emit is None else replace(engine.run, emit=emit))


def apply(
    engine: Engine,
    plan: Plan,
    *,
    command: str,
    emit: Sink | None = None,
    interrupted_code: Callable[[], int] = lambda: INTERRUPTED,
) -> RunReport:
    """Carry out `plan` and look again, host by host, in parallel. The run is kept in the history as `command`.

    A saved plan and a rollback are carried out exactly; any other is followed by rounds that correct what the
    first could not know. RefusedError when a safety rule says no, or another run has the lock of a host that
    keeps its own ledger. `interrupted_code` is the exit code of a run that is stopped.
    """
    _require_allowed(plan)
    run = engine.run if emit is None else replace(engine.run, emit=emit)
    with recorded(plan, engine.tasks, run, command=command, folder=engine.manifest.root) as recorder:
        report = run.hidden.hide(apply_tasks(plan, engine.tasks, recorder.run))
        if report.interrupted:
            report = replace(report, interrupted_code=interrupted_code())
        recorder.finish(report, report.exit_code)
    return report


def release_rollbacks(engine: Engine) -> tuple[dict[str, tuple[ModelName, ...]], dict[str, OllamaopsError]]:
    """Forget what the targets were rolled back to: host → the models, and host → why it could not be done."""
    return release_tasks(engine.tasks, engine.run)


def verify_targets(
    engine: Engine, on_model: OnModel | None = None, *, depth: Depth = "expectations"
) -> tuple[HostVerdicts, ...]:
    """Whether the targets meet what the manifest expects of them, and with more depth, whether every one loads,
    answers and has its files. Loads models, changes none."""
    tasks = [
        replace(task, models=tuple(model for model in task.models if engine.is_meant(model.name)))
        for task in engine.declared
    ]
    return engine.run.hidden.hide(verify_hosts(tasks, engine.run, on_model=on_model, depth=depth))


def release_tasks(
    tasks: Sequence[HostTask], run: Run
) -> tuple[dict[str, tuple[ModelName, ...]], dict[str, OllamaopsError]]:
    """Forget what the targets were rolled back to: host → the models, and host → why it could not be done."""
    released: dict[str, tuple[ModelName, ...]] = {}
    failed: dict[str, OllamaopsError] = {}
    with lock_ledgers(tasks, run) as writing:
        for task in tasks:
            try:
                with run.open_client(task.spec, run.cancel) as client:
                    released[task.spec.name] = release(session_of(task, client, writing))
            except (RemoteError, StateError) as error:
                failed[task.spec.name] = error
    return released, failed


def apply_tasks(plan: Plan, tasks: Sequence[HostTask], run: Run) -> RunReport:
    """Carry out `plan`, which no rule may refuse, and look again."""
    began = time.monotonic()
    plans = {host.host: host for host in plan.hosts}
    jobs = [(task, plans[task.spec.name]) for task in tasks if task.spec.name in plans]
    if plan.kind == "prune":
        run = replace(run, options=replace(run.options, prune_only=True))
    changing = [task for task, host in jobs if host.actions or host.leftovers or run.options.release]
    with lock_ledgers(changing, run) as writing:
        reports = for_each(
            jobs,
            lambda job: reconcile_host(*job, writing, exact=plan.kind in ("saved", "rollback")),
            jobs=run.options.jobs,
        )
    if any(isinstance(result.action, CHANGING) for report in reports for result in report.results):
        same = find_same([task.spec for task in tasks], run)
        reports = tuple(_with_same(report, same.get(report.host, ())) for report in reports)
    return RunReport(
        run_id=run.run_id,
        plan=plan,
        hosts=reports,
        interrupted=run.cancel.is_set(),
        seconds=time.monotonic() - began,
    )


def _with_same(report: HostReport, hosts: Sequence[str]) -> HostReport:
    """The report of a host that turned out to be the server of other entries too."""
    if not hosts:
        return report
    return replace(report, notes=(*report.notes, note_of_same(report.host, hosts)), verified=False)


def _require_allowed(plan: Plan) -> None:
    if plan.refusals:
        raise RefusedError(
            "; ".join(refusal.message for refusal in plan.refusals), hint=plan.refusals[0].hint
        )


# for programs that import ollamaops


def apply_plan(
    plan: Plan,
    manifest: Manifest,
    *,
    state_dir: Path | str,
    on_event: Sink = discard,
    cancel: CancelToken | None = None,
    jobs: int = 8,
) -> RunReport:
    """Carry out a plan of `make_plan` for the same manifest and look again. `report.exit_code` is the command line's.

    RefusedError if a safety rule says no, or another run has one of the hosts. WeightsError, StateError.

    `on_event` is told everything that happens, from several threads; `cancel` ends the run from another thread.
    """
    options = RunOptions(jobs=jobs)
    with open_run(manifest, Ledger(Path(state_dir)), options=options, emit=on_event, cancel=cancel) as engine:
        _require_allowed(plan)
        with lock(engine):
            return apply(engine, plan, command="apply_plan")


def prune(
    manifest: Manifest,
    *,
    state_dir: Path | str,
    on_event: Sink = discard,
    cancel: CancelToken | None = None,
    jobs: int = 8,
) -> RunReport:
    """Delete undeclared models, as far as the manifest's `policy.prune` allows it (without it: what ollamaops made
    or pulled itself), and look again.

    Errors as those of `apply_plan`. On a host where other changes are pending nothing is deleted, and a note says so.
    """
    scope = manifest.policy.prune or "owned"
    wanted = replace(manifest, policy=replace(manifest.policy, prune=scope))
    options = RunOptions(jobs=jobs)
    with (
        open_run(wanted, Ledger(Path(state_dir)), options=options, emit=on_event, cancel=cancel) as engine,
        lock(engine),
    ):
        return apply(engine, engine.plan_prune(), command="prune")


def rollback(
    manifest: Manifest,
    *models: str,
    state_dir: Path | str,
    version: int = 1,
    on_event: Sink = discard,
    cancel: CancelToken | None = None,
    jobs: int = 8,
) -> RunReport:
    """Switch models (names or globs) back to a version that `keep_previous` has kept; 1 is the one before this one.

    They stay there until their entry in the manifest changes. UsageError without models, InvalidName; else errors
    as those of `apply_plan`. A model without such a version is named in a note of its host's plan.
    """
    targets = [NamePattern.parse(model) for model in models]
    if not targets:
        raise UsageError("no model to roll back", hint="name at least one")
    options = RunOptions(jobs=jobs)
    with (
        open_run(
            manifest,
            Ledger(Path(state_dir)),
            targets=targets,
            options=options,
            emit=on_event,
            cancel=cancel,
        ) as engine,
        lock(engine),
    ):
        return apply(engine, engine.plan_rollback(version), command=f"rollback {' '.join(models)}")


def verify(
    manifest: Manifest,
    *,
    state_dir: Path | str,
    on_model: OnModel | None = None,
    cancel: CancelToken | None = None,
    jobs: int = 8,
) -> tuple[HostVerdicts, ...]:
    """Whether every host's models meet what the manifest expects of them, host by host. Loads models, changes none.

    A host that does not answer has `unreached`. `on_model` is told host and model before each is asked. Cancelled.
    """
    options = RunOptions(jobs=jobs)
    with open_run(manifest, Ledger(Path(state_dir)), options=options, cancel=cancel) as engine:
        return verify_targets(engine, on_model)
