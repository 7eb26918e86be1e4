"""The one front door: `open_run` opens a run, and its Engine offers everything that looks at hosts.

The command line and `import ollamaops` both come through here, so that a run has the same plan, the same history and
the same exit code whoever starts it. changes.py changes hosts in an open run; commands that only look start without
it. Nothing here makes words for people.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from ollamaops.apply.plan_host import find_changes, judge_again, plan_rollback_of_task, plan_task
from ollamaops.apply.saved_plan import build_made_from, require_same
from ollamaops.errors import RefusedError
from ollamaops.events import Sink, discard
from ollamaops.files.location import Location, Weights
from ollamaops.http.cancel import CancelToken
from ollamaops.lockfile.build import Reference, references_on
from ollamaops.manifest.hosts import absent_on, models_on
from ollamaops.manifest.types import HostSpec, Manifest
from ollamaops.manifest.weights import local_files
from ollamaops.names import ModelName, NamePattern, new_id
from ollamaops.observe.host import observe_all, observe_loaded
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.observe.run import HostTask, Run, RunOptions, for_each
from ollamaops.observe.session import session_of
from ollamaops.observe.weights import digests_of, tell_reading
from ollamaops.ollama.features import ServerVersion
from ollamaops.plan.actions import HostPlan, Plan, UnreachedHost
from ollamaops.plan.codec import Json, fingerprint, plan_from_json, plan_to_json
from ollamaops.plan.hidden import Hidden
from ollamaops.plan.observed import HostLoaded, ObservedHost
from ollamaops.plan.pulls import pin_to_registry
from ollamaops.plan.results import as_verdict
from ollamaops.registry.client import RegistryClient
from ollamaops.state.ledger import Ledger

Display = Callable[[], AbstractContextManager[Sink]]
"""Opens a sink for as long as something is going on."""


@contextmanager
def open_run(
    manifest: Manifest,
    ledger: Ledger,
    *,
    hosts: Sequence[HostSpec] | None = None,
    targets: Sequence[NamePattern] = (),
    environment: str = "",
    options: RunOptions = RunOptions(),  # noqa: B008  a frozen value
    cancel: CancelToken | None = None,
    emit: Sink = discard,
    reading: Display | None = None,
    open_registry: Callable[[], RegistryClient] = RegistryClient,
) -> Iterator[Engine]:
    """A run over `hosts` (None: all of the manifest) and, of their models, those that `targets` name (none: all).

    `emit` is told everything that happens, from several threads; `reading`, where it is given, what is told while
    local weights are read. `cancel` ends the run from another thread. Nothing is sent or read yet.
    """
    token, hidden = cancel or CancelToken(), Hidden(manifest.hidden)
    environ = {name: value for name, value in os.environ.items() if manifest.is_trusted or name != "HF_TOKEN"}
    with (
        closing(RemoteWeightsStore(environ=environ)) as remote_weights,
        closing(RegistryCache(open_registry, token)) as registries,
    ):
        run = Run(
            ledger=ledger,
            registries=registries,
            remote_weights=remote_weights,
            options=options,
            run_id=new_id(),
            emit=emit,
            cancel=token,
            hidden=hidden,
        )
        chosen = tuple(manifest.hosts if hosts is None else hosts)
        yield Engine(
            manifest, run, chosen, tuple(targets), environment, reading or (lambda: nullcontext(emit))
        )


class Engine:
    """An open run. Hosts that do not answer are part of every result; StateError and WeightsError are raised, and
    Cancelled when the run is asked to stop."""

    def __init__(
        self,
        manifest: Manifest,
        run: Run,
        hosts: tuple[HostSpec, ...],
        targets: tuple[NamePattern, ...] = (),
        environment: str = "",
        reading: Display = lambda: nullcontext(discard),
    ) -> None:
        self.manifest, self.run, self.hosts, self.targets = manifest, run, hosts, targets
        self._environment, self._reading = environment, reading

    @cached_property
    def tasks(self) -> tuple[HostTask, ...]:
        """What is wanted of each host. Reads all local weights the first time; WeightsError, Cancelled."""
        files = local_files(spec for host in self.hosts for spec in models_on(host, self.manifest))
        if not files:
            return self.declared
        run = self.run
        with self._reading() as sink:
            found = digests_of(
                files,
                run.ledger,
                remote_weights=run.remote_weights,
                on_progress=tell_reading(sink, run_id=run.run_id, now=run.now),
                cancel=run.cancel.is_set,
            )
        return build_tasks(self.manifest, self.hosts, found, self.targets)

    @property
    def declared(self) -> tuple[HostTask, ...]:
        """As `tasks`, without a look at local weights."""
        return build_tasks(self.manifest, self.hosts, {}, self.targets)

    # looking

    def plan(self) -> Plan:
        """What every host needs; writes to no server."""
        return plan_tasks(self.tasks, self.run)

    def drift(self, *, look_inside: bool = False) -> Plan:
        """As `plan`, without safety rules, and as it may be shown: its actions are what differs, and why. With
        `look_inside` every model is looked into, whatever is remembered of it."""
        options = replace(self.run.options, guarded=False, look_inside=look_inside)
        plan = plan_tasks(self.tasks, replace(self.run, options=options))
        return self.run.hidden.hide(replace(plan, hosts=tuple(map(as_verdict, plan.hosts))))

    def plan_prune(self) -> Plan:
        """The deletion of undeclared models, as far as the policy's `prune` allows it."""
        options = replace(self.run.options, prune_only=True)
        return replace(plan_tasks(self.tasks, replace(self.run, options=options)), kind="prune")

    def plan_rollback(self, version: int = 1) -> Plan:
        """Switching the targets back by `version` versions; such a plan is carried out exactly."""
        return plan_rollbacks(self.tasks, self.run, version)

    def loaded(self) -> tuple[tuple[HostLoaded, ...], tuple[UnreachedHost, ...]]:
        """What each host has in memory, and the hosts that did not answer."""
        return observe_loaded(self.declared, self.run)

    @property
    def references(self) -> tuple[Reference, ...]:
        """Everything that the targets pull, host by host."""
        return tuple(
            reference for task in self.declared for reference in references_on(task.models, self.targets)
        )

    def version_of(self, host: HostSpec) -> ServerVersion:
        """The version of one server. RemoteError; UsageError if the host's secrets cannot be read."""
        with self.run.open_client(host, self.run.cancel) as client:
            return client.version()

    def observe_all(self, host: HostSpec) -> ObservedHost:
        """Everything that one host has, and where it came from as far as that is known. RemoteError; UsageError."""
        with self.run.open_client(host, self.run.cancel) as client:
            return observe_all(session_of(HostTask(spec=host, state=self.manifest.state), client, self.run))

    # saved plans

    def save(self, plan: Plan) -> dict[str, Json]:
        """The plan as JSON, with what it was made from. Refusals are kept: such a plan cannot be applied.

        What came from the environment is not in it: it is read from there again.
        """
        saved = replace(plan, kind="saved", made_from=self._made_from())
        return {**plan_to_json(self.run.hidden.hide(saved)), "fingerprint": fingerprint(saved)}

    def check_saved(self, document: object, path: str) -> Plan:
        """The plan in `document`, for the hosts that answer, if everything it relies on is still so.

        The rules whose answer depends on the moment are asked again, and its pulls may give nothing else than what
        was planned. UsageError if it cannot be read; RefusedError, which names `path` and each fact that has
        changed. A host that does not answer becomes an unreached one.
        """
        plan = replace(plan_from_json(self.run.hidden.restore(document)), kind="saved")
        require_same(plan.made_from, self._made_from(), path)
        unknown = sorted({host.host for host in plan.hosts} - {host.name for host in self.hosts})
        if unknown:
            raise RefusedError(
                f"the plan is for hosts that are not chosen: {', '.join(unknown)}", hint="check --host and -l"
            )
        return check_facts(plan, self.tasks, self.run)

    def _made_from(self) -> dict[str, str]:
        return build_made_from(
            self.tasks, self.manifest.policy, environment=self._environment, targets=self.targets
        )

    def is_meant(self, name: ModelName) -> bool:
        """Whether the targets name the model; without targets all are meant."""
        return not self.targets or any(target.matches(name) for target in self.targets)


