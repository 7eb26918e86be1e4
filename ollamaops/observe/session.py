"""What the handlers of one host's run share: fresh looks, patience, memory, and telling what goes on.

Decides nothing about actions. The fact a reader would miss: servers rewrite manifests in place (up to 0.33), so a
model may be missing from one `/api/tags` and be there in the next; whoever relies on one looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import NamedTuple, TypeVar

from ollamaops.errors import (
    Cancelled,
    InvalidName,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RemoteError,
    StateError,
)
from ollamaops.events import Noted, Progressed, Retrying, Sink
from ollamaops.files.digest import DigestCache
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import OnRetry, attempt
from ollamaops.manifest.types import HostSpec, Policy
from ollamaops.names import Digest, ModelName
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.wire import Progress
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    ProbeModel,
    PullModel,
    PushModel,
    UploadBlob,
    id_of,
)
from ollamaops.plan.desired import without_words
from ollamaops.plan.versions import after_trial, is_marked, is_on_trial, on_trial
from ollamaops.state.facts import Applied, FactStore, How

Result = TypeVar("Result")
RETRIES_OF_LOOKS = 3
LOOKS_FOR_MISSING = 3
PAUSE_S = 0.5


class Seen(NamedTuple):
    """A model as the host lists it: its name as the host spells it, its tags digest (bare hex), its size, when its
    manifest was written, in the server's words, and whether it only stands for one that runs on ollama.com."""

    name: ModelName
    digest: str
    size_bytes: int
    modified_at: str
    is_cloud: bool = False


