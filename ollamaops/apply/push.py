"""Pushing a model, and checking that the registry has what was pushed.

A pushed model has another digest in the registry than on the host: the manifest file there ends in a newline, or has
the layout of the registry it was pulled from. So the blobs that the server names while it pushes count as well. If
the registry cannot be asked from here, nothing is confirmed, and the run says so.
"""

from __future__ import annotations

from ollamaops.apply.remember import remember_push
from ollamaops.errors import Cancelled, DigestMismatch, ProtocolError
from ollamaops.lockfile.build import Answer, Unanswered
from ollamaops.observe.session import PAUSE_S, HostSession
from ollamaops.observe.tags import Seen
from ollamaops.ollama.wire import Progress
from ollamaops.plan.actions import PushModel
from ollamaops.registry.documents import is_current

LOOKS = 3
_NOT_ASKED = Unanswered(error="registries are not asked", hint="leave out --no-registry")


def publish(host: HostSession, action: PushModel, alias: Seen) -> bool:
    """Push what `alias` holds, unless the registry has it already; True if it was pushed.

    ProtocolError or DigestMismatch when the registry has nothing or something else afterwards, which is then not
    remembered as pushed. RemoteError and Cancelled as pushes raise them.
    """
    answer = _ask(host, action)
    if _holds(answer, alias, frozenset()):
        remember_push(host, action, alias.digest, _registry_digest(answer))
        return False
    blobs = _send(host, action, alias)
    answer = _look(host, action, alias, blobs)
    _check(host, action, alias, answer, blobs)
    remember_push(host, action, alias.digest, _registry_digest(answer))
    return True


def _ask(host: HostSession, action: PushModel) -> Answer:
    if host.registries is None:
        return _NOT_ASKED
    return host.registries.manifest(action.model, action.insecure)


def _send(host: HostSession, action: PushModel, alias: Seen) -> frozenset[str]:
    """Push; the digests of all blobs that the server named (all it has to send, whether the registry had them)."""
    named: set[str] = set()
    report = host.reporter(action)

    def listen(progress: Progress) -> None:
        named.add(progress.digest)
        report(progress)

    def attempt() -> None:
        named.clear()
        host.client.push(
            alias.name,
            insecure=action.insecure,
            on_progress=listen,
            stall_s=host.spec.stall_s,
        )

    try:
        host.retrying(action, attempt)
    finally:
        _forget(host, action)
    return frozenset(named - {""})


def _forget(host: HostSession, action: PushModel) -> None:
    if host.registries is not None:
        host.registries.forget(action.model, action.insecure)


def _look(host: HostSession, action: PushModel, alias: Seen, blobs: frozenset[str]) -> Answer:
    """What the registry answers now; asked again while it is not what was sent, for caches may lag a moment."""
    for _ in range(LOOKS - 1):
        answer = _ask(host, action)
        is_settled = isinstance(answer, Unanswered) and answer.cause != "gone"
        if is_settled or _holds(answer, alias, blobs):
            return answer
        if host.cancel.wait(PAUSE_S):
            raise Cancelled("stopped while looking for what was pushed")
        _forget(host, action)
    return _ask(host, action)


def _holds(answer: Answer, alias: Seen, blobs: frozenset[str]) -> bool:
    """Whether the registry has what `alias` holds: by its digest, else because it names exactly these blobs."""
    if isinstance(answer, Unanswered):
        return False
    return is_current(alias.digest, answer) or (bool(blobs) and blobs == set(map(str, answer.blobs)))


def _check(host: HostSession, action: PushModel, alias: Seen, answer: Answer, blobs: frozenset[str]) -> None:
    """Nothing when it is there; a warning when nobody can tell.

    A registry that says 404 has said no: were it to hide the model from strangers, no server could pull it either,
    because Ollama shows its key only after a 401.
    """
    where, name = host.name, action.model
    if not isinstance(answer, Unanswered):
        if not _holds(answer, alias, blobs):
            raise DigestMismatch(
                f"{where}: '{name}' was pushed as {alias.digest[:12]}, "
                f"but the registry has {answer.digest.hex[:12]}, which is other content",
                host=where,
                hint="another client pushed there too, or a proxy before the registry changed it: run again",
            )
        return
    match answer.cause:
        case "gone":
            raise ProtocolError(
                f"{where}: '{name}' is not in the registry, although the server reported success",
                host=where,
                hint="look at the registry's log; run again to push once more",
            )
        case "tampered":
            raise DigestMismatch(
                f"{where}: '{name}' was pushed, but {answer.error}", host=where, hint=answer.hint
            )
        case _:
            host.warn(action, f"pushed, but not verified: {answer.error}")


def _registry_digest(answer: Answer) -> str:
    return "" if isinstance(answer, Unanswered) else answer.digest.hex
