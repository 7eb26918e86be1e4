"""One `case` per action: how it is carried out on a host, and what came of it.

Success is a fresh look at `/api/tags`, not a 200; what was seen is remembered at once, so that kill -9 between two
actions loses nothing. Servers have no compare-and-swap, so what an action relies on is looked at once more right
before it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import assert_never

from ollamaops.apply.create import create, upload
from ollamaops.apply.load import load, make_way, unload
from ollamaops.apply.pull import pull
from ollamaops.apply.push import publish
from ollamaops.apply.remember import forget, remember_copy, remember_rollback
from ollamaops.apply.versions import commit, make_room, verify
from ollamaops.errors import (
    Cancelled,
    DiskFull,
    OllamaopsError,
    ProtocolError,
    RefusedError,
    RemoteError,
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
from ollamaops.names import ModelName
from ollamaops.observe.contents import short_digest
from ollamaops.observe.host import clocks_of, names_in_use
from ollamaops.observe.session import HostSession
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    LoadModel,
    PullModel,
    PushModel,
    UnloadModel,
    UploadBlob,
    VerifyModel,
    subject_of,
    verb_of,
)
from ollamaops.plan.guard import CHANGING, describe_moment, is_open, next_opening
from ollamaops.plan.residency import kept_loaded
from ollamaops.units import format_size

SPARE_TO_NAME = 3
LOOKS_AT_BUSY = 300
BUSY_PAUSE_S = 2.0
# of two spellings of a name the server deletes either, and sometimes finds neither
MOST_DELETIONS = 16


class ChangedMeanwhile(OllamaopsError):
    """A fact that an action relies on is no longer true: somebody else changed the host."""

    exit_code = 4


def perform(host: HostSession, action: Action) -> Outcome:
    """Carry out one action and say how it ended. Never raises for what users, servers or networks do."""
    began = time.monotonic()
    host.emit(ActionStarted(**host.stamp(action), verb=verb_of(action), subject=subject_of(action)))
    outcome = _outcome(host, action, began)
    host.emit(ActionEnded(**host.stamp(action), outcome=outcome))
    return outcome


def _outcome(host: HostSession, action: Action, began: float) -> Outcome:
    try:
        wait_until_allowed(host, action)
        _check_expectations(host, action)
        make_way(host, action)
        with host.changing if _is_alone(host, action) else nullcontext():
            changed = _carry_out(host, action)
    except Cancelled:
        return Interrupted(started=True)
    except (ChangedMeanwhile, RefusedError) as error:
        return Refused(because=str(error), hint=error.hint)
    except OllamaopsError as error:
        hint = _what_to_free(host) if isinstance(error, DiskFull) else None
        return Failed(
            error=str(error),
            hint=hint or error.hint,
            exit_code=error.exit_code,
            seconds=time.monotonic() - began,
        )
    return Succeeded(seconds=time.monotonic() - began, changed=changed)


def _what_to_free(host: HostSession) -> str | None:
    """The largest undeclared models, as advice for a full disk; None when there are none."""
    try:
        spare = [seen for name, seen in host.tags().items() if name in host.spare]
    except OllamaopsError:
        return None
    largest = sorted(spare, key=lambda seen: seen.size_bytes, reverse=True)[:SPARE_TO_NAME]
    named = ", ".join(f"{seen.name} ({format_size(seen.size_bytes)})" for seen in largest)
    return f"free space on the host; not declared: {named}" if named else None


def _check_expectations(host: HostSession, action: Action) -> None:
    """Servers have no compare-and-swap, so look once more right before a model is touched."""
    open_facts = [fact for fact in action.expects if fact.model not in host.touched]
    if not open_facts:
        return
    tags = host.tags()
    for fact in open_facts:
        if fact.model in tags.unreadable:
            raise ChangedMeanwhile(f"'{fact.model}': {tags.unreadable[fact.model]}", hint="plan again")
        seen = host.find(fact.model, tags) if fact.digest else tags.get(fact.model)
        now = seen.digest if seen else None
        if now != fact.digest:
            raise ChangedMeanwhile(
                f"'{fact.model}' changed since the plan was made: "
                f"it was {short_digest(fact.digest)}, now it is {short_digest(now)}",
                hint="plan again",
            )


def _is_alone(host: HostSession, action: Action) -> bool:
    """Whether nothing is deleted, copied or created beside it, not even by a pull that settles what it replaced.

    Where a deletion removes everything unused (0.5.13), so are downloads and uploads.
    """
    match action:
        case CreateModel() | CopyModel() | DeleteModel():
            return True
        case PullModel() | UploadBlob():
            return host.client.features().delete_prunes_everything
        case _:
            return False


def _carry_out(host: HostSession, action: Action) -> bool:
    """Do it; True if something changed on the host."""
    match action:
        case PullModel():
            return pull(host, action)
        case UploadBlob():
            return host.retrying(action, lambda: upload(host, action, host.reporter(action)))
        case CreateModel():
            return create(host, action)
        case CopyModel():
            return _copy(host, action)
        case DeleteModel():
            return _delete(host, action)
        case PushModel():
            return _push(host, action)
        case VerifyModel():
            return verify(host, action)
        case LoadModel():
            return load(host, action)
        case UnloadModel():
            return unload(host, action)
        case _:
            assert_never(action)


# copies, deletions, pushes


def _copy(host: HostSession, action: CopyModel) -> bool:
    tags = host.tags()
    source = host.require(action.source, tags, f"to copy to '{action.model}'")
    host.refuse_stub(source, action.model)
    before = tags.get(action.model)
    target = before.name if before else action.model
    is_replaced = before is not None and before.digest != source.digest
    if is_replaced or (before is None and action.former and action.keep):
        make_room(host, action)
    host.retrying(action, lambda: host.client.copy(source.name, target))
    seen = host.require_made(action.model)
    if seen.digest != source.digest:
        raise ProtocolError(
            f"{host.name}: '{action.model}' is {seen.digest[:12]} "
            f"after it was copied from {source.digest[:12]}",
            host=host.name,
            hint="another client may have changed it: plan again",
        )
    if action.rollback_key:
        remember_rollback(host, action, seen)
    else:
        remember_copy(host, action, seen)
    if action.keep or action.source.is_aside:
        commit(host, action, keep=action.keep)
    elif is_replaced:
        commit(host, action, keep=None)
    return before is None or before.digest != seen.digest


def _delete(host: HostSession, action: DeleteModel) -> bool:
    tags = host.tags()
    several = host.client.features().folds_case and tags.namesakes(action.model)
    was_there = False
    for _ in range(MOST_DELETIONS if several else 1):
        seen = tags.get(action.model)
        if seen is None:
            break
        was_there |= host.retrying(action, partial(host.client.delete, seen.name))
        tags = host.tags()
    if action.model in tags:
        raise RemoteError(
            f"{host.name}: '{action.model}' is still there, although the server reported success",
            host=host.name,
            hint="look at the server's log; run again to try once more",
        )
    forget(host, action)
    return was_there


def _push(host: HostSession, action: PushModel) -> bool:
    tags = host.tags()
    source = host.require(action.source, tags, f"to push to '{action.model}'")
    alias = host.require(action.model, tags, "to push")
    if alias.digest != source.digest:
        raise ChangedMeanwhile(
            f"'{alias.name}' is {alias.digest[:12]} and no copy of '{source.name}' ({source.digest[:12]}) any more",
            hint="plan again",
        )
    return publish(host, action, alias)


# may it begin?


def wait_until_allowed(host: HostSession, action: Action) -> None:
    """Return when the action may begin: its maintenance window is open, its model is not in use.

    An action that has begun is never stopped here, so a running pull finishes after its window has closed.
    RefusedError when it may not begin; Cancelled; RemoteError.
    """
    if isinstance(action, CHANGING) and "windows" not in host.run.options.force:
        _require_window(host)
    is_aside = isinstance(action, CreateModel) and action.aside is not None
    is_ours = action.model in kept_loaded(
        host.task.models
    )  # in memory whether anybody uses it or not: guard.py
    touches = isinstance(action, PullModel | CreateModel | CopyModel | DeleteModel) and not (
        is_aside or is_ours
    )
    if touches and host.task.policy.busy == "wait" and "busy" not in host.run.options.force:
        _await_idle(host, action.model)


def _require_window(host: HostSession) -> None:
    windows = host.task.policy.windows
    clocks = clocks_of(windows, host.run.moment())
    opening = next_opening(windows, clocks)
    if opening is not None and not is_open(windows, clocks):
        raise RefusedError(
            "the maintenance window has closed",
            hint=f"run again when the next one opens: {describe_moment(opening)}",
        )


def _await_idle(host: HostSession, name: ModelName) -> None:
    for _ in range(LOOKS_AT_BUSY):
        if not names_in_use(host, host.models(), (name,)):
            return
        if host.cancel.wait(BUSY_PAUSE_S):
            raise Cancelled("stopped while waiting for a model to be idle")
    raise RefusedError(
        f"'{name}' is in use, and was so for {LOOKS_AT_BUSY * BUSY_PAUSE_S:g} s",
        hint="unload it, or use --force busy for this run",
    )
