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
    PullModel,
    PushModel,
    UploadBlob,
    VerifyModel,
    id_of,
)
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint, How, LedgerStore, ModelRecord, Status

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
    ledger: LedgerStore
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
        fingerprint: Fingerprint,
        *,
        status: Status = "applied",
        base: str | None = None,
        blobs: tuple[Digest, ...] = (),
        name: ModelName | None = None,
    ) -> None:
        """Write down what came out under the action's model (or `name`), in one atomic write. If the ledger cannot
        be written, the next run looks again."""
        name = name or action.model
        self.touched.add(name)
        if fingerprint == NO_FINGERPRINT:
            return
        record = ModelRecord(
            how=how,
            status=status,
            fingerprint=fingerprint,
            digest=seen.digest,
            base_digest=base,
            blobs=tuple(map(str, blobs)),
            at=self.now(),
        )
        self._file(action, lambda: self._remember(name, record))

    def remember_copy(self, action: CopyModel, seen: Seen) -> None:
        """As `remember`. A copy that is declared as its source was, as in a rename, keeps what is known of it."""
        self.touched.add(action.model)

        def write() -> None:
            known = self.ledger.load(self.spec.memory_key).get(action.source.key)
            if known and known.digest == seen.digest and known.is_applied_for(action.fingerprint):
                record = replace(known, how="copied", at=self.now())
            else:
                record = ModelRecord(
                    how="copied",
                    fingerprint=action.fingerprint,
                    digest=seen.digest,
                    base_digest=seen.digest,
                    at=self.now(),
                )
            self._remember(action.model, record)

        if action.fingerprint != NO_FINGERPRINT:
            self._file(action, write)

    def remember_rollback(self, action: CopyModel, seen: Seen) -> None:
        """Write down that the model was rolled back to this content, and stays so."""
        self.touched.add(action.model)
        record = ModelRecord(
            how="copied", status="rolled_back", entry=action.rollback_key, digest=seen.digest, at=self.now()
        )
        self._file(action, lambda: self._remember(action.model, record))

    def remember_pull_begun(self, action: PullModel) -> None:
        """Write down that what is about to be pulled is unverified, in case the run is killed before it is there."""
        record = ModelRecord(
            how="pulled", status="unverified", fingerprint=action.fingerprint, digest="", at=self.now()
        )
        self._file(action, lambda: self._remember(action.model, record))

    def remember_verified(self, action: VerifyModel, seen: Seen) -> None:
        """Write down that what was pulled does what is expected of it."""
        self.touched.add(action.model)

        def write() -> None:
            known = self.ledger.load(self.spec.memory_key).get(action.model.key)
            if known is not None and known.status == "unverified":
                self._remember(action.model, replace(known, status="applied", digest=seen.digest))

        self._file(action, write)

    def remember_push(self, action: PushModel, *digests: str) -> None:
        """Write down which tags digest was pushed, and as which registry manifest ("" if nobody could ask)."""
        host, known = self.spec.memory_key, tuple(filter(None, digests))
        self._file(
            action, lambda: self.ledger.remember_push(host, action.source.key, action.model.key, known)
        )

    def mark_doubtful(self, names: Collection[ModelName]) -> None:
        """Models that a look found to differ after all are looked into again by the next run; they stay ours.

        What is unverified or unusable is looked into anyway, and stays so.
        """
        known = self.ledger.load(self.spec.memory_key) if names else {}
        doubted = {
            key: replace(record, status="doubted")
            for key, record in known.items()
            if ModelName.parse(key) in names and record.status not in ("unverified", "unusable")
        }
        if doubted:
            self.ledger.remember(self.spec.memory_key, doubted)

    def forget(self, action: Action) -> None:
        """Drop what is known of a model that has gone."""
        self.touched.add(action.model)
        self._file(action, lambda: self.ledger.forget(self.spec.memory_key, action.model.key))

    def forget_quietly(self, name: ModelName) -> None:
        """Drop what is known of a name that is free now. If that fails, the record is only out of date."""
        with suppress(StateError):
            self.ledger.forget(self.spec.memory_key, name.key)

    def _remember(self, name: ModelName, record: ModelRecord) -> None:
        self.ledger.remember(self.spec.memory_key, {name.key: record})

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
