"""The engine against pretend hosts: one `LiveHost` is a sandbox, a memory of it, and a stranger with raw HTTP.

`plan` and `apply` run the whole cycle as the command line does. Everything under `LiveHost.stranger` goes around the
engine, in the form of the server's own era, as somebody else with a shell would do it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from patience import PATIENCE_S
from recording_proxy import RecordingProxy

from ollamaops.changes import apply_tasks
from ollamaops.engine import build_tasks, plan_tasks
from ollamaops.events import Event
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import (
    AbsentSpec,
    Build,
    Copy,
    HostSpec,
    Manifest,
    ModelSpec,
    Policy,
    Pull,
    Source,
    WeightsFile,
)
from ollamaops.manifest.weights import local_files
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run, RunOptions
from ollamaops.observe.weights import digests_of
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import Action, HostPlan, Plan, id_of
from ollamaops.plan.results import HostReport, RunReport
from ollamaops.registry.client import RegistryClient
from ollamaops.sandbox.behavior import as_variant, behavior_for
from ollamaops.sandbox.server import Sandbox
from ollamaops.settings import Message
from ollamaops.state.ledger import Ledger

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
VERSIONS = ("0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2")
MODELFILE_VERSIONS = frozenset({"0.3.4"})
REWRITING_VERSIONS = frozenset({"0.32.15", "0.33.0-rc2"})
BASE = "llama3.2:3b"


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def weights(file: str, known: Digest | None = None) -> WeightsFile:
    """One of the weights of the recordings."""
    return WeightsFile(WEIGHTS / file, file, known)


def a_model(text: str, source: Source | None = None, **rest: Any) -> ModelSpec:
    """An entry; without a source it is pulled under its own name."""
    return ModelSpec(name=name(text), source=source or Pull(ref=name(text)), **rest)


def a_build(base: str | None = None, *files: str, **rest: Any) -> Build:
    return Build(base=name(base) if base else None, files=tuple(map(weights, files)), **rest)


def a_copy(source: str) -> Copy:
    return Copy(source=name(source))


def an_absence(pattern: str) -> AbsentSpec:
    return AbsentSpec(pattern=NamePattern.parse(pattern))


class NoWaitToken(CancelToken):
    """A wish to stop in whose presence every wait is over at once; `waits` are the seconds asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@dataclass
class OtherClient:
    """Somebody else who changes the host behind our back."""

    url: str
    version: str

    def tags(self) -> dict[str, str]:
        """Display name → tags digest."""
        answer = requests.get(f"{self.url}/api/tags", timeout=PATIENCE_S)
        answer.raise_for_status()
        return {model["name"]: model["digest"] for model in answer.json()["models"]}

    def show(self, model: str) -> dict[str, Any]:
        shown: dict[str, Any] = self._ask("POST", "show", {"model": model, "name": model}).json()
        return shown

    def pull(self, model: str) -> None:
        self._ask("POST", "pull", {"model": model, "stream": False})

    def delete(self, model: str) -> None:
        self._ask("DELETE", "delete", {"model": model})

    def copy(self, source: str, destination: str) -> None:
        self._ask("POST", "copy", {"source": source, "destination": destination})

    def create(self, model: str, base: str, **fields: Any) -> None:
        """Make a model from another one; `fields` are `system`, `template`, `parameters`, `license`."""
        if self.version not in MODELFILE_VERSIONS:
            self._ask("POST", "create", {"model": model, "from": base, "stream": False, **fields})
            return
        lines = [f"FROM {base}"]
        for key, value in fields.items():
            if key == "parameters":
                lines += [f"PARAMETER {option} {setting}" for option, setting in value.items()]
            else:
                lines.append(f'{key.upper()} """{value}"""')
        self._ask("POST", "create", {"model": model, "modelfile": "\n".join(lines), "stream": False})

    def create_from_file(self, model: str, file: str) -> None:
        data = (WEIGHTS / file).read_bytes()
        digest = Digest.of(data)
        answer = requests.post(f"{self.url}/api/blobs/{digest}", data=data, timeout=PATIENCE_S)
        answer.raise_for_status()
        if self.version in MODELFILE_VERSIONS:
            body = {"model": model, "modelfile": f"FROM @{digest}", "stream": False}
        else:
            body = {"model": model, "files": {file: str(digest)}, "stream": False}
        self._ask("POST", "create", body)

    def _ask(self, method: str, endpoint: str, body: Mapping[str, object]) -> requests.Response:
        answer = requests.request(method, f"{self.url}/api/{endpoint}", json=body, timeout=PATIENCE_S)
        assert answer.ok, f"{endpoint} {body}: {answer.status_code} {answer.text}"
        return answer


