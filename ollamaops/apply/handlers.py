"""One `case` per action: how it is carried out on a host, and how its result is seen with own eyes.

Decides nothing about what should be done. Success is a fresh look at `/api/tags`, not a 200; what was seen is
remembered at once, so that kill -9 between two actions loses nothing. The fact a reader would miss: no create is
ever sent while its base is missing, because servers from 0.5.5 to 0.12.5 then write an empty model over the old one.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import assert_never

from ollamaops.apply.asides import keeping_previous, secure, settle
from ollamaops.apply.bench import Seen, Workbench
from ollamaops.apply.contents import look_into, short_digest
from ollamaops.apply.proof import prove
from ollamaops.apply.requests import build_request, render_request
from ollamaops.apply.residency import load, make_way, unload
from ollamaops.apply.timing import await_turn
from ollamaops.errors import (
    AnswerError,
    Cancelled,
    CutStream,
    DigestMismatch,
    DiskFull,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RefusedError,
    RemoteError,
    ServerFault,
)
from ollamaops.events import (
    ActionEnded,
    ActionStarted,
    Failed,
    Interrupted,
    Outcome,
    Refused,
    Succeeded,
)
from ollamaops.files.remote import RemoteRef, is_remote
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.client import ProgressSink
from ollamaops.ollama.upload import BlobSource, LocalFile, upload_source
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    LoadModel,
    ProbeModel,
    PullModel,
    PushModel,
    UnloadModel,
    UploadBlob,
    id_of,
    subject_of,
    verb_of,
)
from ollamaops.plan.observed import Contents
from ollamaops.plan.staging import on_trial
from ollamaops.units import format_size

SPARE_TO_NAME = 3
OTHERS_TO_OPEN = 3


class ChangedMeanwhile(OllamaopsError):
    """A fact that an action relies on is no longer true: somebody else changed the host."""

    exit_code = 4


def perform(bench: Workbench, action: Action) -> Outcome:
    """Carry out one action and say how it ended. Never raises for what users, servers or networks do."""
    began = time.monotonic()
    stamp = {"run_id": bench.run_id, "host": bench.spec.name, "action_id": id_of(action)}
    bench.emit(ActionStarted(at=bench.now(), verb=verb_of(action), subject=subject_of(action), **stamp))
    outcome = _outcome(bench, action, began)
    bench.emit(ActionEnded(at=bench.now(), outcome=outcome, **stamp))
    return outcome


def _outcome(bench: Workbench, action: Action, began: float) -> Outcome:
    try:
        await_turn(bench, action)
        _check_expectations(bench, action)
        make_way(bench, action)
        changed = _carry_out(bench, action)
    except Cancelled:
        return Interrupted(started=True)
    except (ChangedMeanwhile, RefusedError) as error:
        return Refused(because=str(error), hint=error.hint)
    except OllamaopsError as error:
        hint = _what_to_free(bench) if isinstance(error, DiskFull) else None
        return Failed(
            error=str(error),
            hint=hint or error.hint,
            exit_code=error.exit_code,
            seconds=time.monotonic() - began,
        )
    return Succeeded(seconds=time.monotonic() - began, changed=changed)


def _what_to_free(bench: Workbench) -> str | None:
    """The largest models that nobody declares, as advice for a full disk; None when there are none."""
    try:
        spare = [seen for name, seen in bench.tags().items() if name in bench.spare]
    except OllamaopsError:
        return None
    largest = sorted(spare, key=lambda seen: seen.size_bytes, reverse=True)[:SPARE_TO_NAME]
    named = ", ".join(f"{seen.name} ({format_size(seen.size_bytes)})" for seen in largest)
    return f"free space on the host; nobody declares {named}" if named else None


def _check_expectations(bench: Workbench, action: Action) -> None:
    """Servers have no compare-and-swap, so look once more right before a model is touched."""
    open_facts = [fact for fact in action.expects if fact.model not in bench.touched]
    if not open_facts:
        return
    tags = bench.tags()
    for fact in open_facts:
        seen = bench.find(fact.model, tags) if fact.digest else tags.get(fact.model)
        now = seen.digest if seen else None
        if now != fact.digest:
            raise ChangedMeanwhile(
                f"'{fact.model}' changed since the plan was made: "
                f"it was {short_digest(fact.digest)}, now it is {short_digest(now)}",
                hint="plan again",
            )


def _carry_out(bench: Workbench, action: Action) -> bool:
    """Do it; True if something changed on the host."""
    match action:
        case PullModel():
            return _pull(bench, action)
        case UploadBlob():
            return bench.retrying(action, lambda: _upload(bench, action, bench.reporter(action)))
        case CreateModel():
            return _create(bench, action)
        case CopyModel():
            return _copy(bench, action)
        case DeleteModel():
            return _delete(bench, action)
        case PushModel():
            return _push(bench, action)
        case ProbeModel():
            return prove(bench, action)
        case LoadModel():
            return load(bench, action)
        case UnloadModel():
            return unload(bench, action)
        case _:
            assert_never(action)


# pulls


def _pull(bench: Workbench, action: PullModel) -> bool:
    before = bench.tags().get(action.model)
    with keeping_previous(bench, action, before):
        if action.on_trial and before is None:
            bench.begin_trial(action)
        seen = _download(bench, action, before)
        if not _is_sound(bench, seen):
            _blame_the_model(bench, seen)
            seen = _download_anew(bench, action, seen)
        fingerprint = on_trial(action.fingerprint) if action.on_trial else action.fingerprint
        bench.remember(action, seen, "pulled", fingerprint, base=action.registry_digest or None)
    return before is None or before.digest != seen.digest


def _download(bench: Workbench, action: PullModel, before: Seen | None) -> Seen:
    """What the pull brought. DigestMismatch if it is not what it is pinned to."""
    bench.retrying(
        action,
        lambda: bench.client.pull(
            before.name if before else action.model,
            insecure=action.insecure,
            on_progress=bench.reporter(action),
            cancel=bench.cancel,
            stall_s=bench.spec.stall_s,
        ),
    )
    seen = bench.prove(action.model)
    if action.pin and seen.digest not in action.pin:
        raise DigestMismatch(
            f"{bench.spec.name}: '{action.model}' came out as {seen.digest[:12]}, which is not the pinned content",
            host=bench.spec.name,
            hint=_pin_hint(bench, action),
        )
    return seen


def _pin_hint(bench: Workbench, action: PullModel) -> str:
    """A pin of a single digest is the registry's own, which servers before 0.19 do not keep."""
    if len(action.pin) == 1 and not bench.client.features().raw_registry_manifest:
        return "this server writes manifests anew, so only the registry can tell: leave out --no-registry, or upgrade"
    return "the registry has changed: look at what is new, then update the pin"


