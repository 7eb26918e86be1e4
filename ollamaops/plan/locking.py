"""What the lock file should hold, what it holds, and what that means for a plan.

Decides which names a declaration pulls, which of them a lock fixes, what an update or a check of the lock finds, and
which digests a locked model may have; leaves asking registries and reading files to apply/ and cli/. The fact a
reader would miss: a host whose server is older than 0.19 shows another digest for the same content, so a lock's
entry stands for several tags digests, all of which can be told without asking anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from ollamaops.errors import Problem
from ollamaops.manifest.types import Manifest, ModelSpec, Pull, Update
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.plan.desired import base_is_insecure, source_of
from ollamaops.plan.graph import with_needs

if TYPE_CHECKING:
    from ollamaops.registry.documents import FetchedManifest, Layer, LayerChange
    from ollamaops.registry.lock import Lock, LockEntry

Cause = Literal["unreached", "refused", "gone", "tampered"]
HELD: frozenset[Update] = frozenset({"locked", "missing"})  # latest follows its tag, never is never pulled


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Why it is not known what a registry has. `gone`: it says that there is no such model; `tampered`: what it
    sent is not what its digest says; `unreached`: nobody answered; `refused`: anything else."""

    error: str
    hint: str | None = None
    cause: Cause = "unreached"


Answer: TypeAlias = "FetchedManifest | Unanswered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A name that hosts pull. `model` is what the result is called there: the same, or the entry's own name.

    `pin` is the digest that the manifest itself declares.
    """

    ref: ModelName
    model: ModelName
    insecure: bool = False
    update: Update = "missing"
    pin: Digest | None = None


def references_on(specs: Sequence[ModelSpec], targets: Sequence[NamePattern] = ()) -> tuple[Reference, ...]:
    """Everything that a host with these entries pulls, undeclared bases among it, in the order of the entries.

    With `targets` only what the matching entries need.
    """
    declared = {spec.name: spec for spec in specs}
    chosen = [name for name in declared if not targets or any(target.matches(name) for target in targets)]

    def needs(name: ModelName) -> Iterable[ModelName]:
        source = source_of(declared[name])
        return (source,) if source in declared else ()

    kept = with_needs(chosen, needs)
    found: dict[tuple[ModelName, ModelName], Reference] = {}
    for spec in specs:
        new = _reference(spec, declared) if spec.name in kept else None
        if new is not None:
            old = found.setdefault((new.ref, new.model), new)
            found[new.ref, new.model] = replace(old, insecure=old.insecure or new.insecure)
    return tuple(found.values())


def _reference(spec: ModelSpec, declared: Mapping[ModelName, ModelSpec]) -> Reference | None:
    """What is pulled for one entry; None when nothing is, or when another entry speaks for it."""
    if isinstance(spec.source, Pull):
        return Reference(
            ref=spec.source.ref,
            model=spec.name,
            insecure=spec.source.insecure,
            update=spec.update,
            pin=spec.digest,
        )
    base = source_of(spec)
    if base is None or base in declared:
        return None
    return Reference(ref=base, model=base, insecure=base_is_insecure(spec, base))


def held_by_lock(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Those whose content a lock fixes, each name once, sorted by name. One of a name's pins stays, if it has any."""
    held: dict[ModelName, Reference] = {}
    for reference in references:
        if reference.update in HELD:
            other = held.get(reference.ref, reference)
            held[reference.ref] = replace(
                other, insecure=other.insecure or reference.insecure, pin=other.pin or reference.pin
            )
    return tuple(held[name] for name in sorted(held))


# a declaration held to a lock


def with_lock(manifest: Manifest, lock: Lock, *, required: bool = False) -> Manifest:
    """The manifest with what the lock says of its models: which digest they are pinned to, which ones they may have.

    A digest that the manifest itself declares stays. Models that follow the lock and are not in it are taken as
    `update: missing`, with a warning; with `required` the guard refuses them instead.
    """
    declared = {spec.name for spec in manifest.models}
    warnings = (
        [] if required else [_warning(spec) for spec in manifest.models if _is_open(spec, declared, lock)]
    )
    return replace(
        manifest,
        models=tuple(_held(spec, lock) for spec in manifest.models),
        policy=replace(manifest.policy, require_lock=required),
        warnings=(*manifest.warnings, *warnings),
    )


def _held(spec: ModelSpec, lock: Lock) -> ModelSpec:
    """The entry with its lock's digests. `update: missing` pins nothing that is there, only what may be pulled."""
    name, is_pulled = _pulled_name(spec), isinstance(spec.source, Pull)
    entry = lock.entries.get(name) if name and (spec.update in HELD or not is_pulled) else None
    if entry is None or spec.digest not in (None, entry.digest):
        return spec
    follows = is_pulled and spec.update == "locked"
    return replace(
        spec, accepts=tuple(sorted(entry.tags_digests)), digest=entry.digest if follows else spec.digest
    )


def _is_open(spec: ModelSpec, declared: set[ModelName], lock: Lock) -> bool:
    """Whether the entry follows the lock, and the lock does not say what it pulls."""
    name = _pulled_name(spec)
    if name is None or spec.update != "locked" or spec.digest:
        return False
    return name not in lock.entries and (isinstance(spec.source, Pull) or name not in declared)


def _pulled_name(spec: ModelSpec) -> ModelName | None:
    """What is pulled for an entry: its own reference, or what it is made from."""
    return spec.source.ref if isinstance(spec.source, Pull) else source_of(spec)