@dataclass(slots=True, kw_only=True)
class Workbench:
    """The tools of one host's run. `touched` are models that this run has changed itself.

    `uploads` are the local files behind the blobs of this run's recipes, `spare` the models that nobody declares,
    `lifted` the rules that this run need not keep, `lasting` the models that are kept in memory for ever,
    `resident` all those whose being in memory says nothing of their use,
    `upstreams` the registries, None when they must not be asked, `digests` what is known of files on this disk.
    `changing` is held by whoever creates, copies or deletes: servers (up to 0.33) lock nothing between these, and a
    deletion takes layers that a create has found.
    """

    spec: HostSpec
    client: OllamaClient
    ledger: FactStore
    cancel: CancelToken
    emit: Sink
    run_id: str
    now: Callable[[], str]
    policy: Policy = Policy()
    lifted: frozenset[str] = frozenset()
    uploads: Mapping[Digest, UploadBlob] = field(default_factory=dict)
    spare: frozenset[ModelName] = frozenset()
    lasting: frozenset[ModelName] = frozenset()
    resident: frozenset[ModelName] = frozenset()
    remote_weights: RemoteWeightsStore = field(default_factory=RemoteWeightsStore)
    registries: RegistryCache | None = None
    digests: DigestCache | None = None
    touched: set[ModelName] = field(default_factory=set)
    changing: RLock = field(default_factory=RLock)

    # looking

    def patiently(self, look: Callable[[], Result]) -> Result:
        """`look`, tried again while the error may pass."""
        return attempt(look, retries=RETRIES_OF_LOOKS, cancel=self.cancel)

    def tags(self) -> dict[ModelName, Seen]:
        """A fresh look at every model that has a name requests can use."""
        return self.patiently(lambda: read_tags(self.client))

    def find(self, name: ModelName, tags: Mapping[ModelName, Seen]) -> Seen | None:
        """The model in `tags`, which were just read; looked for again before it is called missing."""
        for _ in range(LOOKS_FOR_MISSING - 1):
            if name in tags:
                break
            if self.cancel.wait(PAUSE_S):
                raise Cancelled("stopped while looking for a model")
            tags = self.tags()
        return tags.get(name)

    def require(self, name: ModelName, tags: Mapping[ModelName, Seen], purpose: str) -> Seen:
        """The model that is needed `purpose` ("to copy to 'prod'"); NotFound if it is not there."""
        found = self.find(name, tags)
        if found is None:
            raise NotFound(
                f"{self.spec.name}: no model '{name}' {purpose}",
                host=self.spec.name,
                status=404,
                hint="pull it first, or add it to models:",
            )
        return found

    def prove(self, name: ModelName) -> Seen:
        """The model that has just been made; ProtocolError if the host does not list it."""
        found = self.find(name, self.tags())
        if found is None:
            raise ProtocolError(
                f"{self.spec.name}: '{name}' is not there, although the server reported success",
                host=self.spec.name,
                hint="look at the server's log; run again to try once more",
            )
        return found

    # telling

    def retrying(self, action: Action, work: Callable[[], Result]) -> Result:
        """`work`, tried again as often as the action allows, each retry being told."""
        return attempt(work, retries=action.retries, cancel=self.cancel, on_retry=self.teller(action))

    def teller(self, action: Action) -> OnRetry:
        """A sink for retries that makes events of the action of them."""

        def tell(number: int, wait_s: float, error: OllamaopsError) -> None:
            self.emit(
                Retrying(
                    run_id=self.run_id,
                    at=self.now(),
                    host=self.spec.name,
                    action_id=id_of(action),
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
                    run_id=self.run_id,
                    at=self.now(),
                    host=self.spec.name,
                    action_id=id_of(action),
                    status=progress.status,
                    layer=progress.digest.removeprefix("sha256:")[:12],
                    completed_bytes=progress.completed_bytes,
                    total_bytes=progress.total_bytes,
                )
            )

        return report

    def warn(self, action: Action, message: str) -> None:
        """Say something that does not stop the action."""
        self.emit(
            Noted(
                run_id=self.run_id,
                at=self.now(),
                host=self.spec.name,
                action_id=id_of(action),
                level="warning",
                message=message,
            )
        )

    # memory

    def remember(
        self,
        action: Action,
        seen: Seen,
        how: How,
        fingerprint: str,
        *,
        base: str | None = None,
        blobs: tuple[Digest, ...] = (),
        name: ModelName | None = None,
    ) -> None:
        """File what came out under the action's model (or `name`), in one atomic write. A ledger that cannot be
        written costs the next run a look."""
        name = name or action.model
        self.touched.add(name)
        if not fingerprint:
            return
        fact = Applied(
            host=self.spec.memory_key,
            model=name.key,
            how=how,
            fingerprint=fingerprint,
            digest=seen.digest,
            at=self.now(),
            base=base,
            weights=tuple(map(str, blobs)),
        )
        self._file(action, lambda: self.ledger.remember(fact))

    def remember_copy(self, action: CopyModel, seen: Seen) -> None:
        """As `remember`. A copy that is declared as its source was, as in a rename, keeps what is known of it."""
        self.touched.add(action.model)
        key, source = self.spec.memory_key, action.source.key

        def write() -> None:
            fact = Applied(
                host=key,
                model=action.model.key,
                how="copied",
                fingerprint=action.fingerprint,
                digest=seen.digest,
                at=self.now(),
                base=seen.digest,
            )
            known = self.ledger.recall(key).get(source)
            if known and (known.fingerprint, known.digest) == (fact.fingerprint, fact.digest):
                fact = replace(known, model=fact.model, how=fact.how, at=fact.at)
            self.ledger.remember(fact)

        if action.fingerprint:
            self._file(action, write)

    def remember_hold(self, action: CopyModel, seen: Seen) -> None:
        """File that the model was rolled back to this content, and stays so."""
        self.touched.add(action.model)
        fact = Applied(
            host=self.spec.memory_key,
            model=action.model.key,
            how="held",
            fingerprint=action.hold,
            digest=seen.digest,
            at=self.now(),
        )
        self._file(action, lambda: self.ledger.remember(fact))

    def begin_trial(self, action: PullModel) -> None:
        """File that what is about to be pulled is not proven, be the run killed before it knows the content."""
        fact = Applied(
            host=self.spec.memory_key,
            model=action.model.key,
            how="pulled",
            fingerprint=on_trial(action.fingerprint),
            digest="",
            at=self.now(),
        )
        self._file(action, lambda: self.ledger.remember(fact))

    def end_trial(self, action: ProbeModel, seen: Seen) -> None:
        """File that what was pulled is proven."""
        self.touched.add(action.model)
        key = self.spec.memory_key

        def write() -> None:
            fact = self.ledger.recall(key).get(action.model.key)
            if fact is not None and is_on_trial(fact.fingerprint):
                proven = replace(fact, fingerprint=after_trial(fact.fingerprint), digest=seen.digest)
                self.ledger.remember(proven)

        self._file(action, write)

    def unlearn(self, name: ModelName) -> None:
        """Drop what is remembered under a name that holds nothing any more; if that fails nothing depends on it."""
        with suppress(StateError):
            self.ledger.forget(self.spec.memory_key, name.key)

    def remember_push(self, action: PushModel, *digests: str) -> None:
        """File which tags digest was pushed, and as which registry manifest ("" if nobody could ask for that)."""
        key, known = self.spec.memory_key, " ".join(filter(None, digests))
        self._file(action, lambda: self.ledger.remember_push(key, action.source.key, action.model.key, known))

    def doubt(self, names: Collection[ModelName]) -> None:
        """Models that a look found to differ after all are looked into again by the next run; they stay ours.

        What is on trial, or cannot be opened, is looked into anyway, and stays so.
        """
        known = self.ledger.recall(self.spec.memory_key).values() if names else ()
        doubted = [
            replace(fact, fingerprint=without_words(fact.fingerprint))
            for fact in known
            if ModelName.parse(fact.model) in names and not is_marked(fact.fingerprint)
        ]
        if doubted:
            self.ledger.remember_all(doubted)

    def forget(self, action: Action) -> None:
        """Drop what is remembered of a model that has gone."""
        self.touched.add(action.model)
        self._file(action, lambda: self.ledger.forget(self.spec.memory_key, action.model.key))

    def _file(self, action: Action, write: Callable[[], None]) -> None:
        try:
            write()
        except (StateError, RemoteError) as error:
            self.warn(action, f"done, but not remembered: {error}")


def read_tags(client: OllamaClient) -> dict[ModelName, Seen]:
    """Every model that has a name requests can use, as one answer of `/api/tags` lists it."""
    found: dict[ModelName, Seen] = {}
    for model in client.tags():
        with suppress(InvalidName):
            name = ModelName.parse(model.name)
            found[name] = Seen(
                name, model.digest.hex, model.size_bytes, model.modified_at, model.is_cloud_stub
            )
    return found