def _is_sound(bench: Workbench, seen: Seen) -> bool:
    """Whether the pulled model can be opened; when that cannot be told (cloud stub, proxy), it counts as sound."""
    if seen.name.source_suffix == "cloud":
        return True
    try:
        return _open(bench, seen) is not None
    except RemoteError:
        return True


def _open(bench: Workbench, seen: Seen) -> Contents | None:
    show = partial(bench.client.show, seen.name, cancel=bench.cancel)
    return look_into(partial(bench.patiently, show), seen.digest, bench.client.features())


def _blame_the_model(bench: Workbench, broken: Seen) -> None:
    """ProtocolError when no other model can be opened either: then the server is ill, and nothing is removed."""
    others = [seen for seen in bench.tags().values() if seen.digest != broken.digest][:OTHERS_TO_OPEN]
    if others and not any(_is_sound(bench, other) for other in others):
        raise ProtocolError(
            f"{bench.spec.name}: '{broken.name}' cannot be opened, and no other model either",
            host=bench.spec.name,
            hint="look at the server's log; run again when it can show models",
        )


def _download_anew(bench: Workbench, action: PullModel, broken: Seen) -> Seen:
    """Servers (up to 0.33) take a blob that is there for good, so the model has to go before it is pulled again."""
    bench.warn(action, "it cannot be opened: a blob on the host is damaged; removing it and pulling it anew")
    bench.client.delete(broken.name, cancel=bench.cancel)
    seen = _download(bench, action, None)
    if not _is_sound(bench, seen):
        raise _cannot_be_opened(bench, seen, "delete the models that share its weights, then run again")
    return seen


def _cannot_be_opened(bench: Workbench, seen: Seen, hint: str) -> ProtocolError:
    return ProtocolError(
        f"{bench.spec.name}: '{seen.name}' cannot be opened: its weights on the host are damaged",
        host=bench.spec.name,
        hint=hint,
    )


# uploads and builds


def _upload(bench: Workbench, upload: UploadBlob, report: ProgressSink) -> bool:
    source: BlobSource = LocalFile(Path(upload.path), upload.size_bytes)
    if is_remote(upload.path):
        source = bench.elsewhere.source_of(RemoteRef(upload.path), upload.digest, cancel=bench.cancel.is_set)
    return upload_source(bench.client, upload.digest, source, on_progress=report, cancel=bench.cancel)


def _create(bench: Workbench, action: CreateModel) -> bool:
    seen, base = bench.retrying(action, lambda: _build(bench, action))
    contents = _open(bench, seen)
    if contents is None:
        raise _cannot_be_opened(bench, seen, "delete the model, so that its blobs go too, then run again")
    blobs = (*contents.blobs, *contents.adapters)
    bench.remember(
        action,
        seen,
        "created",
        action.fingerprint,
        base=base.digest if base else None,
        blobs=blobs,
        name=action.aside,
    )
    return True


