"""Loading models into memory and unloading them, and confirming it in `/api/ps`.

Servers (0.3 to 0.33) keep a runner per set of weights, find it by name only while the name has these weights, and
never replace the content that a running one was loaded with. So older content under the same name is unloaded first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ollamaops.errors import Cancelled, ProtocolError, RemoteError
from ollamaops.observe.session import PAUSE_S, HostSession, read_loaded
from ollamaops.observe.tags import Seen
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.plan.actions import Action, CopyModel, CreateModel, LoadModel, PullModel, UnloadModel
from ollamaops.plan.observed import Loaded
from ollamaops.plan.residency import share_runner

LOOKS_AFTER_LOAD = 3
LOOKS_AFTER_DROP = 20
GRACE_S = 300.0  # servers' own default of OLLAMA_KEEP_ALIVE


# loading


def load(host: HostSession, action: LoadModel) -> bool:
    """Load the model and see it loaded; True if it was not before. ProtocolError when the server drops it."""
    own = host.require(action.model, host.tags(), "to load")
    before = host.loaded()
    if any(one.name == own.name and one.digest != own.digest for one in before):
        _drop(host, own)
    if not _load(host, action, own):
        _drop(host, own)  # what it uses may be listed as an older content of another name
        if not _load(host, action, own):
            raise ProtocolError(
                f"{host.name}: '{own.name}' was loaded, but the server does not keep it in memory",
                host=host.name,
                hint="it may not fit: look at the server's log, or declare fewer models resident",
            )
    return not _is_held(before, own, action)


def _load(host: HostSession, action: LoadModel, own: Seen) -> bool:
    """Whether the model is still loaded after it was loaded."""
    host.retrying(
        action,
        lambda: host.client.load(own.name, keep_alive_s=action.keep_alive_s),
    )
    return _becomes(
        host,
        lambda loaded: _is_held(loaded, own, action) or _is_shared(host, loaded, own),
        LOOKS_AFTER_LOAD,
    )


def _is_held(loaded: tuple[Loaded, ...], own: Seen, action: LoadModel) -> bool:
    """Whether it is in memory, and stays for ever if it should."""
    serving = [one for one in loaded if one.serves(own.name, own.digest)]
    return any(action.keep_alive_s >= 0 or one.is_forever for one in serving)


def _becomes(host: HostSession, is_so: Callable[[tuple[Loaded, ...]], bool], looks: int) -> bool:
    """Whether `is_so` of what is loaded, maybe a moment later."""
    for _ in range(looks - 1):
        if is_so(host.loaded()):
            return True
        if host.cancel.wait(PAUSE_S):
            raise Cancelled("stopped while looking at what is in memory")
    return is_so(host.loaded())


def _is_shared(host: HostSession, loaded: tuple[Loaded, ...], own: Seen) -> bool:
    """Whether the model uses a runner that is listed under another name."""
    tags = host.tags()
    others = [tags[one.name] for one in loaded if one.name in tags and tags[one.name].digest == one.digest]
    mine = _open(host, own) if others else None
    theirs = (_open(host, other) for other in others) if mine else ()
    return any(mine and each and share_runner(mine, each) for each in theirs)


def _open(host: HostSession, seen: Seen) -> Contents | None:
    found = host.open_model(seen)
    return None if isinstance(found, Unreadable) else found


# dropping


def unload(host: HostSession, action: UnloadModel) -> bool:
    """Drop the model from memory; True if it was there. RemoteError when it stays, because somebody uses it."""
    own = host.require(action.model, host.tags(), "to unload")
    if all(one.name != own.name for one in host.loaded()):
        return False
    if _drop(host, own):
        return True
    if any(one.digest == own.digest for one in host.loaded() if one.name == own.name):
        waited_s = LOOKS_AFTER_DROP * PAUSE_S
        raise RemoteError(
            f"{host.name}: '{own.name}' is still in memory {waited_s:g}s after it was unloaded",
            host=host.name,
            hint="a request may be using it; run again later",
        )
    host.warn(action, "an older content of it stays in memory until the server needs the space, or restarts")
    return True


def _drop(host: HostSession, own: Seen) -> bool:
    """Ask the server to drop what has that name; whether nothing of that name is in memory any more."""
    host.with_retries(lambda: host.client.unload(own.name))
    return _becomes(host, lambda loaded: all(one.name != own.name for one in loaded), LOOKS_AFTER_DROP)


def make_way(host: HostSession, action: Action) -> None:
    """Before the content of a model that is kept for ever is replaced: let it expire as any other model does.

    It serves on until then. Afterwards no request could reach it any more, and it would stay in memory for good.
    """
    if not isinstance(action, PullModel | CreateModel | CopyModel) or not any(
        model.name == action.model and model.resident is True for model in host.task.models
    ):
        return
    if isinstance(action, CreateModel) and action.aside is not None:
        return  # nothing is replaced yet
    with suppress(RemoteError):
        kept = [one for one in read_loaded(host.client) if one.name == action.model]
        if any(one.is_forever for one in kept):
            host.client.load(kept[0].name, keep_alive_s=GRACE_S)
