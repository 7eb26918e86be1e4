"""Uploading weights and making models of them: done when the model is there, newly written, and can be opened.

No create is ever sent while its base is missing: servers from 0.5.5 to 0.12.5 would write an empty model over the old
one. A create that ended in an error may have made its model all the same, so the list of models is asked.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from ollamaops.apply.remember import remember
from ollamaops.errors import (
    AnswerError,
    Cancelled,
    CutStream,
    NotFound,
    ProtocolError,
    RemoteError,
    ServerFault,
)
from ollamaops.files.archive import Archive
from ollamaops.files.digest import believe, digest_of, require_digest, stamp_of
from ollamaops.files.location import RemoteRef, is_remote
from ollamaops.http.file_body import LocalFile
from ollamaops.names import Digest, ModelName
from ollamaops.observe.contents import REPAIR_HINT, build_damaged_error, build_unreadable_error, is_damage
from ollamaops.observe.session import PAUSE_S, HostSession
from ollamaops.observe.tags import Seen, read_tags
from ollamaops.ollama.answer_errors import ends_unheard, is_overdue
from ollamaops.ollama.client import ProgressSink
from ollamaops.ollama.contents import Unreadable
from ollamaops.ollama.upload import BlobSource, upload_source
from ollamaops.ollama.wire import Progress
from ollamaops.plan.actions import CreateModel, UploadBlob
from ollamaops.plan.create_request import build_request, render_request
from ollamaops.units import format_duration

WRITING: Final = "writing manifest"

_LONGEST_PAUSE_S: Final = 30.0
# a create that was cut off after a minute gets an hour; one that was cut off at once is just sent again
_PATIENCE: Final = 60


def upload(host: HostSession, blob: UploadBlob, report: ProgressSink) -> bool:
    """Send the blob, from wherever it lies; False if the host had it. A stated digest is checked by the server that
    gets the bytes; WeightsError if the host had it and the file has another."""
    source: BlobSource = LocalFile(Path(blob.path), blob.size_bytes)
    if blob.parts:
        source = Archive(blob.path, blob.parts, blob.size_bytes)
    elif is_remote(blob.path):
        source = host.run.remote_weights.source_of(
            RemoteRef(blob.path), blob.digest, cancel=host.cancel.is_set
        )
    began_ns, stamp = time.time_ns(), stamp_of(Path(blob.path)) if blob.stated else None
    was_sent = upload_source(host.client, blob.digest, source, on_progress=report)
    if stamp is None or host.run.ledger is None:
        return was_sent
    if was_sent:
        believe(stamp, blob.digest, host.run.ledger, since_ns=began_ns)
    else:
        require_digest(digest_of(Path(blob.path), host.run.ledger, cancel=host.cancel.is_set), blob.digest)
    return was_sent


def create(host: HostSession, action: CreateModel) -> bool:
    """Make the model, or what is to become it; True. ProtocolError when it cannot be opened."""
    old = host.tags().get(_target_of(action))  # once: what an attempt made that was cut off is not old
    seen, base = host.retrying(action, lambda: _build(host, action, old))
    blobs = () if seen.is_cloud else _blobs_in(host, seen)
    remember(
        host,
        action,
        seen,
        "created",
        action.fingerprint,
        base=base.digest if base else None,
        blobs=blobs,
        name=action.aside,
    )
    return True


def _blobs_in(host: HostSession, seen: Seen) -> tuple[Digest, ...]:
    """The weights that the model holds. ProtocolError when it cannot be opened."""
    contents = host.open_model(seen)
    if not isinstance(contents, Unreadable):
        return (*contents.blobs, *contents.adapters)
    if not contents.is_damaged:
        raise build_unreadable_error(host.name, seen.name, contents, host.client.features())
    raise build_damaged_error(host.name, seen.name, REPAIR_HINT)


def _build(host: HostSession, action: CreateModel, old: Seen | None) -> tuple[Seen, Seen | None]:
    """One attempt; the model that came out, and the base as it was right before."""
    recipe, target = action.recipe, _target_of(action)
    steps = _Steps(host.reporter(action))
    _ensure_blobs(host, action, steps.report)
    base = host.require(recipe.base, host.tags(), f"to make '{action.model}' from") if recipe.base else None
    if base is not None:
        host.refuse_stub(base, action.model)
    clock = host.client.transport.clock
    began = clock()
    try:
        _send_create(host, action, old.name if old else target, base, steps.report)
    except RemoteError as error:
        attempt = _Ended(error, after_s=clock() - began, was_writing=steps.was_writing)
        made = _made_all_the_same(host, action, old, attempt)
        if made is not None:
            return made, base
        if isinstance(error, AnswerError) and not isinstance(error, NotFound) and is_damage(error):
            raise ProtocolError(
                f"{error}: a blob on the host that it is made of is damaged",
                host=host.name,
                hint=REPAIR_HINT,
            ) from error
        if not isinstance(error, AnswerError) or error.transient or not _may_pass(host, action, error):
            raise
        raise ServerFault(str(error), host=error.host, status=error.status, text=error.text) from error
    seen = host.find(target, host.tags())
    if seen is None or (seen == old and not host.client.features().stream_false_waits_to_end):
        # up to 0.6.8 the success of pulling a base that has just gone is taken for that of the create
        raise CutStream(
            f"{host.name}: '{target}' was not written, although the server reported success",
            host=host.name,
        )
    return seen, base


def _target_of(action: CreateModel) -> ModelName:
    return action.aside or action.model


def _send_create(
    host: HostSession, action: CreateModel, name: ModelName, base: Seen | None, report: ProgressSink
) -> None:
    """`name` as the host spells it: servers up to 0.4.2 refuse one that differs only in case."""
    features = host.client.features()
    if features.structured_create:
        request = build_request(name, action.recipe, features)
        host.client.create(request, on_progress=report)
        return
    host.client.create_from_modelfile(
        name,
        render_request(action.recipe, base.name if base else None),
        quantize=action.recipe.quantize,
        on_progress=report,
    )


def _may_pass(host: HostSession, action: CreateModel, error: AnswerError) -> bool:
    """Whether a lasting error is about something that was missed for a moment, or can be sent again."""
    if isinstance(error, NotFound) and action.recipe.base in host.tags():
        return True
    return not all(host.client.has_blob(digest) for digest in _blobs_of(action))


def _blobs_of(action: CreateModel) -> tuple[Digest, ...]:
    recipe = action.recipe
    return tuple(blob.digest for blob in (*recipe.files, *recipe.adapters, *recipe.drafts))


def _ensure_blobs(host: HostSession, action: CreateModel, report: ProgressSink) -> None:
    """Blobs are not protected between upload and create: look right before, and send again what has vanished."""
    for digest in _blobs_of(action):
        blob = host.uploads.get(digest)
        if blob is not None:
            upload(host, blob, report)
        elif not host.client.has_blob(digest):
            raise NotFound(
                f"{host.name}: the blob {digest.short} of '{action.model}' is not there",
                host=host.name,
                status=404,
                hint="plan again",
            )


# creates that ended badly


class _Steps:
    """What a create tells on its way, passed on."""

    def __init__(self, sink: ProgressSink) -> None:
        self.was_writing = False
        self._sink = sink

    def report(self, progress: Progress) -> None:
        self.was_writing |= progress.status == WRITING
        self._sink(progress)


class _Ended(Struct, frozen=True):
    """How a create ended: in which error, after how many seconds, and whether it had begun to write the manifest."""

    error: RemoteError
    after_s: float
    was_writing: bool


def _made_all_the_same(
    host: HostSession, action: CreateModel, old: Seen | None, ended: _Ended
) -> Seen | None:
    """The model, if it was made although the create ended in an error; None if not, as far as anybody can see.

    A server that cannot remove layers of the old model says so in an error after the new one was made (0.3 to 0.33).
    ProtocolError when a create that goes on unheard does not end.
    """
    is_silent = _is_silent(host, action)
    if is_silent and action.recipe.quantize and ends_unheard(ended.error):
        return _await_made(host, action, old, ended)
    if not isinstance(ended.error, AnswerError) or not (ended.was_writing or is_silent):
        return None
    made = host.tags().get(_target_of(action))
    if made is None or made == old:
        return None
    host.warn(action, f"made, although the server then said: {ended.error.text}")
    return made


def _is_silent(host: HostSession, action: CreateModel) -> bool:
    """Whether the server says nothing until the end, and goes on when nobody listens any more.

    So are creates from a base up to 0.12.5, which are sent without a stream (see OllamaClient.create).
    """
    features = host.client.features()
    return features.structured_create and not features.stream_ends_at_error and action.recipe.base is not None


def _await_made(host: HostSession, action: CreateModel, old: Seen | None, ended: _Ended) -> Seen | None:
    """The model as soon as it is made; None if it was cut off so soon that it may be sent again."""
    quiet_s = host.client.transport.limits.quiet_s
    limit_s = min(quiet_s, _PATIENCE * ended.after_s)
    host.warn(action, f"{ended.error}; the server goes on with it, so it is waited for")
    made = _poll(host, _target_of(action), old, limit_s)
    if made is None and limit_s == quiet_s:
        raise ProtocolError(
            f"{ended.error}, and not made {format_duration(limit_s)} later either",
            host=host.name,
            hint="let the proxy before the server wait longer (nginx: proxy_read_timeout 3600s): this version says "
            "nothing while it quantizes; or upgrade to 0.12.6",
        )
    return made


def _poll(host: HostSession, target: ModelName, old: Seen | None, limit_s: float) -> Seen | None:
    """The model once it is another than `old`, None after `limit_s`. RemoteError when the server is away: then it
    makes nothing any more."""
    waited_s, pause_s = 0.0, PAUSE_S
    while True:
        made = _look_once(host, target)
        if made is not None and made != old:
            return made
        if waited_s >= limit_s:
            return None
        if host.cancel.wait(pause_s):
            raise Cancelled("stopped while waiting for a model to be made")
        waited_s += pause_s
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _look_once(host: HostSession, target: ModelName) -> Seen | None:
    """The model, None also when the server is too busy to say."""
    try:
        return read_tags(host.client).get(target)
    except RemoteError as error:
        if is_overdue(error):
            return None
        raise
