"""The reserved names beside a model's own, and what becomes of them when a change has ended.

`…-ollamaops-next` holds the next version until it is proven, `…-ollamaops-previous` the current one while something
is tried in its place, `…-ollamaops-previous-1` and up those that are kept to roll back to. Pure: apply/asides.py
carries the steps out. The fact a reader would miss: steps can be cut off anywhere and worked out anew from what is
there then, because contents are told apart by digest and a version that is in two places counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ollamaops.names import NEXT, PREVIOUS, ModelName, NamePattern

MOST_KEPT = 20


def next_of(name: ModelName) -> ModelName:
    """Where the next version of `name` waits until it is proven."""
    return name.aside(NEXT)


def previous_of(name: ModelName) -> ModelName:
    """Where the content of `name` waits while something new is tried in its place."""
    return name.aside(PREVIOUS)


def kept_of(name: ModelName, number: int) -> ModelName:
    """Where the version before the current one is kept (1), and those before that (2, 3 …)."""
    return name.aside(f"{PREVIOUS}-{number}")


def owners_of(names: Iterable[ModelName]) -> Mapping[ModelName, ModelName]:
    """Every reserved name of these models → the model."""
    return {
        aside: name
        for name in names
        if not name.is_aside
        for aside in (next_of(name), previous_of(name), *(kept_of(name, i + 1) for i in range(MOST_KEPT)))
    }


def left_behind(asides: Iterable[ModelName], declared: Mapping[ModelName, int]) -> tuple[ModelName, ...]:
    """Those of the asides that are no previous versions of declared models to be kept (model → how many)."""
    kept = {kept_of(name, i + 1) for name, count in declared.items() for i in range(count)}
    return tuple(name for name in asides if name not in kept)


@dataclass(frozen=True, slots=True)
class Step:
    """Copy `source` to `target`, or delete `source` when there is no target."""

    source: ModelName
    target: ModelName | None = None


def finish(
    owner: ModelName, digests: Mapping[ModelName, str], *, keep: int | None, now: str | None = None
) -> tuple[Step, ...]:
    """What is left to do when the content of `owner` counts: `keep` previous versions stay, newest first.

    `digests` are those of all names on the host, as it spells them; `now` is the owner's, if that is not there to
    be read. `keep` None leaves the kept versions alone.
    """
    spelt = {name: name for name in digests}
    waiting = [spelt[name] for name in (next_of(owner), previous_of(owner)) if name in spelt]
    if keep is None:
        return tuple(map(Step, waiting))
    slots = [previous_of(owner), *(kept_of(owner, i + 1) for i in range(MOST_KEPT))]
    before = [(i, digests[name]) for i, name in enumerate(slots) if name in digests]
    current = digests.get(owner, now)
    first = {digest: i for i, digest in reversed(before)}
    wanted = [digest for digest in dict.fromkeys(digest for _, digest in before) if digest != current][:keep]
    moves = [(first[digest], i) for i, digest in enumerate(wanted, 1) if first[digest] != i]
    surplus = [spelt[slots[i]] for i, _ in before if i > len(wanted)]
    return (
        *(Step(spelt[slots[i]], spelt.get(slots[to], slots[to])) for i, to in _in_safe_order(moves)),
        *map(Step, (*surplus, *waiting)),
    )


def _in_safe_order(moves: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """No move overwrites what a later one needs: those to a deeper slot from the deepest on, then the others."""
    yield from reversed([move for move in moves if move[0] < move[1]])
    yield from (move for move in moves if move[0] > move[1])


def undo(owner: ModelName, digests: Mapping[ModelName, str]) -> tuple[Step, ...]:
    """What is left to do when the content of `owner` does not count: what waits aside comes back."""
    spelt = {name: name for name in digests}
    aside = previous_of(owner)
    back = aside in digests and digests[aside] != digests.get(owner)
    waiting = [spelt[name] for name in (next_of(owner), aside) if name in spelt]
    return (*([Step(spelt[aside], spelt.get(owner, owner))] if back else []), *map(Step, waiting))


def tidy(
    digests: Mapping[ModelName, str],
    *,
    declared: Mapping[ModelName, int],
    proven: Iterable[ModelName],
    ours: Iterable[ModelName],
    ignored: Sequence[NamePattern] = (),
) -> tuple[Step, ...]:
    """What is left to do on a host, whatever a run that was stopped has left behind.

    `declared`: model → how many previous versions stay; `proven` are those of them that are as declared, or held;
    `ours` those that we remember to have made. The kept versions of a model that is on the host and neither
    declared nor ours are somebody else's. What stands beside an `ignored` model is not touched.
    """
    owners = owners_of((*declared, *digests))
    asides = [name for name in digests if name.is_aside]
    steps = [Step(name) for name in asides if name not in owners]
    is_proven, is_ours = set(proven), set(ours)
    for owner in dict.fromkeys(owners[name] for name in asides if name in owners):
        if any(pattern.matches(owner) for pattern in ignored):
            continue
        if owner in declared and owner not in is_proven:
            steps += undo(owner, digests)
        elif owner in declared or owner not in digests or owner in is_ours:
            steps += finish(owner, digests, keep=declared.get(owner, 0))
        else:
            steps += finish(owner, digests, keep=None)
    return tuple(steps)