def build_tasks(
    manifest: Manifest,
    hosts: Sequence[HostSpec],
    files: Mapping[Location, Weights],
    targets: Sequence[NamePattern] = (),
) -> tuple[HostTask, ...]:
    """One task per host. A model is pushed by the first of `hosts` that has it."""
    pushed: set[ModelName] = set()
    tasks = []
    for host in hosts:
        models = models_on(host, manifest)
        mine = frozenset(model.name for model in models if model.push) - pushed
        pushed |= mine
        tasks.append(
            HostTask(
                spec=host,
                models=tuple(models),
                absent=tuple(absent_on(host, manifest)),
                policy=manifest.policy,
                pushes=mine,
                targets=tuple(targets),
                files=files,
                state=manifest.state,
            )
        )
    return tuple(tasks)


def plan_tasks(tasks: Sequence[HostTask], run: Run) -> Plan:
    """The plan for all hosts; a host that cannot be reached is listed as such and nothing is planned for it."""
    return _as_plan(for_each(tasks, lambda task: plan_task(task, run), jobs=run.options.jobs))


def plan_rollbacks(tasks: Sequence[HostTask], run: Run, version: int) -> Plan:
    """What rolling the targets back by `version` versions takes on all hosts."""
    found = for_each(tasks, lambda task: plan_rollback_of_task(task, run, version), jobs=run.options.jobs)
    return replace(_as_plan(found), kind="rollback", made_from={"rollback": str(version)})


