"""One `case` per action: how it is carried out on a host, and how its result is seen with own eyes.

Decides nothing about what should be done. Success is a fresh look at `/api/tags`, not a 200; what was seen is
remembered at once, so that kill -9 between two actions loses nothing. The fact a reader would miss: no create is
ever sent while its base is missing, because servers from 0.5.5 to 0.12.5 then write an empty model over the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar, assert_never

from ollamaops.apply.contents import contents_of
from ollamaops.apply.requests import build_request, render_request
from ollamaops.apply.retry import attempt
from ollamaops.errors import (
    Cancelled,
    DigestMismatch,
    InvalidName,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RemoteError,
)
from ollamaops.events import (
    ActionEnded,
    ActionStarted,
    Event,
    Failed,
    Interrupted,
    Outcome,
    Progressed,
    Refused,
    Retrying,
    Succeeded,
)
from ollamaops.manifest.types import HostSpec
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_blob
from ollamaops.ollama.wire import Progress
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    PullModel,
    PushModel,
    UploadBlob,
    id_of,
    subject_of,
    verb_of,
)
from ollamaops.state.facts import Applied, How
from ollamaops.state.ledger import Ledger

Result = TypeVar("Result")
RETRIES_OF_LOOKS = 3


class Seen(NamedTuple):
    """A model as the host lists it: its name as the host spells it, its tags digest."""

    name: ModelName
    digest: str


class ChangedMeanwhile(OllamaopsError):
    """A fact that an action relies on is no longer true: somebody else changed the host."""

    exit_code = 4


@dataclass(slots=True, kw_only=True)
class Workbench:
    """What the handlers of one host's run share. `touched` are models that this run has changed itself."""

    spec: HostSpec
    client: OllamaClient
    ledger: Ledger
    cancel: CancelToken
    emit: Callable[[Event], None]
    run_id: str
    now: Callable[[], str]
    uploads: Mapping[Digest, UploadBlob] = field(default_factory=dict)
    touched: set[ModelName] = field(default_factory=set)

    def tags(self) -> dict[ModelName, Seen]:
        """A fresh look at every model that has a name requests can use."""
        found: dict[ModelName, Seen] = {}
        for model in self.patiently(self.client.tags):
            with suppress(InvalidName):
                name = ModelName.parse(model.name)
                found[name] = Seen(name, model.digest.hex)
        return found

    def patiently(self, look: Callable[[], Result]) -> Result:
        """`look`, tried again while the error may pass."""
        return attempt(look, retries=RETRIES_OF_LOOKS, cancel=self.cancel, on_retry=lambda *_: None)

    def digest_of(self, name: ModelName) -> str:
        """The tags digest of `name`; ProtocolError if the host does not list it."""
        found = self.tags().get(name)
        if found is None:
            raise ProtocolError(
                f"{self.spec.name}: '{name}' is not there, although the server reported success",
                host=self.spec.name,
                hint="look at the server's log; run again to try once more",
            )
        return found.digest

    def remember(
        self,
        name: ModelName,
        how: How,
        fingerprint: str,
        digest: str,
        *,
        base: str | None = None,
        blobs: tuple[str, ...] = (),
    ) -> None:
        """File what came out, in one atomic write."""
        self.touched.add(name)
        if fingerprint:
            self.ledger.remember(
                Applied(
                    host=self.spec.memory_key,
                    model=name.key,
                    how=how,
                    fingerprint=fingerprint,
                    digest=digest,
                    at=self.now(),
                    base=base,
                    weights=blobs,
                )
            )


def perform(bench: Workbench, action: Action) -> Outcome:
    """Carry out one action and say how it ended. Never raises for what users, servers or networks do."""
    began = time.monotonic()
    action_id = id_of(action)
    stamp = {"run_id": bench.run_id, "host": bench.spec.name, "action_id": action_id}
    bench.emit(ActionStarted(at=bench.now(), verb=verb_of(action), subject=subject_of(action), **stamp))
    outcome = _outcome(bench, action, began)
    bench.emit(ActionEnded(at=bench.now(), outcome=outcome, **stamp))
    return outcome