@dataclass
class LiveHost:
    """One pretend host, `gpu-1`, and what we remember of it."""

    sandbox: Sandbox
    state: Path
    proxy: RecordingProxy
    events: list[Event] = field(default_factory=list)
    cancel: CancelToken = field(default_factory=NoWaitToken)
    options: RunOptions = field(default_factory=lambda: RunOptions(costs=False))
    run_id: str = "run"
    targets: tuple[NamePattern, ...] = ()
    policy: Policy = Policy()
    parallel: int = 2
    emit: Callable[[Event], None] | None = None
    registries: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    requests_sent: int = 0  # all but those for the layers
    layers_asked: int = 0

    @property
    def version(self) -> str:
        return self.sandbox.version

    @property
    def stranger(self) -> OtherClient:
        return OtherClient(self.sandbox.url, self.version)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.state)

    @property
    def spec(self) -> HostSpec:
        return HostSpec(
            name="gpu-1", url=self.sandbox.url, labels=self.labels, parallel=self.parallel, identity="gpu-1"
        )

    @property
    def unused_blobs(self) -> set[str]:
        """What takes space in the store and belongs to no model."""
        store = self.sandbox.store
        with store.lock:
            used = {digest.replace(":", "-") for digest in store.used_digests()}
            return {path.name for path in store.blobs.iterdir()} - used

    def forget(self) -> None:
        """Lose the ledger."""
        for file in self.state.iterdir():
            file.unlink()

    def tasks(self, models: Iterable[ModelSpec], absent: Iterable[AbsentSpec] = ()) -> tuple[HostTask, ...]:
        manifest = Manifest(
            root=WEIGHTS,
            files=(),
            hosts=(self.spec,),
            models=tuple(models),
            absent=tuple(absent),
            policy=self.policy,
        )
        files = digests_of(local_files(manifest.models), self.ledger)
        return build_tasks(manifest, manifest.hosts, files, self.targets)

    @contextmanager
    def opened(self) -> Iterator[Run]:
        clients: list[OllamaClient] = []

        def open_client(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
            clients.append(OllamaClient.connect(spec.url, host_name=spec.name, cancel=cancel))
            return clients[-1]

        seen_before = len(self.proxy.seen)
        registries = RegistryCache(lambda: RegistryClient(endpoints=self.registries, timeout_s=PATIENCE_S))
        emit = self.emit or self.events.append
        yield Run(
            options=self.options,
            run_id=self.run_id,
            ledger=self.ledger,
            registries=registries,
            emit=emit,
            cancel=self.cancel,
            open_client=open_client,
        )
        registries.close()
        seen = self.proxy.seen[seen_before:]
        self.layers_asked = sum(request.line.startswith("HEAD /api/blobs/") for request in seen)
        self.requests_sent = sum(client.transport.requests_sent for client in clients) - self.layers_asked

    def plan(self, models: Iterable[ModelSpec], absent: Iterable[AbsentSpec] = ()) -> HostPlan:
        """What this host needs; it must be reached."""
        with self.opened() as run:
            plan = plan_tasks(self.tasks(models, absent), run)
        assert not plan.unreached, plan.unreached
        return plan.hosts[0]

    def apply(self, models: Iterable[ModelSpec], absent: Iterable[AbsentSpec] = ()) -> HostReport:
        """Plan and carry it out."""
        return self.run(models, absent).hosts[0]

    def run(self, models: Iterable[ModelSpec], absent: Iterable[AbsentSpec] = ()) -> RunReport:
        tasks = self.tasks(models, absent)
        with self.opened() as run:
            plan = plan_tasks(tasks, run)
            assert not plan.refusals, plan.refusals
            return apply_tasks(plan, tasks, run)

    def carry_out(self, plan: Plan, tasks: tuple[HostTask, ...]) -> HostReport:
        """A plan that was made before."""
        with self.opened() as run:
            return apply_tasks(plan, tasks, run).hosts[0]


def small_manifest() -> list[ModelSpec]:
    """One of each that can be tampered with."""
    return [
        a_model(BASE),
        a_model(
            "bot",
            a_build(
                BASE,
                system="be kind",
                template="{{ .System }} {{ .Prompt }}",
                parameters={"temperature": 0.5, "stop": ("a", "b")},
                licenses=("MIT",),
            ),
        ),
        a_model("legal", a_build(None, "tiny-a.gguf", system="be exact", parameters={"num_ctx": 4096})),
        a_model("chat", a_copy("bot")),
    ]


def every_source(version: str) -> list[ModelSpec]:
    """Every source that such a server can build, in an order that is not the one of building."""
    models = [
        a_model("emb", a_copy("nomic-embed-text")),
        a_model("chat", a_copy("bot:v1")),
        a_model("child", a_build("bot:v1", parameters={"temperature": 1})),
        a_model(
            "bot:v1",
            a_build(
                BASE,
                system='Say "hi".\nAlways.',
                template="{{ .System }}|{{ .Prompt }}",
                parameters={
                    "temperature": 0.25,
                    "num_ctx": 1048576,
                    "stop": ("<a>", 'say "b"'),
                    "use_mmap": False,
                    "seed": 7,
                },
                messages=(Message("user", "hi"), Message("assistant", 'yo "x"\nthere')),
                licenses=("MIT", "Apache\n2"),
            ),
        ),
        a_model("legal", a_build(None, "tiny-a.gguf", system="Be legal.", licenses=("L",))),
        a_model("with-template", a_build(None, "tiny-chatml.gguf")),
        a_model("small", a_build(None, "tiny-f16.gguf", quantize="q8_0")),
        a_model("mirror", Pull(ref=name("qwen3:0.6b"))),
        a_model(BASE),
    ]
    if version != "0.3.4":  # which takes an adapter for the weights
        models.append(a_model("tuned", Build(base=name("legal"), adapters=(weights("tiny-lora.gguf"),))))
    return models


def others(before: dict[str, str], *changed: str) -> dict[str, str]:
    """The digests of all models but those."""
    return {model: digest for model, digest in before.items() if model not in changed}


@contextmanager
def a_host(
    version: str = VERSIONS[-1], *, variant: str = "", max_loaded: int | None = None, **rest: Any
) -> Iterator[LiveHost]:
    """An empty host of that version, without any memory. A `variant` of the sandbox is its own registry."""
    proxy = RecordingProxy()
    behavior = as_variant(behavior_for(version), variant) if variant else None
    with (
        tempfile.TemporaryDirectory(prefix="ollamaops-test-") as state,
        Sandbox(
            as_version=version,
            faults=proxy.wrap,
            max_loaded=max_loaded,
            behavior=behavior,
            registry=bool(variant),
        ) as sandbox,
    ):
        if variant:
            rest.setdefault("registries", {"registry.ollama.ai": sandbox.url})
        yield LiveHost(sandbox, Path(state), proxy, **rest)


def ids(actions: Iterable[Action]) -> list[str]:
    """The ids of actions, without the host."""
    return [id_of(action).partition("/")[2] for action in actions]


def reasons(plan: HostPlan) -> dict[str, list[str]]:
    """Id of every action but uploads → why: the kind, or the field's path."""
    return {
        id_of(action).partition("/")[2]: [each.path or each.kind for each in action.because]
        for action in plan.actions
        if action.because
    }


def failures(report: HostReport) -> dict[str, str]:
    """Id of every action that did not succeed → its outcome in words."""
    return {
        id_of(result.action).partition("/")[2]: str(result.outcome)
        for result in report.results
        if type(result.outcome).__name__ != "Succeeded"
    }


def assert_converged(host: LiveHost, report: HostReport) -> None:
    """All worked, a fresh look agrees, and nobody has anything more to say."""
    assert failures(report) == {}
    assert report.remaining == ()
    assert report.verified, report.notes
