"""Pulling a model: done when it is there, matches its pin, and can be opened.

Servers (up to 0.33) accept a blob that is already there, however damaged, so pulling again repairs nothing until the
model is deleted. That happens only if the server says that a file of this model is broken while it can open others.
"""

from __future__ import annotations

from ollamaops.apply.remember import remember, remember_pull_begun
from ollamaops.apply.versions import keeping_previous
from ollamaops.errors import DigestMismatch, ProtocolError, RemoteError
from ollamaops.observe.contents import REPAIR_HINT, build_damaged_error, build_unreadable_error
from ollamaops.observe.session import HostSession
from ollamaops.observe.tags import Seen
from ollamaops.ollama.contents import Unreadable
from ollamaops.plan.actions import PullModel
from ollamaops.plan.observed import split_digests

OTHERS_TO_OPEN = 3


def pull(host: HostSession, action: PullModel) -> bool:
    """Pull the model; True if it was not there, or is another now. ProtocolError when it cannot be opened."""
    before = host.tags().get(action.model)
    with keeping_previous(host, action, before):
        if action.verify and before is None:
            remember_pull_begun(host, action)
        seen = _download(host, action, before)
        seen = _usable(host, action, seen)
        remember(
            host,
            action,
            seen,
            "pulled",
            action.fingerprint,
            status="unverified" if action.verify else "applied",
            base=_origin(host, action, seen),
        )
    was_damaged = any(why.kind == "damaged" for why in action.because)
    return was_damaged or before is None or before.digest != seen.digest


def _usable(host: HostSession, action: PullModel, seen: Seen) -> Seen:
    """The model once it opens, pulled anew if need be. ProtocolError, and a memory of it, when it does not."""
    try:
        host.refuse_stub(seen, action.model)
        if not _is_damaged(host, seen):
            return seen
        _blame_the_model(host, seen)
        seen = _download_anew(host, action, seen)
        if _is_damaged(host, seen):
            raise build_damaged_error(host.name, seen.name, REPAIR_HINT)
    except ProtocolError:
        remember(host, action, seen, "pulled", action.fingerprint, status="unusable")
        raise
    return seen


def _download(host: HostSession, action: PullModel, before: Seen | None) -> Seen:
    """What the pull brought. DigestMismatch if it is not what it is pinned to."""
    host.retrying(
        action,
        lambda: host.client.pull(
            before.name if before else action.model,
            insecure=action.insecure,
            on_progress=host.reporter(action),
            stall_s=host.spec.stall_s,
        ),
    )
    seen = host.require_made(action.model)
    if action.pin and split_digests(seen.digest).isdisjoint(action.pin):
        raise DigestMismatch(
            f"{host.name}: '{action.model}' came out as {seen.digest[:12]}, which is not the pinned content",
            host=host.name,
            hint=_pin_hint(host, action),
        )
    return seen


def _origin(host: HostSession, action: PullModel, seen: Seen) -> str | None:
    """The digest of the registry manifest that came: the one in the plan, unless the tag has moved since.

    A server before 0.19 may list it under a digest that nobody can work out; then it is what the registry still has.
    """
    if not action.registry_digest:
        return None
    if split_digests(seen.digest) <= set(action.current) or host.registries is None:
        return action.registry_digest
    host.registries.forget(action.model, action.insecure)
    now = host.registries.ask({action.model: action.insecure})[action.model]
    if split_digests(seen.digest) <= now.digests:
        return now.registry_digest
    is_told = host.client.features().raw_registry_manifest or now.registry_digest != action.registry_digest
    return None if is_told else now.registry_digest


def _pin_hint(host: HostSession, action: PullModel) -> str:
    """A pin of a single digest is the registry's own, which servers before 0.19 do not keep."""
    if len(action.pin) == 1 and not host.client.features().raw_registry_manifest:
        return "this server writes manifests anew, so only the registry can tell: leave out --no-registry, or upgrade"
    return "the registry has changed: look at what is new, then plan again, or update the pin"


def _is_damaged(host: HostSession, seen: Seen) -> bool:
    """Whether a file of the pulled model is broken. ProtocolError when it cannot be opened for another reason."""
    flaw = _find_flaw(host, seen)
    if flaw is not None and not flaw.is_damaged:
        raise build_unreadable_error(host.name, seen.name, flaw, host.client.features())
    return flaw is not None


def _find_flaw(host: HostSession, seen: Seen) -> Unreadable | None:
    """Why the model cannot be opened; None if it can, or when nobody can tell (cloud stub, proxy)."""
    if seen.is_cloud or seen.name.source_suffix == "cloud":
        return None
    try:
        found = host.open_model(seen)
    except RemoteError:
        return None
    return found if isinstance(found, Unreadable) else None


def _blame_the_model(host: HostSession, broken: Seen) -> None:
    """ProtocolError when no other model can be opened either: then the server is ill, and nothing is removed."""
    others = [seen for seen in host.tags().values() if seen.digest != broken.digest][:OTHERS_TO_OPEN]
    if others and all(_find_flaw(host, other) for other in others):
        raise ProtocolError(
            f"{host.name}: '{broken.name}' cannot be opened, and no other model either",
            host=host.name,
            hint="look at the server's log; run again when it can show models",
        )


def _download_anew(host: HostSession, action: PullModel, broken: Seen) -> Seen:
    """The model has to go before it is pulled again."""
    host.warn(action, "it cannot be opened: a blob on the host is damaged; removing it and pulling it anew")
    with host.changing:
        host.client.delete(broken.name)
    return _download(host, action, None)
