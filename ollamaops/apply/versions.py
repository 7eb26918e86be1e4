"""Keeping a model's previous content under a reserved name while new content takes its place, and verifying the new
content: it counts from then on, or it is taken back.

plan/versions.py works out the steps; copies move no weights. Reserved names are never shown as models, so what a
killed run leaves behind is not drift; the next run finishes it. The steps here ignore Ctrl-C, because a change that
has ended has to be completed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from ollamaops.apply.remember import forget, forget_quietly, mark_doubtful, remember_kept, remember_verified
from ollamaops.errors import OllamaopsError, RemoteError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import OnRetry, attempt
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import ModelName
from ollamaops.observe.session import HostSession
from ollamaops.observe.tags import Seen, read_tags
from ollamaops.observe.verify import verify_model
from ollamaops.ollama.listing import Listing
from ollamaops.plan import versions as steps
from ollamaops.plan.actions import Action, CopyModel, PullModel, VerifyModel
from ollamaops.plan.expectations import Expectation, Verdict
from ollamaops.plan.versions import Step, next_of, previous_of

RETRIES = 2
MOST_TOLD = 3


def set_aside(host: HostSession, before: Seen) -> None:
    """Keep the content of a model aside before it is replaced; what is there already is older, and was good."""
    aside = previous_of(before.name)
    if aside not in host.tags():
        host.with_retries(lambda: _take(host, Step(before.name, aside)))


def make_room(host: HostSession, action: CopyModel) -> None:
    """Before something is copied there, what the model holds gets a name aside, for `commit` to keep or delete."""
    with host.changing:
        for step in steps.set_aside(action.model, _digests(host), former=action.former):
            host.retrying(action, partial(_take, host, step))


def commit(host: HostSession, action: Action, *, keep: int | None) -> None:
    """The content of the action's model counts: keep the previous versions that are wanted, and nothing else aside.

    `keep` None leaves those that were kept before alone. The change itself is done, so what fails here is left to
    the next run.
    """
    with suppress(RemoteError), host.changing:
        _follow(host, steps.commit(action.model, _digests(host), keep=keep), host.on_retry(action))


def revert(host: HostSession, model: ModelName) -> bool:
    """The content of the model does not count: what waited aside is back; False when nothing did."""
    with host.changing:
        digests = _digests(host)
        _follow(host, steps.revert(model, digests))
    return previous_of(model) in digests


def discard_next(host: HostSession, model: ModelName) -> None:
    """Remove the next version of the model, which is not going to be switched to."""
    aside = next_of(model)
    _follow(host, [Step(name) for name in _digests(host) if name == aside])


@contextmanager
def keeping_previous(host: HostSession, pull: PullModel, before: Seen | None) -> Iterator[None]:
    """Within the block a pull may replace `before`; afterwards it counts, or it is unverified, or `before` is back.

    A model that was not there before and does not meet its pin is removed again. A pull that is neither pinned nor
    on trial, and of which no previous version is to be kept, just replaces.
    """
    if not (pull.pin or pull.verify or pull.keep):
        yield
        return
    if before is not None:
        set_aside(host, before)
    try:
        yield
    except OllamaopsError:
        with suppress(
            RemoteError
        ):  # the failure itself is what the user must hear of; the next run settles this
            _handle_failure(host, pull, before)
        raise
    if not pull.verify:
        commit(host, pull, keep=pull.keep)


def _handle_failure(host: HostSession, pull: PullModel, before: Seen | None) -> None:
    """What is pinned and has arrived, or is the first to have that name, stays: it may still be proven."""
    now = _tags(host).get(pull.model)
    if now is not None and now.digest in pull.pin:
        if not pull.verify:
            commit(host, pull, keep=pull.keep)
    elif not revert(host, pull.model) and before is None:
        if now is None:
            forget_quietly(host, pull.model)
        elif pull.pin:
            _follow(host, [Step(now.name)])


def sweep_leftovers(
    host: HostSession, declared: Sequence[ModelSpec], *, stands: Collection[ModelName]
) -> tuple[ModelName, ...]:
    """Finish or revert whatever a killed run began; the names that are gone now. `stands` are models that a look has
    found as declared, or held."""
    known = host.ledger.load(host.spec.memory_key)
    ours = [ModelName.parse(key) for key, fact in known.items() if fact.is_ours]
    todo = steps.sweep(_digests(host), declared, stands=stands, ours=ours, ignored=host.task.policy.ignore)
    _follow(host, todo)
    return steps.left_behind(todo)


def _follow(host: HostSession, todo: Iterable[Step], on_retry: OnRetry | None = None) -> None:
    """Carry the steps out, whoever asks to stop."""
    with host.changing:
        for step in todo:
            attempt(partial(_take, host, step), retries=RETRIES, cancel=CancelToken(), on_retry=on_retry)


def _take(host: HostSession, step: Step) -> None:
    """One step. What is remembered of an aside goes with it."""
    client = host.client.without_cancel()
    if step.target is not None:
        client.copy(step.source, step.target)
        kept = _tags(host).get(step.target) if step.target.is_aside else None
        if kept is not None:
            remember_kept(host, step.source, kept)
    else:
        client.delete(step.source)
        forget_quietly(host, step.source)


def _digests(host: HostSession) -> Listing[str]:
    return _tags(host).map(lambda seen: seen.digest)


def _tags(host: HostSession) -> Listing[Seen]:
    return attempt(lambda: read_tags(host.client.without_cancel()), retries=RETRIES, cancel=CancelToken())


# verifying a new version


class NotAsExpected(OllamaopsError):
    """A model was asked, and does not do what is expected of it. What was there before stays, or is back."""

    exit_code = 5


def verify(host: HostSession, action: VerifyModel) -> bool:
    """Hold the new content to the action's expectations; False: nothing has changed. NotAsExpected; RemoteError."""
    seen = host.require(action.at, host.tags(), "to verify")
    verdict = verify_model(host, seen.name, action.expectations or (Expectation(),))
    if not verdict.is_met:
        raise _not_as_expected(host, action, verdict, _reject(host, action, seen))
    remember_verified(host, action, seen)
    if action.at == action.model:
        commit(host, action, keep=action.keep)
    return False


