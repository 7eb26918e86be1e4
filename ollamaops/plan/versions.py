"""The reserved names beside a model's own, and what becomes of them when a change has ended.

`…-ollamaops-next` has the next version until it is verified, `…-ollamaops-previous` the current one while something
is tried in its place, `…-ollamaops-previous-1` and up those that are kept to roll back to. apply/versions.py carries
the steps out. They can be cut off anywhere and computed anew from what is there then, because contents are told apart
by digest and a version that is in two places counts once.

No copy here ever goes over the last name of a content: servers (0.3 to 0.33) remove weights when their last name is
deleted, but leave them on the disk for ever when it is copied over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from msgspec import Struct

from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull
from ollamaops.names import NEXT, PREVIOUS, ModelName, NamePattern

MOST_KEPT = 20


def needs_verifying(spec: ModelSpec) -> bool:
    """Whether a change of the model has to be seen to work before it counts."""
    return bool(spec.expect) or (spec.staged and not _runs_elsewhere(spec))


def _runs_elsewhere(spec: ModelSpec) -> bool:
    """Whether nothing of the model is on the host, so that it cannot be loaded there."""
    match spec.source:
        case Pull(ref=name) | Copy(source=name):
            return name.source_suffix == "cloud"
        case Build(base=base):
            return base is not None and base.source_suffix == "cloud"
        case _:
            assert_never(spec.source)


def versions_to_keep(spec: ModelSpec) -> int:
    """How many previous versions of the model stay on the host."""
    return spec.keep_previous


def is_staged(spec: ModelSpec) -> bool:
    """Whether a new version is made aside and then switched to: it has to be verified, or the old one kept."""
    return needs_verifying(spec) or spec.staged or versions_to_keep(spec) > 0


def next_of(name: ModelName) -> ModelName:
    """Where the next version of `name` waits until it is verified."""
    return name.aside(NEXT)


def previous_of(name: ModelName) -> ModelName:
    """Where the content of `name` waits while something new is tried in its place."""
    return name.aside(PREVIOUS)


def discarded_of(name: ModelName) -> ModelName:
    """Where unwanted content of `name` gets a name, so that it can be deleted."""
    return name.aside(f"{PREVIOUS}-0")


def kept_of(name: ModelName, number: int) -> ModelName:
    """Where the version before the current one is kept (1), and those before that (2, 3 …)."""
    return name.aside(f"{PREVIOUS}-{number}")


def owners_of(names: Iterable[ModelName]) -> Mapping[ModelName, ModelName]:
    """Every reserved name of these models → the model."""
    return {
        aside: name
        for name in names
        if not name.is_aside
        for aside in (*_waiting_of(name), *(kept_of(name, i + 1) for i in range(MOST_KEPT)))
    }


def _waiting_of(name: ModelName) -> tuple[ModelName, ...]:
    """The names in use while `name` changes, and only then."""
    return next_of(name), previous_of(name), discarded_of(name)


def names_of(models: Iterable[ModelSpec]) -> frozenset[ModelName]:
    """The names under which these models come to be on a host: a pull lands under its own reference."""
    return frozenset(model.source.ref if isinstance(model.source, Pull) else model.name for model in models)


class Step(Struct, frozen=True):
    """Copy `source` to `target`, or delete `source` when there is no target."""

    source: ModelName
    target: ModelName | None = None


def set_aside(
    owner: ModelName, digests: Mapping[ModelName, str], *, former: ModelName | None = None
) -> tuple[Step, ...]:
    """What has to be done before a copy goes over `owner`: its content gets a reserved name until commit or revert.

    What waits there already is older, and was good; then what is there now is dropped. A model that is still called
    `former` alone gives what it has there.
    """
    waits = digests.get(previous_of(owner))
    place = former if former and owner not in digests else owner
    if place not in digests or digests[place] == waits:
        return ()
    if not waits:
        return (Step(_spelt(place, digests), previous_of(owner)),)
    return _drop(owner, digests) if place == owner else ()


def _drop(owner: ModelName, digests: Mapping[ModelName, str]) -> tuple[Step, ...]:
    """Give the content of `owner` the name of what is dropped; what has that name goes first."""
    aside = _spelt(discarded_of(owner), digests)
    if digests.get(aside) == digests[owner]:
        return ()
    in_the_way = [Step(aside)] if aside in digests else []
    return (*in_the_way, Step(_spelt(owner, digests), aside))


def _spelt(name: ModelName, digests: Mapping[ModelName, str]) -> ModelName:
    """The name as the host spells it, if it is there."""
    same = [one for one in digests if one == name] if name in digests else []
    return name if any(one.full == name.full for one in same) else next(iter(same), name)


def commit(
    owner: ModelName, digests: Mapping[ModelName, str], *, keep: int | None, now: str | None = None
) -> tuple[Step, ...]:
    """What is left to do when the content of `owner` counts: `keep` previous versions stay, newest first.

    `digests` are those of all names on the host, as it spells them; `now` is the owner's, if that is not there to
    be read. `keep` None leaves the kept versions alone.
    """
    spelt = {name: name for name in digests}
    waiting = [spelt[name] for name in _waiting_of(owner) if name in spelt]
    if keep is None:
        return tuple(map(Step, waiting))
    slots = [previous_of(owner), *(kept_of(owner, i + 1) for i in range(MOST_KEPT))]
    before = [(i, digests[name]) for i, name in enumerate(slots) if name in digests]
    current = digests.get(owner, now)
    first = {digest: i for i, digest in reversed(before)}
    wanted = [digest for digest in dict.fromkeys(digest for _, digest in before) if digest != current][:keep]
    moves = [(first[digest], i) for i, digest in enumerate(wanted, 1) if first[digest] != i]
    unwanted = [spelt[slots[i]] for i, digest in before if digest not in wanted]
    surplus = [spelt[slots[i]] for i, _ in before if i > len(wanted)]
    return (
        *map(Step, unwanted),
        *(Step(spelt[slots[i]], spelt.get(slots[to], slots[to])) for i, to in _in_safe_order(moves)),
        *(Step(name) for name in (*surplus, *waiting) if name not in unwanted),
    )


def _in_safe_order(moves: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """No move overwrites what a later one needs: those to a deeper slot from the deepest on, then the others."""
    yield from reversed([move for move in moves if move[0] < move[1]])
    yield from (move for move in moves if move[0] > move[1])


def revert(owner: ModelName, digests: Mapping[ModelName, str]) -> tuple[Step, ...]:
    """What is left to do when the content of `owner` does not count: what waits aside comes back."""
    aside = previous_of(owner)
    steps: list[Step] = []
    if aside in digests and digests[aside] != digests.get(owner):
        steps += _drop(owner, digests) if owner in digests else ()
        steps.append(Step(_spelt(aside, digests), _spelt(owner, digests)))
    there = {**digests, **{step.target: "" for step in steps if step.target}}
    return (*steps, *(Step(_spelt(name, there)) for name in _waiting_of(owner) if name in there))


def sweep(
    digests: Mapping[ModelName, str],
    models: Sequence[ModelSpec],
    *,
    stands: Collection[ModelName],
    ours: Iterable[ModelName],
    ignored: Sequence[NamePattern] = (),
) -> tuple[Step, ...]:
    """What is left to do on a host, whatever a run that was stopped has left behind.

    `models` are those declared, `stands` the names of those that are as declared or rolled back; `ours` what we
    remember to have made. The kept versions of a model that is on the host and neither declared nor ours are not
    ours either. What stands beside an `ignored` model is not touched, even when that has gone. A renamed model has
    the versions that were kept under its former name.
    """
    declared = dict.fromkeys(names_of(models), 0) | {model.name: versions_to_keep(model) for model in models}
    verified = names_of(model for model in models if model.name in stands) | set(stands)
    owners = owners_of((*digests, *declared))  # the declared spelling wins where it matters
    reserved = [name for name in digests if name.is_aside]
    orphans = (name for name in reserved if name not in owners)
    steps = [
        step for model in models if model.name in verified for step in _inherit(model, digests, declared)
    ]
    steps += [Step(name) for name in orphans if not _is_ignored(_presumed_owner(name), ignored)]
    is_ours = set(ours)
    for owner in dict.fromkeys(owners[name] for name in reserved if name in owners):
        if _is_ignored(owner, ignored):
            continue
        if owner in declared and owner not in verified:
            steps += revert(owner, digests)
        elif owner in declared or owner not in digests or owner in is_ours:
            steps += commit(owner, digests, keep=declared.get(owner, 0))
        else:
            steps += commit(owner, digests, keep=None)
    return tuple(steps)


def _inherit(
    model: ModelSpec, digests: Mapping[ModelName, str], declared: Collection[ModelName]
) -> Iterator[Step]:
    """Copies of the versions that are still kept under the name that the model had, after those under its new one;
    they go there afterwards."""
    former = model.moved_from
    if former is None or former in digests or former in declared:
        return
    slots = [kept_of(model.name, number) for number in range(1, versions_to_keep(model) + 1)]
    there = {digests[slot] for slot in slots if slot in digests}
    free = [slot for slot in slots if slot not in digests]
    older = (kept_of(former, number) for number in range(1, MOST_KEPT + 1))
    wanted = (name for name in older if name in digests and digests[name] not in there)
    yield from (Step(_spelt(name, digests), slot) for name, slot in zip(wanted, free, strict=False))


def _is_ignored(owner: ModelName, ignored: Iterable[NamePattern]) -> bool:
    return any(pattern.matches(owner) for pattern in ignored)


def _presumed_owner(aside: ModelName) -> ModelName:
    """The owner of an orphaned reserved name, read from its tag (long tags are truncated)."""
    tag = aside.tag.lower()
    return replace(aside, tag=tag.rpartition(PREVIOUS if PREVIOUS in tag else NEXT)[0])


def left_behind(steps: Iterable[Step]) -> tuple[ModelName, ...]:
    """The names that were there and are gone when these steps have been done, each once."""
    gone: dict[ModelName, None] = {}
    made: set[ModelName] = set()
    for step in steps:
        if step.target is not None and step.target in gone:
            del gone[step.target]
        elif step.target is not None:
            made.add(step.target)
        elif step.source not in made:
            gone[step.source] = None
    return tuple(gone)
