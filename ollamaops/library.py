"""Planning and applying as two calls, for programs that use ollamaops as a library.

The command line does the same with more around it: sandboxes, a display of progress, signals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ollamaops.apply.history import recorded
from ollamaops.apply.locks import holding_hosts
from ollamaops.engine import apply_hosts, build_cases, plan_hosts
from ollamaops.errors import RefusedError
from ollamaops.events import Sink, discard
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.hosts import models_on
from ollamaops.manifest.types import Manifest
from ollamaops.manifest.weights import local_files
from ollamaops.names import new_id
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.observe.run import HostCase, Options, Surroundings
from ollamaops.observe.weights import digests_of, tell_reading
from ollamaops.plan.actions import Plan
from ollamaops.plan.results import RunReport
from ollamaops.registry.client import RegistryClient
from ollamaops.report.run_text import is_as_declared
from ollamaops.state.ledger import Ledger


def make_plan(manifest: Manifest, *, state_dir: Path | str, ask_registry: bool = True, jobs: int = 8) -> Plan:
    """What every host of the manifest needs; writes to no server. Hosts that do not answer are `plan.unreached`.

    `state_dir` is where ollamaops remembers what it applied. Errors: WeightsError for local files, StateError.
    """
    options = Options(ask_registry=ask_registry, jobs=jobs)
    with _prepared(manifest, state_dir, options, discard, CancelToken()) as (cases, around):
        return plan_hosts(cases, around)


def apply_plan(
    plan: Plan,
    manifest: Manifest,
    *,
    state_dir: Path | str,
    on_event: Sink = discard,
    cancel: CancelToken | None = None,
    jobs: int = 8,
) -> RunReport:
    """Carry out a plan of `make_plan` for the same manifest and look again.

    RefusedError if a safety rule says no, or another run has one of the hosts.

    `on_event` is told everything that happens, from several threads; `cancel` ends the run from another thread.
    """
    if plan.refusals:
        raise RefusedError(
            "; ".join(refusal.message for refusal in plan.refusals), hint=plan.refusals[0].hint
        )
    with _prepared(manifest, state_dir, Options(jobs=jobs), on_event, cancel or CancelToken()) as (
        cases,
        around,
    ):
        specs = [case.spec for case in cases]
        run_id = cases[0].options.run_id if cases else ""
        with (
            holding_hosts(specs, Path(state_dir), around, run_id=run_id),
            recorded(plan, cases, around, command="apply_plan", folder=manifest.root) as recorder,
        ):
            report = apply_hosts(plan, cases, recorder.around)
            recorder.finish(report, 0 if all(map(is_as_declared, report.hosts)) else 3)
        return report


@contextmanager
def _prepared(
    manifest: Manifest, state_dir: Path | str, options: Options, emit: Sink, cancel: CancelToken
) -> Iterator[tuple[tuple[HostCase, ...], Surroundings]]:
    ledger = Ledger(Path(state_dir))
    specs = [spec for host in manifest.hosts for spec in models_on(host, manifest)]
    numbered = Options(ask_registry=options.ask_registry, jobs=options.jobs, run_id=new_id())
    with (
        closing(RemoteWeightsStore()) as remote_weights,
        closing(RegistryCache(RegistryClient, cancel)) as registries,
    ):
        around = Surroundings(
            ledger=ledger, registries=registries, remote_weights=remote_weights, emit=emit, cancel=cancel
        )
        tell = tell_reading(emit, run_id=numbered.run_id, now=around.now)
        files = digests_of(
            local_files(specs), ledger, remote_weights=remote_weights, on_progress=tell, cancel=cancel.is_set
        )
        yield build_cases(manifest, manifest.hosts, files, numbered), around
