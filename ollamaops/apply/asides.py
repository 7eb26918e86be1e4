"""Keeping a model's previous content while something new takes its place, under names of our own.

Carries out what plan/asides.py works out; copies move no weights. The fact a reader would miss: these names are never
shown as models (observe.py leaves them out), so what a killed run leaves behind is no drift; the next run settles it,
and nothing here listens to a Ctrl-C, because a change that has ended has to be settled all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from ollamaops.apply.bench import Seen, Workbench, read_tags
from ollamaops.apply.retry import attempt
from ollamaops.errors import OllamaopsError, RemoteError
from ollamaops.names import ModelName
from ollamaops.ollama.cancel import CancelToken
from ollamaops.plan.actions import PullModel
from ollamaops.plan.asides import Step, finish, next_of, previous_of, tidy, undo

RETRIES = 2


def secure(bench: Workbench, before: Seen) -> None:
    """Keep the content of a model aside before it is replaced; what is there already is older, and was good."""
    aside = previous_of(before.name)
    if aside not in bench.tags():
        bench.patiently(lambda: bench.client.copy(before.name, aside, cancel=bench.cancel))


def settle(bench: Workbench, model: ModelName, *, keep: int) -> None:
    """The content of the model counts: keep the previous versions that are wanted, and nothing else aside.

    The change itself is done, so what fails here is left to the next run.
    """
    with suppress(RemoteError):
        _follow(bench, finish(model, _digests(bench), keep=keep))


def take_back(bench: Workbench, model: ModelName) -> bool:
    """The content of the model does not count: what waited aside is back; False when nothing did."""
    digests = _digests(bench)
    _follow(bench, undo(model, digests))
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
    if not (pull.pin or pull.on_trial or pull.keep):
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
    if not pull.on_trial:
        settle(bench, pull.model, keep=pull.keep)


def _settle_failure(bench: Workbench, pull: PullModel, before: Seen | None) -> None:
    """What is pinned and has arrived, or is the first to have that name, stays: it may still be proven."""
    now = _tags(bench).get(pull.model)
    if now is not None and now.digest in pull.pin:
        if not pull.on_trial:
            settle(bench, pull.model, keep=pull.keep)
    elif not take_back(bench, pull.model) and before is None:
        if now is None:
            bench.unlearn(pull.model)
        elif pull.pin:
            _follow(bench, [Step(now.name)])


def settle_leftovers(
    bench: Workbench, *, declared: Mapping[ModelName, int], proven: Collection[ModelName]
) -> None:
    """Finish or undo whatever a killed run began. `declared`: model → how many previous versions stay; `proven` are
    models that a look has found as declared, or held."""
    digests = _digests(bench)
    if not any(name.is_aside for name in digests):
        return
    known = bench.ledger.recall(bench.spec.memory_key)
    ours = [ModelName.parse(key) for key, fact in known.items() if fact.owned]
    _follow(
        bench,
        tidy(digests, declared=declared, proven=proven, ours=ours, ignored=bench.policy.ignore),
    )


def _follow(bench: Workbench, steps: Iterable[Step]) -> None:
    """Carry the steps out. What is remembered of an aside goes with it."""
    for step in steps:
        if step.target is not None:
            _surely(partial(bench.client.copy, step.source, step.target))
        else:
            _surely(partial(bench.client.delete, step.source))
            bench.unlearn(step.source)


def _surely(ask: Callable[[], object]) -> None:
    attempt(ask, retries=RETRIES, cancel=CancelToken())


def _digests(bench: Workbench) -> dict[ModelName, str]:
    return {name: seen.digest for name, seen in _tags(bench).items()}


def _tags(bench: Workbench) -> dict[ModelName, Seen]:
    return attempt(lambda: read_tags(bench.client, None), retries=RETRIES, cancel=CancelToken())
