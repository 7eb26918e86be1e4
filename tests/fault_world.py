"""A pretend host with something to lose, a manifest that wants to change it, and the engine between them.

Each `World` is a sandbox over a copy of a store that was filled once per version, so that a test is over in a
fraction of a second. Faults are armed when asked for and gone after `calm`; the server stays the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import requests

from ollamaops.apply.upstream import Upstreams
from ollamaops.apply.weights import digests_of
from ollamaops.cli import exits
from ollamaops.events import ActionEnded, ActionStarted, Event, Failed, Refused, Retrying
from ollamaops.manifest.load import load_manifest
from ollamaops.manifest.types import HostSpec, Manifest
from ollamaops.names import ModelName
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.session import TimeLimits
from ollamaops.plan.actions import Plan, id_of
from ollamaops.plan.desired import local_files
from ollamaops.plan.results import RunReport
from ollamaops.reconcile import HostCase, Options, Surroundings, apply_hosts, build_cases, plan_hosts
from ollamaops.registry.client import RegistryClient
from ollamaops.sandbox.fault_injection import with_faults
from ollamaops.sandbox.faults import FaultScript, parse_faults
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

WEIGHTS = Path(__file__).parent / "contract" / "weights"
BASE = "llama3.2:1b"
# what is on every host before the engine comes: name → what it is made from and its system prompt
BEFORE = {
    "theirs": (BASE, "somebody else's"),
    "keep:golden": (BASE, "do not touch"),
    "bot": (BASE, "the old words"),
    "alias": ("theirs", None),
    "old-bot": (BASE, "not wanted any more"),
}
BYSTANDERS = (BASE, "theirs", "keep:golden")
PATIENT = TimeLimits(connect_s=10, idle_s=10, stall_s=10, quiet_s=10)
HASTY = TimeLimits(connect_s=2, idle_s=0.3, stall_s=0.3, quiet_s=0.3)
_TIMEOUT_S = 30
# how much faster than real time the engine waits between two attempts
_HURRY = 50


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
            return exits.code_of_plan(self.plan, detailed=False)
        return exits.code_of_run(self.report)

    @property
    def said(self) -> str:
        """Every failure of the run in the words of the report, a line each."""
        results = self.report.results if self.report else ()
        hosts = self.report.hosts if self.report else ()
        unreached = [*self.plan.unreached, *(host.unreached for host in hosts if host.unreached)]
        lines = [result.outcome.error for result in results if isinstance(result.outcome, Failed)]
        lines += [result.outcome.because for result in results if isinstance(result.outcome, Refused)]
        lines += [each.error for each in unreached]
        lines += [note.message for host in self.plan.hosts for note in host.notes if note.unresolved]
        return "\n".join(lines)

    @property
    def retries(self) -> int:
        """How many attempts of actions failed and were tried again."""
        return sum(isinstance(event, Retrying) for event in self.events)

    def assert_every_action_has_one_outcome(self) -> None:
        """Also in the events: each action of the plan that began has ended, and none twice in one round."""
        if self.report is None:
            return
        for host in self.report.hosts:
            wanted = [id_of(action) for action in host.plan.actions]
            got = [id_of(result.action) for result in host.results]
            assert got[: len(wanted)] == wanted
        began = [event.action_id for event in self.events if isinstance(event, ActionStarted)]
        ended = [event.action_id for event in self.events if isinstance(event, ActionEnded)]
        assert sorted(began) == sorted(ended)


@dataclass
class World:
    """One host and one manifest."""

    sandbox: Sandbox
    script: FaultScript
    folder: Path
    manifest: Manifest
    limits: TimeLimits = PATIENT
    asks_registry: bool = True
    lost_by_others: set[str] = field(default_factory=set)

    def arm(self, faults: str) -> None:
        """From now on, these faults."""
        armed = parse_faults(faults)
        self.script.rules, self.script.seen, self.script.hits = armed.rules, armed.seen, armed.hits

    def calm(self) -> None:
        """No more faults; a server that is away comes back by itself."""
        self.script.rules, self.script.seen, self.script.hits = (), [], []

    def plan(self, *, remembers: bool = True) -> Plan:
        """What `ollamaops plan` finds; without memory everything declared is looked into."""
        with self._around(remembers=remembers) as (around, cases, _):
            return plan_hosts(cases, around)

    def apply(self) -> Run:
        """What `ollamaops apply -y` does."""
        events: list[Event] = []
        with self._around(emit=events.append) as (around, cases, clock):
            plan = plan_hosts(cases, around)
            wanted = plan.actions and not plan.refusals
            report = apply_hosts(plan, cases, around) if wanted else None
            return Run(plan, report, tuple(events), tuple(clock.waits))

    @contextmanager
    def _around(
        self, *, remembers: bool = True, emit: Callable[[Event], None] = lambda _: None
    ) -> Iterator[tuple[Surroundings, tuple[HostCase, ...], FastClock]]:
        specs = self.manifest.models
        options = Options(ask_registry=self.asks_registry)
        files = digests_of(local_files(specs))
        hosts = tuple(
            replace(host, url=self.sandbox.url, identity="store", stall_s=self.limits.stall_s)
            for host in self.manifest.hosts
        )
        endpoints = {"registry.ollama.ai": self.sandbox.url}  # which has no registry, and no network behind it
        upstreams = Upstreams(lambda: RegistryClient(endpoints=endpoints, timeout_s=5))
        clock = FastClock()
        with tempfile.TemporaryDirectory(dir=self.folder) as empty:
            around = Surroundings(
                ledger=Ledger(self.folder / "state" if remembers else Path(empty)),
                upstreams=upstreams,
                emit=emit,
                cancel=clock,
                open_client=self._open_client,
            )
            try:
                yield around, build_cases(self.manifest, hosts, files, options), clock
            finally:
                upstreams.close()

    def _open_client(self, spec: HostSpec) -> OllamaClient:
        return OllamaClient.connect(spec.url, host_name=spec.name, limits=self.limits)

    # what is there

    def digests(self) -> dict[str, str]:
        """The manifest digest of every model of the store, read from the disk: no fault can hide anything."""
        root = self.sandbox.store.manifests
        found = (path for path in root.glob("*/*/*/*") if path.is_file())
        return {
            ModelName.parse("/".join(path.relative_to(root).parts[:3]) + f":{path.name}").display: hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
            for path in found
        }

    def assert_the_store_is_whole(self) -> None:
        """Every manifest is readable, has weights, and all of its blobs are there with the right content."""
        root = self.sandbox.store.manifests
        for path in (path for path in root.glob("*/*/*/*") if path.is_file()):
            manifest = json.loads(path.read_text())
            kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
            assert "model" in kinds, f"{path.name} has no weights"
            for layer in (manifest["config"], *manifest["layers"]):
                blob = self.sandbox.store.blob_path(layer["digest"])
                assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"][7:], blob.name


@contextmanager
def a_world(
    version: str, models: str, folder: Path, *, limits: TimeLimits = PATIENT, asks_registry: bool = True
) -> Iterator[World]:
    """A host of that version with the models of BEFORE, and a manifest whose `models:` are given as YAML."""
    shutil.copytree(_store_of(version), folder / "store")
    manifest = folder / "ollamaops.yaml"
    manifest.write_text(
        "hosts: {gpu-1: {url: http://127.0.0.1:1}}\n"
        'policy: {protect: ["*:golden"]}\n'
        "defaults: {model: {retries: 2}}\n"
        f"models:\n  - {BASE}\n{models}\n"
    )
    for weights in ("tiny-f16.gguf", "tiny-a.gguf"):
        shutil.copy(WEIGHTS / weights, folder)
    script = FaultScript(())
    with Sandbox(folder / "store", as_version=version, faults=with_faults(script)) as sandbox:
        loaded = load_manifest([manifest])
        yield World(sandbox, script, folder, loaded, limits, asks_registry)


@cache
def _filled() -> tuple[tempfile.TemporaryDirectory[str], dict[str, Path], threading.Lock]:
    return tempfile.TemporaryDirectory(prefix="ollamaops-worlds-"), {}, threading.Lock()


def _store_of(version: str) -> Path:
    """A store of that version with the models of BEFORE; made once per process."""
    root, known, lock = _filled()
    with lock:
        if version not in known:
            folder = Path(root.name) / version
            with Sandbox(folder, as_version=version) as sandbox:
                _fill(sandbox.url)
            known[version] = folder
        return known[version]


def _fill(url: str) -> None:
    _ask("pull", url, {"model": BASE, "stream": False})
    for name, (source, system) in BEFORE.items():
        if system is None:
            _ask("copy", url, {"source": source, "destination": name})
            continue
        modelfile = f"FROM {source}\nSYSTEM {system}"
        body = {"model": name, "from": source, "system": system, "modelfile": modelfile, "stream": False}
        _ask("create", url, body)


def _ask(endpoint: str, url: str, body: Mapping[str, object]) -> None:
    answer = requests.post(f"{url}/api/{endpoint}", json=body, timeout=_TIMEOUT_S)
    answer.raise_for_status()
