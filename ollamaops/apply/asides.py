"""Keeping a model's previous content while something new is pulled over it, under a name of our own.

A pull lands under its own name, so a pinned one is checked too late: the old content is copied to
`name:tag-ollamaops-previous` before, and copied back when the new one is not what was pinned. Decides when the old
content comes back; copies move no weights. The fact a reader would miss: these names are never shown as models
(observe.py leaves them out), so what a killed run leaves behind is no drift; the next run settles it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from ollamaops.apply.bench import Seen, Workbench, read_tags
from ollamaops.errors import RemoteError
from ollamaops.names import ModelName
from ollamaops.plan.actions import PullModel

SUFFIX = "-ollamaops-previous"
_MAX_TAG = 80


def previous_of(name: ModelName) -> ModelName:
    """The name under which the previous content of `name` waits; always a valid name."""
    return replace(name, tag=name.tag[: _MAX_TAG - len(SUFFIX)] + SUFFIX)


def is_aside(name: ModelName) -> bool:
    """Whether the name is one of ours."""
    return name.tag.lower().endswith(SUFFIX)


@contextmanager
def keeping_previous(bench: Workbench, pull: PullModel, before: Seen | None) -> Iterator[None]:
    """Within the block a pinned pull may replace `before`; afterwards either the pin is met, or it is back.

    A model that was not there before and does not meet its pin is removed again.
    """
    if not pull.pin:
        yield
        return
    aside = previous_of(pull.model)
    if before is not None and aside not in bench.tags():
        bench.patiently(lambda: bench.client.copy(before.name, aside, cancel=bench.cancel))
    try:
        yield
    finally:
        with suppress(
            RemoteError
        ):  # the pull's own failure is what the user must hear of; the next run settles this
            _settle_pull(bench, pull, before)


def _settle_pull(bench: Workbench, pull: PullModel, before: Seen | None) -> None:
    """Without the cancel token: a few quick requests that also have to be made after a Ctrl-C."""
    tags = read_tags(bench.client, None)
    now, aside = tags.get(pull.model), tags.get(previous_of(pull.model))
    is_proven = now is not None and now.digest in pull.pin
    if aside is not None:
        _settle(bench, aside, pull.model, now, is_proven=is_proven)
    elif now is not None and before is None and not is_proven:
        bench.client.delete(now.name)


def settle_leftovers(
    bench: Workbench, *, declared: Collection[ModelName], proven: Collection[ModelName]
) -> None:
    """Finish what a killed run began: previous content goes, unless it is better than what is there now.

    `proven` are models that a look has found as declared. A declared model that is not gets its previous content
    back, if it has another one now or none.
    """
    tags = bench.tags()
    owners = {previous_of(name): name for name in (*declared, *tags) if not is_aside(name)}
    for aside in [tags[name] for name in tags if is_aside(name)]:
        owner = owners.get(aside.name)
        if owner is None:
            bench.client.delete(aside.name)
        else:
            is_proven = owner in proven or owner not in declared
            _settle(bench, aside, owner, tags.get(owner), is_proven=is_proven)


def _settle(bench: Workbench, aside: Seen, owner: ModelName, now: Seen | None, *, is_proven: bool) -> None:
    """Remove the aside; before that copy it back, unless the owner is proven or still the same."""
    if not is_proven and (now is None or now.digest != aside.digest):
        bench.client.copy(aside.name, now.name if now else owner)
    bench.client.delete(aside.name)
