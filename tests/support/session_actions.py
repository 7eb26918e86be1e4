"""Single actions in a host session, for tests of how each is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_host import (
    WEIGHTS,
    NoWaitToken,
    name,
)
from msgspec.structs import replace
from scripted_host import Script

from ollamaops.apply.perform import perform
from ollamaops.events import (
    Event,
    Failed,
    Noted,
    Outcome,
    Retrying,
)
from ollamaops.manifest.types import HostSpec
from ollamaops.names import Digest
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run, RunOptions
from ollamaops.observe.session import HostSession
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    PullModel,
    PushModel,
    Recipe,
    UploadBlob,
)
from ollamaops.registry.client import RegistryClient
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import Fingerprint

DIGEST = "ab" * 32
OTHER = "cd" * 32


@dataclass
class Session:
    """A session with a host at some URL, and what it told."""

    host: HostSession
    events: list[Event]

    def do(self, action: Action) -> Outcome:
        return perform(self.host, action)

    def change_run(self, **fields: Any) -> None:
        """Go on with another cancel token, or other registries."""
        self.host.run = replace(self.host.run, **fields)

    def fail(self, action: Action) -> Failed:
        outcome = self.do(action)
        assert isinstance(outcome, Failed), outcome
        return outcome

    @property
    def retries(self) -> int:
        return sum(isinstance(event, Retrying) for event in self.events)

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Noted)]


@contextmanager
def at(
    url: str, state: Path, *, ledger: Ledger | None = None, spare: tuple[str, ...] = ()
) -> Iterator[Session]:
    events: list[Event] = []
    cancel, store = NoWaitToken(), ledger or Ledger(state)
    with OllamaClient.connect(url, host_name="gpu-1", cancel=cancel) as client:
        yield Session(
            HostSession(
                task=HostTask(spec=HostSpec(name="gpu-1", url=url)),
                client=client,
                ledger=store,
                run=Run(
                    ledger=store,
                    registries=RegistryCache(RegistryClient),
                    options=RunOptions(ask_registry=False),
                    cancel=cancel,
                    emit=events.append,
                    run_id="run",
                    now=lambda: "2026-01-01T00:00:00.000Z",
                ),
                spare=frozenset(map(name, spare)),
            ),
            events,
        )


def pull(model: str, *pin: str) -> PullModel:
    return PullModel(host="gpu-1", model=name(model), fingerprint=Fingerprint("f", "w"), pin=pin)


def create(model: str, **recipe: object) -> CreateModel:
    made_of = Recipe(**recipe)  # type: ignore[arg-type]  # fields by name
    return CreateModel(host="gpu-1", model=name(model), recipe=made_of, fingerprint=Fingerprint("f", "w"))


def copy(source: str, model: str) -> CopyModel:
    return CopyModel(host="gpu-1", model=name(model), source=name(source), fingerprint=Fingerprint("c", "w"))


def delete(model: str) -> DeleteModel:
    return DeleteModel(host="gpu-1", model=name(model))


def push(source: str, model: str) -> PushModel:
    return PushModel(host="gpu-1", model=name(model), source=name(source))


def upload(file: str) -> UploadBlob:
    path = WEIGHTS / file
    data = path.read_bytes()
    return UploadBlob(
        host="gpu-1", model=name("x"), digest=Digest.of(data), path=str(path), size_bytes=len(data)
    )


def tagged(digests: Mapping[str, str], **extra: str) -> Script:
    models = [{"name": model, "digest": digest, "size": 1, **extra} for model, digest in digests.items()]
    return lambda asked, wire: wire.json({"models": models})


def say(status: int) -> Script:
    return lambda asked, wire: wire.json({"error": "no"}, status)
