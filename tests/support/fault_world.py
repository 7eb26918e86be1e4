"""A pretend host with something to lose, a manifest that wants to change it, and the engine between them.

Each `World` is a sandbox over a copy of a store that was filled once per version, so that a test is over in a
fraction of a second. Faults are armed when asked for and gone after `calm`; the server stays the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from msgspec.structs import replace
from patience import PATIENCE_S

from ollamaops import exits
from ollamaops.changes import apply_tasks
from ollamaops.engine import build_tasks, plan_tasks
from ollamaops.events import ActionEnded, ActionStarted, Event, Failed, Refused, Retrying
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import TimeLimits
from ollamaops.manifest.load import load_manifest
from ollamaops.manifest.types import HostSpec, Manifest
from ollamaops.manifest.weights import local_files
from ollamaops.names import ModelName
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, RunOptions
from ollamaops.observe.run import Run as EngineRun
from ollamaops.observe.weights import digests_of
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import Plan, id_of
from ollamaops.plan.results import RunReport, code_of_plan
from ollamaops.registry.client import RegistryClient
from ollamaops.sandbox.fault_injection import with_faults
from ollamaops.sandbox.fault_script import FaultScript, parse_faults
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
BASE = "llama3.2:1b"
# what is on every host before the engine comes: name → what it is made from, and its system prompt (None: a copy)
BEFORE = {
    "theirs:latest": (BASE, "somebody else's"),
    "keep:golden": (BASE, "do not touch"),
    "bot:latest": (BASE, "the old words"),
    "alias:latest": ("theirs", None),
    "old-bot:latest": (BASE, "not wanted any more"),
}
# nobody declares a change of these: the base, an unmanaged model, a protected one
BYSTANDERS = (BASE, "theirs:latest", "keep:golden")
PATIENT = TimeLimits(connect_s=PATIENCE_S, idle_s=PATIENCE_S, stall_s=PATIENCE_S, quiet_s=PATIENCE_S)
HASTY = TimeLimits(connect_s=20, idle_s=0.4, stall_s=0.4, quiet_s=0.4)
# how much faster than real time the engine waits between two attempts
_HURRY = 25


class FastClock(CancelToken):
    """Waits are much shorter than asked for; `waits` says what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return super().wait(timeout and timeout / _HURRY)


@dataclass(frozen=True)
class Run:
    """What one `apply` did. `events` are all of them, `waits` the pauses before new attempts, in seconds."""

    plan: Plan
    report: RunReport | None
    events: tuple[Event, ...]
    waits: tuple[float, ...]

    @property
    def exit_code(self) -> int:
        """What `ollamaops apply -y` would end with."""
        if self.plan.refusals:
            return exits.REFUSED
        if self.report is None:
            return code_of_plan(self.plan)
        return self.report.exit_code

    @property
    def said(self) -> list[str]:
        """Every failure of the run in the words of the report, without the host's name."""
        results = self.report.results if self.report else ()
        hosts = self.report.hosts if self.report else ()
        unreached = [*self.plan.unreached, *(host.unreached for host in hosts if host.unreached)]
        lines = [result.outcome.error for result in results if isinstance(result.outcome, Failed)]
        lines += [result.outcome.because for result in results if isinstance(result.outcome, Refused)]
        lines += [each.error for each in unreached]
        notes = [note for host in self.plan.hosts for note in host.notes]
        notes += [note for report in hosts for note in report.notes]
        lines += dict.fromkeys(note.message for note in notes if note.unresolved)
        return [line.removeprefix("gpu-1: ") for line in lines]

    @property
    def remaining(self) -> bool:
        """Whether the last look still found a difference; somebody may have changed something again."""
        return any(host.remaining for host in self.report.hosts) if self.report else False

    @property
    def outcomes(self) -> dict[str, str]:
        """How each action ended, by its id without the host: `{"create/bot:latest": "Succeeded"}`."""
        results = self.report.results if self.report else ()
        return {id_of(result.action).partition("/")[2]: type(result.outcome).__name__ for result in results}

    @property
    def retries(self) -> list[str]:
        """The errors after which an action was tried again."""
        return [event.error for event in self.events if isinstance(event, Retrying)]

    def assert_every_action_has_one_outcome(self) -> None:
        """Each action of the plan, in its order; and in the events, what began has ended."""
        for host in self.report.hosts if self.report else ():
            wanted = [id_of(action) for action in host.plan.actions]
            assert [id_of(result.action) for result in host.results][: len(wanted)] == wanted
        began = [event.action_id for event in self.events if isinstance(event, ActionStarted)]
        ended = [event.action_id for event in self.events if isinstance(event, ActionEnded)]
        assert sorted(began) == sorted(ended)


