"""One host during one run: what it lists, shows and has loaded, with retries, and events that carry run and host.

Servers up to 0.33 rewrite manifests in place: a model may be missing from one `/api/tags` and be back in the next, so
`find` looks again before it calls a model missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import RLock
from typing import TypeVar

from msgspec.structs import replace

from ollamaops.errors import (
    AnswerError,
    Cancelled,
    InvalidName,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RemoteError,
)
from ollamaops.events import HostUnreached, Noted, Progressed, Retrying, Sink
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import OnRetry, attempt
from ollamaops.manifest.graph import cloud_models
from ollamaops.manifest.types import HostSpec
from ollamaops.names import Digest, ModelName
from ollamaops.observe.contents import read_contents
from ollamaops.observe.ledger_model import ledger_of
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run, for_each
from ollamaops.observe.tags import Seen, read_tags
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.contents import Contents, Unreadable, text_stop, with_text_stop
from ollamaops.ollama.features import Endpoint, Features
from ollamaops.ollama.listing import Listing
from ollamaops.ollama.wire import Progress
from ollamaops.plan.actions import Action, UnreachedHost, UploadBlob, id_of
from ollamaops.plan.observed import Loaded, ObservedHost, ObservedModel, read_stay
from ollamaops.plan.one_server import Row, Rows
from ollamaops.plan.residency import to_compare, with_sharers
from ollamaops.state.records import LedgerStore

Found = TypeVar("Found")
RETRIES = 2
LOOKS_FOR_MISSING = 3
PAUSE_S = 0.5


@dataclass(slots=True, kw_only=True)
class HostSession:
    """One host during one run, used by all its worker threads.

    `ledger` is what we remember of the host. `touched` are models that this run has changed itself, `uploads` the
    local files behind the blobs of this run's recipes, `spare` the undeclared models. `changing` is locked
    by whoever creates, copies or deletes: servers (up to 0.33) lock nothing between these, and a deletion takes
    layers that a create has found. `endpoints` says of each that was looked for whether the server has it.
    """

    task: HostTask
    client: OllamaClient
    run: Run
    ledger: LedgerStore
    spare: frozenset[ModelName] = frozenset()
    uploads: Mapping[Digest, UploadBlob] = field(default_factory=dict)
    touched: set[ModelName] = field(default_factory=set)
    changing: RLock = field(default_factory=RLock)
    endpoints: dict[Endpoint, bool] = field(default_factory=dict)

    @property
    def spec(self) -> HostSpec:
        return self.task.spec

    @property
    def name(self) -> str:
        return self.task.spec.name

    @property
    def cancel(self) -> CancelToken:
        return self.run.cancel

    @property
    def registries(self) -> RegistryCache | None:
        """The registries; None when they must not be asked."""
        return self.run.registries if self.run.options.ask_registry else None

    @property
    def emit(self) -> Sink:
        return self.run.emit

    # looking

    def with_retries(self, ask: Callable[[], Found]) -> Found:
        """`ask`, tried again while the error may pass."""
        return attempt(ask, retries=RETRIES, cancel=self.cancel)

    def tags(self) -> Listing[Seen]:
        """A fresh look at every model that has a name requests can use."""
        return self.with_retries(lambda: read_tags(self.client))

    def find(self, name: ModelName, tags: Listing[Seen]) -> Seen | None:
        """The model in `tags`, which were just read; looked for again before it is called missing. ProtocolError if
        it is listed in a way that cannot be understood."""
        for _ in range(LOOKS_FOR_MISSING - 1):
            if name in tags:
                break
            if name in tags.unreadable:
                raise ProtocolError(f"{self.name}: '{name}': {tags.unreadable[name]}", host=self.name)
            if self.cancel.wait(PAUSE_S):
                raise Cancelled("stopped while looking for a model")
            tags = self.tags()
        return tags.get(name)

    def require(self, name: ModelName, tags: Listing[Seen], purpose: str) -> Seen:
        """The model that is needed `purpose` ("to copy to 'prod'"); NotFound if it is not there."""
        found = self.find(name, tags)
        if found is None:
            raise NotFound(
                f"{self.name}: no model '{name}' {purpose}",
                host=self.name,
                status=404,
                hint="pull it first, or add it to models:",
            )
        return found

    def refuse_stub(self, source: Seen, for_model: ModelName) -> None:
        """ProtocolError if `for_model` would become a cloud stub although nobody has declared it so."""
        names = {source.name, for_model}
        meant = cloud_models(self.task.models)
        is_meant = any(name in meant or name.source_suffix == "cloud" for name in names)
        if source.is_cloud and not is_meant:
            raise ProtocolError(
                f"{self.name}: '{source.name}' is a cloud stub for {source.stands_for}: nothing is made from it",
                host=self.name,
                hint="delete it there and run again, or name a cloud model by its own tag (…-cloud) to mean one",
            )

    def require_made(self, name: ModelName) -> Seen:
        """The model that has just been made; ProtocolError if the host does not list it."""
        found = self.find(name, self.tags())
        if found is None:
            raise ProtocolError(
                f"{self.name}: '{name}' is not there, although the server reported success",
                host=self.name,
                hint="look at the server's log; run again to try once more",
            )
        return found

    def open_model(self, seen: Seen) -> Contents | Unreadable:
        """What is in the model, or why it cannot be opened. RemoteError when the host does not say."""
        show = partial(self.client.show, seen.name)
        return read_contents(partial(self.with_retries, show), seen.digest, self.client.features())

    def loaded(self) -> tuple[Loaded, ...]:
        """What is in memory right now."""
        return self.with_retries(lambda: read_loaded(self.client))

    # observing

    def models(self) -> ObservedHost:
        """Version and tags: two requests, or one when the version is known."""
        features = self.with_retries(lambda: self.client.features())
        seen = self.tags()
        self.run.first_rows.setdefault(self.name, rows_of(seen))
        return ObservedHost(
            host=self.name,
            features=features,
            models=seen.select(_is_model).map(partial(_observed, features)),
            set_aside={name: each.digest for name, each in seen.items() if name.is_aside},
        )

    def show(self, observed: ObservedHost, names: Iterable[ModelName]) -> Listing[Contents]:
        """What is in these models; one that cannot be opened, or runs in a cloud, is left out."""
        found = self.look_into(observed, names)
        opened = ((name, what) for name, what in found.items() if isinstance(what, Contents))
        return Listing(opened, folds_case=observed.features.folds_case)

    def look_into(self, observed: ObservedHost, names: Iterable[ModelName]) -> Listing[Contents | Unreadable]:
        """What is in these models, or why they cannot be opened; one that runs in a cloud is left out."""
        found: list[tuple[ModelName, Contents | Unreadable]] = []
        for model in (observed.models[name] for name in sorted(names)):
            if model.is_cloud:
                continue
            ask = partial(self.with_retries, partial(self.client.show, model.name))
            what = read_contents(ask, model.digest, observed.features)
            if isinstance(what, Contents):
                what = self._with_exact_stop(what, observed.features)
            found.append((model.name, what))
        return Listing(found, folds_case=observed.features.folds_case)

    def _with_exact_stop(self, contents: Contents, features: Features) -> Contents:
        """A stop word that the server may hold as text in the place of a list: the blob with it is there."""
        blob = text_stop(contents) if features.structured_create else None
        if blob is not None:
            with suppress(AnswerError, ProtocolError):  # a proxy may let no HEAD through
                if self.with_retries(partial(self.client.has_blob, blob)):
                    return with_text_stop(contents)
        return contents

    def with_loaded(self, observed: ObservedHost, residents: Sequence[ModelName]) -> ObservedHost:
        """The host with what is in its memory: one request, and looks inside where a resident may share a runner."""
        listed = self.loaded()
        observed = replace(observed, loaded=listed)
        inside = self.show(observed, to_compare(residents, observed))
        return replace(observed, loaded=with_sharers(residents, listed, inside))

    # telling

    def stamp(self, action: Action | None = None) -> dict[str, str]:
        """What every event about this host carries."""
        return self.run.stamp(self.name, id_of(action) if action is not None else "")

    def retrying(self, action: Action, work: Callable[[], Found]) -> Found:
        """`work`, tried again as often as the action allows, each retry being told."""
        return attempt(work, retries=action.retries, cancel=self.cancel, on_retry=self.on_retry(action))

    def on_retry(self, action: Action) -> OnRetry:
        """A sink for retries that makes events of the action of them."""

        def tell(number: int, wait_s: float, error: OllamaopsError) -> None:
            self.emit(
                Retrying(
                    **self.stamp(action),
                    attempt=number,
                    attempts=action.retries + 1,
                    wait_s=wait_s,
                    error=str(error),
                )
            )

        return tell

    def reporter(self, action: Action) -> Callable[[Progress], None]:
        """A sink for a stream's lines that tells them as events of the action, layer by layer."""

        def report(progress: Progress) -> None:
            self.emit(
                Progressed(
                    **self.stamp(action),
                    status=progress.status,
                    layer=progress.digest.removeprefix("sha256:")[:12],
                    completed_bytes=progress.completed_bytes,
                    total_bytes=progress.total_bytes,
                )
            )

        return report

    def warn(self, action: Action, message: str) -> None:
        """Say something that does not stop the action."""
        self.emit(Noted(**self.stamp(action), level="warning", message=message))