def check_facts(plan: Plan, tasks: Sequence[HostTask], run: Run) -> Plan:
    """`plan` for the hosts that answer, if all its facts still hold; else RefusedError, which names them."""
    by_host = {task.spec.name: task for task in tasks}
    jobs = [(by_host[host.host], host) for host in plan.hosts]
    found = for_each(jobs, lambda job: find_changes(*job, run), jobs=run.options.jobs)
    changes = dict.fromkeys(
        change for each in found if not isinstance(each, UnreachedHost) for change in each
    )
    if changes:
        raise RefusedError("the plan no longer fits: " + "; ".join(changes), hint="plan again")
    judged = for_each(jobs, lambda job: judge_again(*job, run), jobs=run.options.jobs)
    unreached = tuple(dict.fromkeys(each for each in (*found, *judged) if isinstance(each, UnreachedHost)))
    silent = {each.host for each in unreached}
    return replace(
        plan,
        hosts=tuple(
            pin_to_registry(each) for each in judged if isinstance(each, HostPlan) and each.host not in silent
        ),
        unreached=(*plan.unreached, *unreached),
    )


def _as_plan(found: Sequence[HostPlan | UnreachedHost]) -> Plan:
    return Plan(
        hosts=tuple(each for each in found if isinstance(each, HostPlan)),
        unreached=tuple(each for each in found if isinstance(each, UnreachedHost)),
    )


def make_plan(manifest: Manifest, *, state_dir: Path | str, ask_registry: bool = True, jobs: int = 8) -> Plan:
    """What every host of the manifest needs; writes to no server. Hosts that do not answer are `plan.unreached`.

    `state_dir` is where ollamaops remembers what it applied. Errors: WeightsError for local files, StateError.
    """
    options = RunOptions(ask_registry=ask_registry, jobs=jobs)
    with open_run(manifest, Ledger(Path(state_dir)), options=options) as engine:
        return engine.plan()


def drift(manifest: Manifest, *, state_dir: Path | str, ask_registry: bool = True, jobs: int = 8) -> Plan:
    """What differs from the manifest: as `make_plan`, without safety rules. No actions and no unreached
    hosts: everything is as declared.

    Errors: WeightsError, StateError.
    """
    options = RunOptions(ask_registry=ask_registry, jobs=jobs)
    with open_run(manifest, Ledger(Path(state_dir)), options=options) as engine:
        return engine.drift()
