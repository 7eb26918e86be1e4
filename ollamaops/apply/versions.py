"""Keeping a model's previous content while something new takes its place, under names of our own.

Carries out what plan/versions.py works out; copies move no weights. The trap: these names are never
shown as models (observe.py leaves them out), so what a killed run leaves behind is no drift; the next run settles it,
and nothing here listens to a Ctrl-C, because a change that has ended has to be settled all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from ollamaops.errors import OllamaopsError, RemoteError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import OnRetry, attempt
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import ModelName
from ollamaops.observe.session import Seen, Workbench, read_tags
from ollamaops.plan.actions import Action, CopyModel, PullModel
from ollamaops.plan.versions import Step, commit, left_behind, next_of, previous_of, revert, set_aside, sweep

RETRIES = 2


def secure(bench: Workbench, before: Seen) -> None:
    """Keep the content of a model aside before it is replaced; what is there already is older, and was good."""
    aside = previous_of(before.name)
    if aside not in bench.tags():
        bench.patiently(lambda: bench.client.copy(before.name, aside))


def make_room(bench: Workbench, action: CopyModel) -> None:
    """Before something is copied there, what the model holds gets a name aside, for `settle` to keep or delete."""
    with bench.changing:
        for step in set_aside(action.model, _digests(bench), former=action.former):
            bench.retrying(action, partial(_take, bench, step))


def settle(bench: Workbench, action: Action, *, keep: int | None) -> None:
    """The content of the action's model counts: keep the previous versions that are wanted, and nothing else aside.

    `keep` None leaves those that were kept before alone. The change itself is done, so what fails here is left to
    the next run.
    """
    with suppress(RemoteError), bench.changing:
        _follow(bench, commit(action.model, _digests(bench), keep=keep), bench.teller(action))


def take_back(bench: Workbench, model: ModelName) -> bool:
    """The content of the model does not count: what waited aside is back; False when nothing did."""
    with bench.changing:
        digests = _digests(bench)
        _follow(bench, revert(model, digests))
    return previous_of(model) in digests


def discard_next(bench: Workbench, model: ModelName) -> None:
    """Remove the next version of the model, which is not going to be switched to."""
    aside = next_of(model)
    _follow(bench, [Step(name) for name in _digests(bench) if name == aside])


@contextmanager
def keeping_previous(bench: Workbench, pull: PullModel, before: Seen | None) -> Iterator[None]:
    """Within the block a pull may replace `before`; afterwards it counts, or it is on trial, or `before` is back.

    A model that was not there before and does not meet its pin is removed again. A pull that is neither pinned nor
    on trial, and of which no previous version is to be kept, just replaces.
    """
    if not (pull.pin or pull.verify or pull.keep):
        yield
        return
    if before is not None:
        secure(bench, before)
    try:
        yield
    except OllamaopsError:
        with suppress(
            RemoteError
        ):  # the failure itself is what the user must hear of; the next run settles this
            _settle_failure(bench, pull, before)
        raise
    if not pull.verify:
        settle(bench, pull, keep=pull.keep)


def _settle_failure(bench: Workbench, pull: PullModel, before: Seen | None) -> None:
    """What is pinned and has arrived, or is the first to have that name, stays: it may still be proven."""
    now = _tags(bench).get(pull.model)
    if now is not None and now.digest in pull.pin:
        if not pull.verify:
            settle(bench, pull, keep=pull.keep)
    elif not take_back(bench, pull.model) and before is None:
        if now is None:
            bench.forget_quietly(pull.model)
        elif pull.pin:
            _follow(bench, [Step(now.name)])


def settle_leftovers(
    bench: Workbench, declared: Sequence[ModelSpec], *, stands: Collection[ModelName]
) -> tuple[ModelName, ...]:
    """Finish or revert whatever a killed run began; the names that are gone now. `stands` are models that a look has
    found as declared, or held."""
    known = bench.ledger.load(bench.spec.memory_key)
    ours = [ModelName.parse(key) for key, fact in known.items() if fact.is_ours]
    steps = sweep(_digests(bench), declared, stands=stands, ours=ours, ignored=bench.policy.ignore)
    _follow(bench, steps)
    return left_behind(steps)


def _follow(bench: Workbench, steps: Iterable[Step], on_retry: OnRetry | None = None) -> None:
    """Carry the steps out, whoever asks to stop."""
    with bench.changing:
        for step in steps:
            attempt(partial(_take, bench, step), retries=RETRIES, cancel=CancelToken(), on_retry=on_retry)


def _take(bench: Workbench, step: Step) -> None:
    """One step. What is remembered of an aside goes with it."""
    client = bench.client.without_cancel()
    if step.target is not None:
        client.copy(step.source, step.target)
    else:
        client.delete(step.source)
        bench.forget_quietly(step.source)


def _digests(bench: Workbench) -> dict[ModelName, str]:
    return {name: seen.digest for name, seen in _tags(bench).items()}


def _tags(bench: Workbench) -> dict[ModelName, Seen]:
    return attempt(lambda: read_tags(bench.client.without_cancel()), retries=RETRIES, cancel=CancelToken())