def session_of(task: HostTask, client: OllamaClient, run: Run) -> HostSession:
    """A session with the task's host through `client`; nothing is sent yet."""
    return HostSession(task=task, client=client, run=run, ledger=ledger_of(task, client, run))


def reach(task: HostTask, run: Run, work: Callable[[HostSession], Found]) -> Found | UnreachedHost:
    """What `work` finds on the host, or why the host did not answer. Errors that are not about it are raised."""
    try:
        client = run.open_client(task.spec, run.cancel)
    except Cancelled:
        raise
    except OllamaopsError as error:
        return unreached(task.spec.name, run, error)
    with client:
        try:
            return work(session_of(task, client, run))
        except RemoteError as error:
            return unreached(task.spec.name, run, error)


def unreached(host: str, run: Run, error: OllamaopsError) -> UnreachedHost:
    """Tell of a host that does not answer."""
    run.emit(HostUnreached(**run.stamp(host), error=str(error), hint=error.hint))
    return UnreachedHost(host=host, error=str(error), hint=error.hint)


def ask_hosts(
    tasks: Sequence[HostTask], run: Run, work: Callable[[HostSession], Found]
) -> tuple[tuple[Found, ...], tuple[UnreachedHost, ...]]:
    """What `work` finds on each host, in the order of `tasks`, and the hosts that did not answer. Cancelled."""
    answers = for_each(tasks, lambda task: reach(task, run, work), jobs=run.options.jobs)
    return (
        tuple(each for each in answers if not isinstance(each, UnreachedHost)),
        tuple(each for each in answers if isinstance(each, UnreachedHost)),
    )