def _not_as_expected(
    host: HostSession, action: VerifyModel, verdict: Verdict, what_became: str
) -> NotAsExpected:
    told = "; ".join(map(str, verdict.failures[:MOST_TOLD]))
    more = len(verdict.failures) - MOST_TOLD
    hint = next((failure.hint for failure in verdict.failures if failure.hint), None)
    return NotAsExpected(
        f"{host.name}: '{action.model}' is not as expected: {told}"
        + (f"; and {more} more" if more > 0 else "")
        + f"; {what_became}",
        hint=hint or "change what it is made from, or what is expected of it",
    )


def _reject(host: HostSession, action: VerifyModel, seen: Seen) -> str:
    """Undo what can be undone, and say how things are now."""
    try:
        if action.at == action.model:
            return _reject_pulled(host, action, seen)
        if action.at.is_aside:
            discard_next(host, action.model)
        return _say_old(host, action)
    except RemoteError as error:
        return f"it could not be taken back, which the next run does: {error}"


def _say_old(host: HostSession, action: VerifyModel) -> str:
    is_there = action.model in host.tags()
    return "the version that was there stays" if is_there else "there was none before, and there is none now"


def _reject_pulled(host: HostSession, action: VerifyModel, seen: Seen) -> str:
    if revert(host, action.model):
        host.touched.add(action.model)
        mark_doubtful(host, {action.model})
        return "the previous version is back"
    record = host.ledger.load(host.spec.memory_key).get(action.model.key)
    if record is None or record.status != "unverified" or record.digest != seen.digest:
        return "it stays as it is, because nothing is known of a previous version"
    with host.changing:
        host.with_retries(lambda: host.client.delete(seen.name))
    forget(host, action)
    return "it was removed, because there was none before"
