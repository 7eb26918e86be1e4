"""What a run remembers of each model that it has changed: one atomic write right after the change was seen.

A ledger that cannot be written stops no action; the run says so, and the next run looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from msgspec.structs import replace

from ollamaops.errors import RemoteError, StateError
from ollamaops.names import Digest, ModelName
from ollamaops.observe.session import HostSession
from ollamaops.observe.tags import Seen
from ollamaops.plan.actions import Action, CopyModel, PullModel, PushModel, VerifyModel
from ollamaops.plan.verdict import verified_for
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint, How, ModelRecord, Status


def remember(
    host: HostSession,
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
    """Write down what came out under the action's model (or `name`)."""
    name = name or action.model
    host.touched.add(name)
    if fingerprint == NO_FINGERPRINT:
        return
    record = ModelRecord(
        how=how,
        status=status,
        fingerprint=fingerprint,
        digest=seen.digest,
        base_digest=base,
        blobs=tuple(map(str, blobs)),
        at=host.run.now(),
    )
    _write(host, action, lambda: _remember(host, name, record))


def remember_copy(host: HostSession, action: CopyModel, seen: Seen) -> None:
    """As `remember`. A copy that is declared as its source was, as in a rename, keeps what is known of it."""
    host.touched.add(action.model)

    def write() -> None:
        known = host.ledger.load(host.spec.memory_key).get(action.source.key)
        if known and known.digest == seen.digest and known.is_applied_for(action.fingerprint):
            record = replace(known, how="copied", at=host.run.now())
        else:
            record = ModelRecord(
                how="copied",
                fingerprint=action.fingerprint,
                digest=seen.digest,
                base_digest=seen.digest,
                verified_for=known.verified_for if known else "",
                at=host.run.now(),
            )
        _remember(host, action.model, record)

    if action.fingerprint != NO_FINGERPRINT:
        _write(host, action, write)


def remember_kept(host: HostSession, source: ModelName, kept: Seen) -> None:
    """Write down which content is kept under the name of `kept`, so that nobody else's is rolled back to.

    What was moved from one such name to another is what it was known to be there. Quiet: without it, a rollback says
    that it is not known.
    """
    with suppress(StateError, RemoteError):
        known = host.ledger.load(host.spec.memory_key).get(source.key) if source.is_aside else None
        _remember(host, kept.name, known or ModelRecord(how="adopted", digest=kept.digest, at=host.run.now()))


def remember_rollback(host: HostSession, action: CopyModel, seen: Seen) -> None:
    """Write down that the model was rolled back to this content, and stays so."""
    host.touched.add(action.model)
    record = ModelRecord(
        how="copied", status="rolled_back", entry=action.rollback_key, digest=seen.digest, at=host.run.now()
    )
    _write(host, action, lambda: _remember(host, action.model, record))


def remember_pull_begun(host: HostSession, action: PullModel) -> None:
    """Write down that what is about to be pulled is unverified, in case the run is killed before it is there."""
    record = ModelRecord(
        how="pulled", status="unverified", fingerprint=action.fingerprint, digest="", at=host.run.now()
    )
    _write(host, action, lambda: _remember(host, action.model, record))


def remember_verified(host: HostSession, action: VerifyModel, seen: Seen) -> None:
    """Write down that the content, wherever it is, does what is expected of it."""
    if action.at == action.model:
        host.touched.add(action.model)
    held = verified_for(action.expectations, seen.digest, host.client.features())

    def write() -> None:
        known = host.ledger.load(host.spec.memory_key).get(action.at.key)
        if known is None:
            known = ModelRecord(how="adopted", digest=seen.digest, at=host.run.now())
        elif known.status == "unverified" and known.digest in ("", seen.digest):
            known = replace(known, status="applied", digest=seen.digest)
        _remember(host, action.at, replace(known, verified_for=held))

    _write(host, action, write)


def remember_push(host: HostSession, action: PushModel, *digests: str) -> None:
    """Write down which tags digest was pushed, and as which registry manifest ("" if nobody could ask)."""
    key, known = host.spec.memory_key, tuple(filter(None, digests))
    _write(host, action, lambda: host.ledger.remember_push(key, action.source.key, action.model.key, known))


def mark_doubtful(host: HostSession, names: Collection[ModelName]) -> None:
    """Models that a look found to differ after all are looked into again by the next run; they stay ours.

    What is unverified or unusable is looked into anyway, and stays so.
    """
    known = host.ledger.load(host.spec.memory_key) if names else {}
    doubted = {
        key: replace(record, status="doubted")
        for key, record in known.items()
        if ModelName.parse(key) in names and record.status not in ("unverified", "unusable")
    }
    if doubted:
        host.ledger.remember(host.spec.memory_key, doubted)


def release(host: HostSession) -> tuple[ModelName, ...]:
    """Forget what the task's targets (without targets: all models) were rolled back to; the models that were."""
    targets = host.task.targets
    known = {ModelName.parse(key): record for key, record in host.ledger.load(host.spec.memory_key).items()}
    released = {
        name: replace(record, status="doubted", fingerprint=NO_FINGERPRINT, entry="")
        for name, record in known.items()
        if record.status == "rolled_back" and (not targets or any(target.matches(name) for target in targets))
    }
    if released:
        host.ledger.remember(host.spec.memory_key, {name.key: record for name, record in released.items()})
    return tuple(sorted(released))


def forget(host: HostSession, action: Action) -> None:
    """Drop what is known of a model that has gone."""
    host.touched.add(action.model)
    _write(host, action, lambda: host.ledger.forget(host.spec.memory_key, action.model.key))


def forget_quietly(host: HostSession, name: ModelName) -> None:
    """Drop what is known of a name that is free now. If that fails, the record is only out of date."""
    with suppress(StateError):
        host.ledger.forget(host.spec.memory_key, name.key)


def _remember(host: HostSession, name: ModelName, record: ModelRecord) -> None:
    host.ledger.remember(host.spec.memory_key, {name.key: record})


def _write(host: HostSession, action: Action, write: Callable[[], None]) -> None:
    try:
        write()
    except (StateError, RemoteError) as error:
        host.warn(action, f"done, but not remembered: {error}")