def rows_of(listed: Listing[Seen]) -> Rows:
    """What tells this list of models from that of another server, or of another moment."""
    return frozenset(Row(str(seen.name), seen.digest, seen.modified_at) for seen in listed.values())


def read_loaded(client: OllamaClient) -> tuple[Loaded, ...]:
    """What is in memory right now, under every name that requests can use. A moment becomes a number of seconds by
    this machine's clock, so that whoever decides needs no clock."""
    found, now = [], datetime.now(UTC)
    for model in client.ps():
        with suppress(InvalidName):
            found.append(
                Loaded(
                    name=ModelName.parse(model.name),
                    digest=model.digest.hex,
                    size_bytes=model.size_bytes,
                    vram_bytes=model.vram_bytes,
                    context_length=model.context_length,
                    expires_at=model.expires_at,
                    stays_s=read_stay(model.expires_at, now),
                )
            )
    return tuple(found)


def _is_model(name: ModelName) -> bool:
    """Whether it is a model of the host's users, and not something of ours."""
    return not (name.is_ledger or name.is_aside)


def _observed(features: Features, seen: Seen) -> ObservedModel:
    return ObservedModel(
        name=seen.name,
        digest=seen.digest,
        size_bytes=seen.size_bytes,
        modified_at=seen.modified_at,
        parent=seen.parent,
        quantization=seen.quantization,
        is_cloud=bool(seen.stands_for) or (features.suffix_routing and seen.name.source_suffix == "cloud"),
        stands_for=seen.stands_for,
        is_able=seen.is_able,
    )
