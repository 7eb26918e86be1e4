"""One `case` per action: how it is carried out on a host, and how its result is seen with own eyes.

Decides nothing about what should be done. Success is a fresh look at `/api/tags`, not a 200; what was seen is
remembered at once, so that kill -9 between two actions loses nothing. Leaves pulls to pulling.py, uploads and builds
to building.py. The fact a reader would miss: servers have no compare-and-swap, so what an action relies on is looked
at once more right before it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import assert_never

from ollamaops.apply.create import create, upload
from ollamaops.apply.load import load, make_way, unload
from ollamaops.apply.preconditions import await_turn
from ollamaops.apply.pull import pull
from ollamaops.apply.push import publish
from ollamaops.apply.switch import prove
from ollamaops.apply.versions import make_room, settle
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
from ollamaops.observe.contents import short_digest
from ollamaops.observe.session import Workbench
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
    id_of,
    subject_of,
    verb_of,
)
from ollamaops.units import format_size

SPARE_TO_NAME = 3


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
        with bench.changing if _is_alone(bench, action) else nullcontext():
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


def _is_alone(bench: Workbench, action: Action) -> bool:
    """Whether nothing is deleted, copied or created beside it, not even by a pull that settles what it replaced.

    Where a deletion removes everything unused (0.5.13), so are downloads and uploads.
    """
    match action:
        case CreateModel() | CopyModel() | DeleteModel():
            return True
        case PullModel() | UploadBlob():
            return bench.client.features().delete_prunes_everything
        case _:
            return False


def _carry_out(bench: Workbench, action: Action) -> bool:
    """Do it; True if something changed on the host."""
    match action:
        case PullModel():
            return pull(bench, action)
        case UploadBlob():
            return bench.retrying(action, lambda: upload(bench, action, bench.reporter(action)))
        case CreateModel():
            return create(bench, action)
        case CopyModel():
            return _copy(bench, action)
        case DeleteModel():
            return _delete(bench, action)
        case PushModel():
            return _push(bench, action)
        case VerifyModel():
            return prove(bench, action)
        case LoadModel():
            return load(bench, action)
        case UnloadModel():
            return unload(bench, action)
        case _:
            assert_never(action)


# copies, deletions, pushes


def _copy(bench: Workbench, action: CopyModel) -> bool:
    tags = bench.tags()
    source = bench.require(action.source, tags, f"to copy to '{action.model}'")
    before = tags.get(action.model)
    target = before.name if before else action.model
    is_replaced = before is not None and before.digest != source.digest
    if is_replaced or (before is None and action.former and action.keep):
        make_room(bench, action)
    bench.retrying(action, lambda: bench.client.copy(source.name, target))
    seen = bench.prove(action.model)
    if seen.digest != source.digest:
        raise ProtocolError(
            f"{bench.spec.name}: '{action.model}' is {seen.digest[:12]} "
            f"after it was copied from {source.digest[:12]}",
            host=bench.spec.name,
            hint="somebody else may have changed it: plan again",
        )
    if action.rollback_key:
        bench.remember_rollback(action, seen)
    else:
        bench.remember_copy(action, seen)
    if action.keep or action.source.is_aside:
        settle(bench, action, keep=action.keep)
    elif is_replaced:
        settle(bench, action, keep=None)
    return before is None or before.digest != seen.digest


def _delete(bench: Workbench, action: DeleteModel) -> bool:
    seen = bench.tags().get(action.model)
    was_there = seen is not None and bench.retrying(action, lambda: bench.client.delete(seen.name))
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
    return publish(bench, action, alias)