def _warning(spec: ModelSpec) -> Problem:
    message = f"'{_pulled_name(spec)}' is not in the lock file: taken as update: missing"
    return Problem(
        spec.place.path, spec.place.line, spec.place.column, message, "write its entry with: ollamaops lock"
    )


def needs_lock(spec: ModelSpec) -> bool:
    """Whether nothing says what pulling this model has to give, although a lock could."""
    return isinstance(spec.source, Pull) and spec.update in HELD and not (spec.accepts or spec.digest)


# bringing a lock up to date

StepState = Literal["kept", "added", "updated", "removed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStep:
    """What became of one entry of the lock. `failed` keeps the old entry, if there was one, and says why in `error`.

    `changes` is what an update changed, kind by kind; empty when only the registry manifest's own bytes did.
    """

    ref: ModelName
    state: StepState
    before: LockEntry | None = None
    after: LockEntry | None = None
    changes: tuple[LayerChange, ...] = ()
    error: str = ""
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockUpdate:
    """The new lock, and how it came about, entry by entry in the order of names."""

    lock: Lock
    steps: tuple[LockStep, ...]


def to_ask(
    lock: Lock, references: Iterable[Reference], renew: Callable[[Reference], bool]
) -> tuple[Reference, ...]:
    """Those that a registry has to be asked for: not locked yet, to be renewed, or locked against the manifest."""
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
    from ollamaops.registry.lock import Lock

    steps = [_step(reference, lock.entries.get(reference.ref), answers) for reference in references]
    entries = {step.ref: step.after for step in steps if step.after}
    named = {step.ref for step in steps}
    others = {name: entry for name, entry in lock.entries.items() if name not in named}
    if complete:
        steps += [LockStep(ref=name, state="removed", before=entry) for name, entry in others.items()]
        others = {}
    return LockUpdate(lock=Lock({**others, **entries}), steps=tuple(sorted(steps, key=lambda step: step.ref)))


def _step(reference: Reference, entry: LockEntry | None, answers: Mapping[ModelName, Answer]) -> LockStep:
    from ollamaops.registry.documents import compare
    from ollamaops.registry.lock import LockEntry

    ref, answer = reference.ref, answers.get(reference.ref)
    if answer is None:
        return LockStep(ref=ref, state="kept", before=entry, after=entry)
    if isinstance(answer, Unanswered):
        return LockStep(
            ref=ref, state="failed", before=entry, after=entry, error=answer.error, hint=answer.hint
        )
    if reference.pin not in (None, answer.digest):
        return LockStep(
            ref=ref,
            state="failed",
            before=entry,
            after=entry,
            error=f"the manifest pins {reference.pin.short}, the registry has {answer.digest.short}",
            hint="change digest: in the manifest, or take it out and leave it to the lock",
        )
    found = LockEntry(answer.digest, answer.document)
    if entry is None:
        return LockStep(ref=ref, state="added", after=found)
    if entry == found:
        return LockStep(ref=ref, state="kept", before=entry, after=found)
    changes = compare(entry.document, found.document)
    return LockStep(ref=ref, state="updated", before=entry, after=found, changes=changes)


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


@dataclass(frozen=True, slots=True)
class LayerFlaw:
    """A layer that the registry does not have, or has with other bytes."""

    layer: Layer
    error: str


Inspection = tuple[LayerFlaw, ...] | Unanswered


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found out about one entry. `found` is the digest that the registry has, if it said.

    `forged` are pairs of layers that ought to be equal: in the lock, in the registry (None: not there).
    """

    ref: ModelName
    state: FindingState
    entry: LockEntry | None = None
    found: Digest | None = None
    changes: tuple[LayerChange, ...] = ()
    forged: tuple[tuple[Layer | None, Layer | None], ...] = ()
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
    """What is to say of each entry, in the order of names. Nothing is asked for what is not in the lock.

    `layers` holds what looking at the layers themselves gave, for entries that the registry confirms.
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
    from ollamaops.registry.lock import compare_entry

    base = Finding(ref=reference.ref, state="same", entry=entry, pin=reference.pin)
    if reference.pin not in (None, entry.digest):
        return replace(base, state="contradicted")
    if isinstance(answer, Unanswered):
        return _unanswered(base, answer)
    comparison = compare_entry(entry, answer)
    base = replace(base, found=answer.digest, changes=comparison.changes)
    if comparison.state == "moved":
        return replace(base, state="moved")
    if comparison.state == "damaged":
        return replace(base, state="damaged", forged=_forged(entry.document.parts, answer.document.parts))
    if isinstance(layers, Unanswered):
        return _unanswered(base, layers)
    return replace(base, state="damaged", flaws=layers) if layers else base


def _unanswered(finding: Finding, answer: Unanswered) -> Finding:
    states: Mapping[Cause, FindingState] = {"gone": "gone", "tampered": "damaged"}
    return replace(finding, state=states.get(answer.cause, "unknown"), error=answer.error, hint=answer.hint)


def _forged(locked: Sequence[Layer], found: Sequence[Layer]) -> tuple[tuple[Layer | None, Layer | None], ...]:
    """Layers that differ, each beside its like: of the same digest, else of the same kind, else alone."""
    ours = [layer for layer in locked if layer not in found]
    theirs = [layer for layer in found if layer not in locked]
    pairs: list[tuple[Layer | None, Layer | None]] = []
    for layer in ours:
        like = next((other for other in theirs if other.digest == layer.digest), None)
        like = like or next((other for other in theirs if other.kind == layer.kind), None)
        if like:
            theirs.remove(like)
        pairs.append((layer, like))
    return (*pairs, *((None, layer) for layer in theirs))