def _build(bench: Workbench, action: CreateModel) -> tuple[Seen, Seen | None]:
    """One attempt; the model that came out, and the base as it was right before."""
    recipe, report = action.recipe, bench.reporter(action)
    _ensure_blobs(bench, action, report)
    tags = bench.tags()
    base = bench.require(recipe.base, tags, f"to make '{action.model}' from") if recipe.base else None
    target = action.aside or action.model
    old = tags.get(target)
    try:
        _send_create(bench, action, old.name if old else target, base, report)
    except AnswerError as error:
        if error.transient or not _may_pass(bench, action, error):
            raise
        raise ServerFault(str(error), host=error.host, status=error.status, text=error.text) from error
    seen = bench.find(target, bench.tags())
    if seen is None or (seen == old and not bench.client.features().stream_false_waits_to_end):
        # up to 0.6.8 the success of pulling a base that has just gone is taken for that of the create
        raise CutStream(
            f"{bench.spec.name}: '{target}' was not written, although the server reported success",
            host=bench.spec.name,
        )
    return seen, base


def _send_create(
    bench: Workbench, action: CreateModel, name: ModelName, base: Seen | None, report: ProgressSink
) -> None:
    """`name` as the host spells it: servers up to 0.4.2 refuse one that differs only in case."""
    features = bench.client.features()
    if features.structured_create:
        request = build_request(name, action.recipe, features)
        bench.client.create(request, on_progress=report, cancel=bench.cancel)
        return
    bench.client.create_from_modelfile(
        name,
        render_request(action.recipe, base.name if base else None),
        quantize=action.recipe.quantize,
        on_progress=report,
        cancel=bench.cancel,
    )


def _may_pass(bench: Workbench, action: CreateModel, error: AnswerError) -> bool:
    """Whether a lasting error is about something that was missed for a moment, or can be sent again."""
    if isinstance(error, NotFound) and action.recipe.base in bench.tags():
        return True
    return not all(bench.client.has_blob(digest, cancel=bench.cancel) for digest in _blobs_of(action))


def _blobs_of(action: CreateModel) -> tuple[Digest, ...]:
    recipe = action.recipe
    return tuple(blob.digest for blob in (*recipe.files, *recipe.adapters, *recipe.drafts))


def _ensure_blobs(bench: Workbench, action: CreateModel, report: ProgressSink) -> None:
    """Blobs are not protected between upload and create: look right before, and send again what has vanished."""
    for digest in _blobs_of(action):
        upload = bench.uploads.get(digest)
        if upload is not None:
            _upload(bench, upload, report)
        elif not bench.client.has_blob(digest, cancel=bench.cancel):
            raise NotFound(
                f"{bench.spec.name}: the blob {digest.short} of '{action.model}' is not there",
                host=bench.spec.name,
                status=404,
                hint="plan again",
            )


# copies, deletions, pushes


def _copy(bench: Workbench, action: CopyModel) -> bool:
    tags = bench.tags()
    source = bench.require(action.source, tags, f"to copy to '{action.model}'")
    before = tags.get(action.model)
    target = before.name if before else action.model
    if action.keep and before is not None:
        secure(bench, before)
    bench.retrying(action, lambda: bench.client.copy(source.name, target, cancel=bench.cancel))
    seen = bench.prove(action.model)
    if seen.digest != source.digest:
        raise ProtocolError(
            f"{bench.spec.name}: '{action.model}' is {seen.digest[:12]} "
            f"after it was copied from {source.digest[:12]}",
            host=bench.spec.name,
            hint="somebody else may have changed it: plan again",
        )
    if action.hold:
        bench.remember_hold(action, seen)
    else:
        bench.remember_copy(action, seen)
    if action.keep or action.source.is_aside:
        settle(bench, action.model, keep=action.keep)
    return before is None or before.digest != seen.digest


def _delete(bench: Workbench, action: DeleteModel) -> bool:
    seen = bench.tags().get(action.model)
    was_there = seen is not None and bench.retrying(
        action, lambda: bench.client.delete(seen.name, cancel=bench.cancel)
    )
    if action.model in bench.tags():
        raise RemoteError(
            f"{bench.spec.name}: '{action.model}' is still there, although the server reported success",
            host=bench.spec.name,
            hint="look at the server's log; run again to try once more",
        )
    bench.forget(action)
    return was_there


def _push(bench: Workbench, action: PushModel) -> bool:
    tags = bench.tags()
    source = bench.require(action.source, tags, f"to push to '{action.model}'")
    alias = bench.require(action.model, tags, "to push")
    if alias.digest != source.digest:
        raise ChangedMeanwhile(
            f"'{alias.name}' is {alias.digest[:12]} and no copy of '{source.name}' ({source.digest[:12]}) any more",
            hint="plan again",
        )
    bench.retrying(
        action,
        lambda: bench.client.push(
            alias.name,
            insecure=action.insecure,
            on_progress=bench.reporter(action),
            cancel=bench.cancel,
            stall_s=bench.spec.stall_s,
        ),
    )
    bench.remember_push(action, action.source, source.digest)
    return True