@dataclass
class World:
    """One host and one manifest. `limits` are the engine's, `asks_registry` False is `--no-registry`."""

    sandbox: Sandbox
    script: FaultScript
    folder: Path
    manifest: Manifest
    limits: TimeLimits
    asks_registry: bool

    def arm(self, faults: str) -> None:
        """From now on, these faults."""
        armed = parse_faults(faults)
        self.script.rules, self.script.seen, self.script.hits = armed.rules, armed.seen, armed.hits

    def calm(self) -> None:
        """No more faults; a server that is away comes back by itself."""
        self.script.rules, self.script.seen, self.script.hits = (), [], []

    def plan(self, *, remembers: bool = True) -> Plan:
        """What `ollamaops plan` finds; without memory everything declared is looked into."""
        with self._around(remembers=remembers) as (run, tasks, _):
            return plan_tasks(tasks, run)

    def apply(self) -> Run:
        """What `ollamaops apply -y` does."""
        events: list[Event] = []
        with self._around(emit=events.append) as (run, tasks, clock):
            plan = plan_tasks(tasks, run)
            report = apply_tasks(plan, tasks, run) if plan.actions and not plan.refusals else None
            return Run(plan, report, tuple(events), tuple(clock.waits))

    @contextmanager
    def _around(
        self, *, remembers: bool = True, emit: Callable[[Event], None] = lambda _: None
    ) -> Iterator[tuple[EngineRun, tuple[HostTask, ...], FastClock]]:
        hosts = tuple(
            replace(host, url=self.sandbox.url, identity="store", stall_s=self.limits.stall_s)
            for host in self.manifest.hosts
        )
        files = digests_of(local_files(self.manifest.models))
        tasks = build_tasks(self.manifest, hosts, files)
        clock = FastClock()
        endpoints = {"registry.ollama.ai": "http://127.0.0.1:9"}  # nobody answers, and no network is needed
        registries = RegistryCache(lambda: RegistryClient(endpoints=endpoints, timeout_s=PATIENCE_S), clock)
        with tempfile.TemporaryDirectory(dir=self.folder) as empty:
            ledger = Ledger(self.folder / "state" if remembers else Path(empty))
            try:
                yield (
                    EngineRun(
                        options=RunOptions(ask_registry=self.asks_registry),
                        ledger=ledger,
                        registries=registries,
                        emit=emit,
                        cancel=clock,
                        open_client=self._open_client,
                    ),
                    tasks,
                    clock,
                )
            finally:
                registries.close()

    def _open_client(self, spec: HostSpec, cancel: CancelToken) -> OllamaClient:
        return OllamaClient.connect(spec.url, host_name=spec.name, limits=self.limits, cancel=cancel)

    # what is there

    def digests(self) -> dict[str, str]:
        """The digest of every model's manifest, read from the disk, where no fault can hide anything."""
        root = self.sandbox.store.manifests
        return {
            ModelName.parse(
                f"{'/'.join(path.relative_to(root).parts[:-1])}:{path.name}"
            ).display: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._manifests()
        }

    def assert_the_store_is_whole(self) -> None:
        """Every manifest is readable, has weights, and all of its blobs are there with the right content."""
        for path in self._manifests():
            manifest = json.loads(path.read_text())
            kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
            assert "model" in kinds, f"{path} has no weights"
            for layer in (manifest["config"], *manifest["layers"]):
                blob = self.sandbox.store.blob_path(layer["digest"])
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"][7:]

    def _manifests(self) -> Iterator[Path]:
        return (path for path in self.sandbox.store.manifests.glob("*/*/*/*") if path.is_file())


class Shelf:
    """Stores with the models of BEFORE, one per version, made when first asked for and never changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store_of(self, version: str) -> Path:
        """The folder to copy."""
        store = self._folder / version
        if not store.exists():
            with Sandbox(store, as_version=version) as sandbox:
                _fill(sandbox.url)
        return store

    @contextmanager
    def a_world(
        self, version: str, models: str, *, limits: TimeLimits = PATIENT, asks_registry: bool = True
    ) -> Iterator[World]:
        """A host of that version with the models of BEFORE; the manifest declares BASE and `models` (YAML)."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            shutil.copytree(self.store_of(version), folder / "store")
            shutil.copy(WEIGHTS / "tiny-f16.gguf", folder)
            manifest = folder / "ollamaops.yaml"
            manifest.write_text(
                "hosts: {gpu-1: {url: http://127.0.0.1:1}}\n"
                "policy: {protect: ['*:golden']}\n"
                "defaults: {model: {retries: 2}}\n"
                f"models:\n- {BASE}\n{models}\n"
            )
            script = FaultScript(())
            with Sandbox(folder / "store", as_version=version, faults=with_faults(script)) as sandbox:
                yield World(sandbox, script, folder, load_manifest([manifest]), limits, asks_registry)


def _fill(url: str) -> None:
    ask(url, "pull", {"model": BASE, "stream": False})
    for name, (source, system) in BEFORE.items():
        if system is None:
            ask(url, "copy", {"source": source, "destination": name})
            continue
        modelfile = f"FROM {source}\nSYSTEM {system}"  # for servers up to 0.5.4, which read nothing else
        body = {"model": name, "from": source, "system": system, "modelfile": modelfile, "stream": False}
        ask(url, "create", body)


def ask(url: str, endpoint: str, body: Mapping[str, object]) -> None:
    """Do something as another client of the server would."""
    requests.post(f"{url}/api/{endpoint}", json=body, timeout=PATIENCE_S).raise_for_status()
