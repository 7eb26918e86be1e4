"""What an update of the lock file changes, and what a check of it finds, given what registries answered.

An entry without an answer stays as it is. The same digest with other layers is damage, not an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.lockfile.build import NO_MODEL_HINT, Answer, Cause, Reference, Unanswered
from ollamaops.lockfile.lock import Lock, LockEntry, compare_entry
from ollamaops.names import Digest, ModelName
from ollamaops.registry.documents import Layer, LayerChange, compare

LayerPair: TypeAlias = tuple[Layer | None, Layer | None]
StepState = Literal["kept", "added", "updated", "removed", "failed"]


class LockStep(Struct, frozen=True, kw_only=True):
    """What happened to one entry of the lock. `failed` keeps the old entry, if any, and says why in `error`.

    `changes` is what an update changed, kind by kind; empty when only the registry manifest's own bytes did.
    `altered` are blobs that stayed but are described differently: as before, as now.
    """

    ref: ModelName
    state: StepState
    before: LockEntry | None = None
    after: LockEntry | None = None
    changes: tuple[LayerChange, ...] = ()
    altered: tuple[LayerPair, ...] = ()
    error: str = ""
    hint: str | None = None


class LockUpdate(Struct, frozen=True, kw_only=True):
    """The new lock, and how it came about, entry by entry in the order of names."""

    lock: Lock
    steps: tuple[LockStep, ...]


def to_ask(
    lock: Lock, references: Iterable[Reference], renew: Callable[[Reference], bool]
) -> tuple[Reference, ...]:
    """Those that a registry must be asked about: not locked yet, to be renewed, or in conflict with the manifest."""
    return tuple(
        reference
        for reference in references
        if (entry := lock.entries.get(reference.ref)) is None
        or renew(reference)
        or reference.pin not in (None, entry.digest)
    )


def update_lock(
    lock: Lock, references: Iterable[Reference], answers: Mapping[ModelName, Answer], *, complete: bool
) -> LockUpdate:
    """The lock for `references`, with what registries answered; entries without an answer stay as they are.

    `complete` says that `references` is all that is declared, so that every other entry goes.
    """
    steps = [_step(reference, lock.entries.get(reference.ref), answers) for reference in references]
    entries = {step.ref: step.after for step in steps if step.after}
    named = {step.ref for step in steps}
    others = {name: entry for name, entry in lock.entries.items() if name not in named}
    if complete:
        steps += [LockStep(ref=name, state="removed", before=entry) for name, entry in others.items()]
        others = {}
    return LockUpdate(lock=Lock({**others, **entries}), steps=tuple(sorted(steps, key=lambda step: step.ref)))


def lacking_templates(update: LockUpdate, asked: Iterable[Reference]) -> Lock:
    """The entries of which hosts have to show the template: those without one, and those that were `asked` about."""
    refs = {reference.ref for reference in asked}
    return Lock(
        {
            step.ref: step.after
            for step in update.steps
            if step.after and step.state != "failed" and (step.ref in refs or not step.after.templates)
        }
    )


def with_templates(update: LockUpdate, shown: Mapping[ModelName, frozenset[Digest]]) -> LockUpdate:
    """The update with the templates that hosts show."""
    steps = tuple(_with_templates(step, shown.get(step.ref, frozenset())) for step in update.steps)
    entries = {step.ref: step.after for step in steps if step.after}
    return LockUpdate(lock=Lock({**update.lock.entries, **entries}), steps=steps)


def _with_templates(step: LockStep, shown: frozenset[Digest]) -> LockStep:
    templates = tuple(sorted(shown, key=str))
    if step.after is None or not templates or templates == step.after.templates:
        return step
    state: StepState = "updated" if step.state == "kept" else step.state
    return replace(step, state=state, after=replace(step.after, templates=templates))


def _step(reference: Reference, entry: LockEntry | None, answers: Mapping[ModelName, Answer]) -> LockStep:
    ref, answer = reference.ref, answers.get(reference.ref)
    if answer is None:
        return LockStep(ref=ref, state="kept", before=entry, after=entry)
    if isinstance(answer, Unanswered):
        return LockStep(
            ref=ref, state="failed", before=entry, after=entry, error=answer.error, hint=answer.hint
        )
    if not answer.document.is_model:
        error = "what the registry has under this name is not an Ollama model"
        return LockStep(ref=ref, state="failed", before=entry, after=entry, error=error, hint=NO_MODEL_HINT)
    if reference.pin not in (None, answer.digest):
        return LockStep(
            ref=ref,
            state="failed",
            before=entry,
            after=entry,
            error=f"the manifest pins {reference.pin.short}, the registry has {answer.digest.short}",
            hint="change digest: in the manifest, or remove it and leave it to the lock",
        )
    templates = entry.templates if entry and entry.digest == answer.digest else ()
    found = LockEntry(answer.digest, answer.document, templates)
    if entry is None:
        return LockStep(ref=ref, state="added", after=found)
    if entry == found:
        return LockStep(ref=ref, state="kept", before=entry, after=found)
    changes = compare(entry.document, found.document)
    altered = _altered(entry.document.parts, found.document.parts)
    return LockStep(ref=ref, state="updated", before=entry, after=found, changes=changes, altered=altered)


# checking a lock

FindingState = Literal[
    "same",  # the registry has what the lock says
    "missing",  # declared, not in the lock
    "surplus",  # in the lock, not declared any more
    "contradicted",  # the manifest pins another digest
    "moved",  # the tag points to something else now
    "gone",  # the registry has no such model any more
    "damaged",  # the same digest, but other layers in the lock; or a layer that is not what its digest says
    "unknown",  # the registry did not say
]


class LayerFlaw(Struct, frozen=True):
    """A layer that the registry does not have, or has with other bytes."""

    layer: Layer
    error: str


Inspection = tuple[LayerFlaw, ...] | Unanswered


class Finding(Struct, frozen=True, kw_only=True):
    """The result of checking one entry. `found` is the digest that the registry has, if it answered.

    `forged` are pairs of layers that should be equal: in the lock, in the registry (None: not there). `altered` are
    blobs that the registry still has but describes differently since its tag moved, in the same order.
    """

    ref: ModelName
    state: FindingState
    entry: LockEntry | None = None
    found: Digest | None = None
    changes: tuple[LayerChange, ...] = ()
    altered: tuple[LayerPair, ...] = ()
    forged: tuple[LayerPair, ...] = ()
    flaws: tuple[LayerFlaw, ...] = ()
    pin: Digest | None = None
    error: str = ""
    hint: str | None = None


def check_lock(
    lock: Lock,
    references: Iterable[Reference],
    answers: Mapping[ModelName, Answer],
    layers: Mapping[ModelName, Inspection],
    *,
    complete: bool,
) -> tuple[Finding, ...]:
    """The finding for each entry, in the order of names. What is not in the lock needs no answer.

    `layers` says what the layers themselves are like, for entries that the registry confirms.
    """
    found = [
        _find(reference, lock.entries[reference.ref], answers[reference.ref], layers.get(reference.ref, ()))
        if reference.ref in lock.entries
        else Finding(ref=reference.ref, state="missing")
        for reference in references
    ]
    named = {finding.ref for finding in found}
    if complete:
        others = {name: entry for name, entry in lock.entries.items() if name not in named}
        found += [Finding(ref=name, state="surplus", entry=entry) for name, entry in others.items()]
    return tuple(sorted(found, key=lambda finding: finding.ref))


def _find(reference: Reference, entry: LockEntry, answer: Answer, layers: Inspection) -> Finding:
    base = Finding(ref=reference.ref, state="same", entry=entry, pin=reference.pin)
    if reference.pin not in (None, entry.digest):
        return replace(base, state="contradicted")
    if isinstance(answer, Unanswered):
        return _unanswered(base, answer)
    comparison = compare_entry(entry, answer)
    base = replace(base, found=answer.digest, changes=comparison.changes)
    if comparison.state == "moved":
        return replace(base, state="moved", altered=_altered(entry.document.parts, answer.document.parts))
    if comparison.state == "damaged":
        return replace(base, state="damaged", forged=_forged(entry.document.parts, answer.document.parts))
    if isinstance(layers, Unanswered):
        return _unanswered(base, layers)
    return replace(base, state="damaged", flaws=layers) if layers else base


def _unanswered(finding: Finding, answer: Unanswered) -> Finding:
    states: Mapping[Cause, FindingState] = {"gone": "gone", "tampered": "damaged"}
    return replace(finding, state=states.get(answer.cause, "unknown"), error=answer.error, hint=answer.hint)


def _altered(before: Sequence[Layer], now: Sequence[Layer]) -> tuple[LayerPair, ...]:
    """Blobs of both whose size, media type or name differ. If the size differs, one of the two is wrong."""
    pairs = _forged(before, now)
    return tuple((ours, theirs) for ours, theirs in pairs if ours and theirs and ours.digest == theirs.digest)


def _forged(locked: Sequence[Layer], found: Sequence[Layer]) -> tuple[LayerPair, ...]:
    """Layers that differ, in pairs: of the same digest, else of the same kind, else alone."""
    ours = [layer for layer in locked if layer not in found]
    theirs = [layer for layer in found if layer not in locked]
    pairs: list[LayerPair] = []
    for layer in ours:
        like = next((other for other in theirs if other.digest == layer.digest), None)
        like = like or next((other for other in theirs if other.kind == layer.kind), None)
        if like:
            theirs.remove(like)
        pairs.append((layer, like))
    return (*pairs, *((None, layer) for layer in theirs))