def _outcome(bench: Workbench, action: Action, began: float) -> Outcome:
    try:
        _check_expectations(bench, action)
        changed = _carry_out(bench, action)
    except Cancelled:
        return Interrupted(started=True)
    except ChangedMeanwhile as error:
        return Refused(because=str(error), hint=error.hint)
    except OllamaopsError as error:
        return Failed(
            error=str(error), hint=error.hint, exit_code=error.exit_code, seconds=time.monotonic() - began
        )
    return Succeeded(seconds=time.monotonic() - began, changed=changed)


def _check_expectations(bench: Workbench, action: Action) -> None:
    """Servers have no compare-and-swap, so look once more right before a model is touched."""
    open_facts = [fact for fact in action.expects if fact.model not in bench.touched]
    if not open_facts:
        return
    now = bench.tags()
    for fact in open_facts:
        seen = now[fact.model].digest if fact.model in now else None
        if seen != fact.digest:
            raise ChangedMeanwhile(
                f"'{fact.model}' changed since the plan was made: "
                f"it was {short_digest(fact.digest)}, now it is {short_digest(seen)}",
                hint="plan again",
            )


def short_digest(digest: str | None) -> str:
    """The first 12 digits, or that the model is not there."""
    return digest[:12] if digest else "not there"


def _carry_out(bench: Workbench, action: Action) -> bool:
    """Do it; True if something changed on the host."""
    match action:
        case PullModel():
            return _pull(bench, action)
        case UploadBlob():
            return _upload(bench, action)
        case CreateModel():
            return _create(bench, action)
        case CopyModel():
            return _copy(bench, action)
        case DeleteModel():
            return _delete(bench, action)
        case PushModel():
            return _push(bench, action)
        case _:
            assert_never(action)


def _retrying(bench: Workbench, action: Action, work: Callable[[], Result]) -> Result:
    def tell(number: int, wait_s: float, error: OllamaopsError) -> None:
        bench.emit(
            Retrying(
                run_id=bench.run_id,
                at=bench.now(),
                host=bench.spec.name,
                action_id=id_of(action),
                attempt=number,
                attempts=action.retries + 1,
                wait_s=wait_s,
                error=str(error),
            )
        )

    return attempt(work, retries=action.retries, cancel=bench.cancel, on_retry=tell)


def _reporter(bench: Workbench, action: Action) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        bench.emit(
            Progressed(
                run_id=bench.run_id,
                at=bench.now(),
                host=bench.spec.name,
                action_id=id_of(action),
                status=progress.status,
                layer=_layer(progress.digest),
                completed_bytes=progress.completed_bytes or 0,
                total_bytes=progress.total_bytes or 0,
            )
        )

    return report


def _layer(digest: str | None) -> str:
    return digest.removeprefix("sha256:")[:12] if digest else ""


def _pull(bench: Workbench, action: PullModel) -> bool:
    before = bench.tags().get(action.model)
    _retrying(
        bench,
        action,
        lambda: bench.client.pull(
            action.model,
            insecure=action.insecure,
            on_progress=_reporter(bench, action),
            cancel=bench.cancel,
            stall_s=bench.spec.stall_s,
        ),
    )
    digest = bench.digest_of(action.model)
    if action.pin and digest not in action.pin:
        raise DigestMismatch(
            f"{bench.spec.name}: '{action.model}' came out as {digest[:12]}, which is not the pinned content",
            host=bench.spec.name,
            hint="the registry has changed: look at what is new, then update the pin",
        )
    bench.remember(action.model, "pulled", action.fingerprint, digest, base=action.registry_digest or None)
    return before is None or before.digest != digest


def _upload(bench: Workbench, action: UploadBlob) -> bool:
    return _retrying(bench, action, lambda: _send(bench, action, _reporter(bench, action)))


def _send(bench: Workbench, upload: UploadBlob, report: Callable[[Progress], None] | None = None) -> bool:
    return upload_blob(
        bench.client,
        upload.digest,
        Path(upload.path),
        upload.size_bytes,
        on_progress=report,
        cancel=bench.cancel,
    )


def _create(bench: Workbench, action: CreateModel) -> bool:
    features = bench.client.features()

    def build() -> None:
        _ensure_blobs(bench, action)
        base = _spelling_of_base(bench, action)
        report = _reporter(bench, action)
        if features.structured_create:
            request = build_request(action.model, action.recipe, features)
            bench.client.create(request, on_progress=report, cancel=bench.cancel)
        else:
            text = render_request(action.recipe, base)
            bench.client.create_from_modelfile(
                action.model,
                text,
                quantize=action.recipe.quantize,
                on_progress=report,
                cancel=bench.cancel,
            )

    _retrying(bench, action, build)
    tags = bench.tags()
    digest = bench.digest_of(action.model)
    contents = contents_of(bench.patiently(lambda: bench.client.show(action.model)), digest, features)
    base_digest = tags[action.recipe.base].digest if action.recipe.base in tags else None
    blobs = tuple(str(blob) for blob in (*contents.blobs, *contents.adapters))
    bench.remember(action.model, "created", action.fingerprint, digest, base=base_digest, blobs=blobs)
    return True


def _ensure_blobs(bench: Workbench, action: CreateModel) -> None:
    """Blobs are not protected between upload and create: look right before, and send again what has vanished."""
    recipe = action.recipe
    for blob in (*recipe.files, *recipe.adapters, *recipe.drafts):
        upload = bench.uploads.get(blob.digest)
        if upload is not None:
            _send(bench, upload)
        elif not bench.client.has_blob(blob.digest):
            raise NotFound(
                f"{bench.spec.name}: the blob {blob.digest.short} of '{action.model}' is not there",
                host=bench.spec.name,
                status=404,
                hint="plan again",
            )


def _spelling_of_base(bench: Workbench, action: CreateModel) -> ModelName | None:
    """The base as the host spells it (`from` is looked up case-sensitively); NotFound if it is not there."""
    base = action.recipe.base
    if base is None:
        return None
    found = bench.tags().get(base)
    if found is None:
        raise NotFound(
            f"{bench.spec.name}: no model '{base}' to make '{action.model}' from",
            host=bench.spec.name,
            status=404,
            hint="pull it first, or add it to models:",
        )
    return found.name


def _copy(bench: Workbench, action: CopyModel) -> bool:
    tags = bench.tags()
    source = tags.get(action.source)
    if source is None:
        raise NotFound(
            f"{bench.spec.name}: no model '{action.source}' to copy to '{action.model}'",
            host=bench.spec.name,
            status=404,
            hint="pull it first, or add it to models:",
        )
    _retrying(bench, action, lambda: bench.client.copy(source.name, action.model))
    digest = bench.digest_of(action.model)
    if digest != source.digest:
        raise ProtocolError(
            f"{bench.spec.name}: '{action.model}' is {digest[:12]} after it was copied from {source.digest[:12]}",
            host=bench.spec.name,
            hint="somebody else may have changed it: plan again",
        )
    bench.remember(action.model, "copied", action.fingerprint, digest, base=source.digest)
    before = tags.get(action.model)
    return before is None or before.digest != digest


def _delete(bench: Workbench, action: DeleteModel) -> bool:
    seen = bench.tags().get(action.model)
    was_there = seen is not None and _retrying(bench, action, lambda: bench.client.delete(seen.name))
    if action.model in bench.tags():
        raise RemoteError(
            f"{bench.spec.name}: '{action.model}' is still there, although the server reported success",
            host=bench.spec.name,
            hint="look at the server's log; run again to try once more",
        )
    bench.touched.add(action.model)
    bench.ledger.forget(bench.spec.memory_key, action.model.key)
    return was_there


def _push(bench: Workbench, action: PushModel) -> bool:
    digest = bench.digest_of(action.source)
    _retrying(
        bench,
        action,
        lambda: bench.client.push(
            action.model,
            insecure=action.insecure,
            on_progress=_reporter(bench, action),
            cancel=bench.cancel,
            stall_s=bench.spec.stall_s,
        ),
    )
    bench.ledger.remember_push(bench.spec.memory_key, action.source.key, action.model.key, digest)
    return True
