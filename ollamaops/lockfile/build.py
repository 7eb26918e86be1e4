"""What belongs into the lock file, and what it means for a plan: which names a manifest pulls, which of them a lock
fixes, and which digests a locked model may have.

A server before 0.19 shows another digest for the same content, so one entry of a lock stands for several tags
digests. All of them follow from the entry alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.errors import Problem
from ollamaops.lockfile.lock import Lock
from ollamaops.manifest.graph import base_is_insecure, source_of, with_needs
from ollamaops.manifest.types import Manifest, ModelSpec, Pull, Update
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.registry.documents import FetchedManifest

Cause = Literal["unreached", "refused", "gone", "tampered"]
NO_MODEL_HINT = "check the name: it may be a container image or another artifact"
FOLLOWS_LOCK: frozenset[Update] = frozenset(
    {"locked", "missing"}
)  # latest follows its tag, never is never pulled


class Unanswered(Struct, frozen=True, kw_only=True):
    """Why it is not known what a registry has. `gone`: it says that there is no such model; `tampered`: what it
    sent does not match its digest; `unreached`: there was no answer; `refused`: anything else."""

    error: str
    hint: str | None = None
    cause: Cause = "unreached"


Answer: TypeAlias = FetchedManifest | Unanswered


class Reference(Struct, frozen=True, kw_only=True):
    """A name that hosts pull. `model` is what the result is called there: the same, or the entry's own name.

    `pin` is the digest that the manifest itself declares.
    """

    ref: ModelName
    model: ModelName
    insecure: bool = False
    update: Update = "missing"
    pin: Digest | None = None


def references_on(specs: Sequence[ModelSpec], targets: Sequence[NamePattern] = ()) -> tuple[Reference, ...]:
    """Everything that a host with these entries pulls, undeclared bases included, in the order of the entries.

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
    """What is pulled for one entry; None when nothing is, or when another entry declares it."""
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


def locked_references(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Those whose content a lock fixes, each name once, sorted by name. If a name has pins, one of them is kept."""
    found: dict[ModelName, Reference] = {}
    for reference in references:
        if reference.update in FOLLOWS_LOCK:
            other = found.get(reference.ref, reference)
            found[reference.ref] = replace(
                other, insecure=other.insecure or reference.insecure, pin=other.pin or reference.pin
            )
    return tuple(found[name] for name in sorted(found))


def with_lock(manifest: Manifest, lock: Lock, *, required: bool = False) -> Manifest:
    """The manifest with what the lock says about its models: the digest they are pinned to, and those they may have.

    A digest that the manifest itself declares stays. Models that follow the lock and are not in it are taken as
    `update: missing`, with a warning; with `required` the guard refuses them instead.
    """
    declared = {spec.name for spec in manifest.models}
    warnings = (
        [] if required else [_warning(spec) for spec in manifest.models if _is_open(spec, declared, lock)]
    )
    return replace(
        manifest,
        models=tuple(_locked(spec, lock) for spec in manifest.models),
        policy=replace(manifest.policy, require_lock=required),
        warnings=(*manifest.warnings, *warnings),
    )


def _locked(spec: ModelSpec, lock: Lock) -> ModelSpec:
    """The entry with its lock's digests. `update: missing` limits what may be pulled and pins nothing."""
    name, is_pulled = _pulled_name(spec), isinstance(spec.source, Pull)
    entry = lock.entries.get(name) if name and (spec.update in FOLLOWS_LOCK or not is_pulled) else None
    if entry is None or spec.digest not in (None, entry.digest):
        return spec
    follows = is_pulled and spec.update == "locked"
    return replace(
        spec,
        accepts=tuple(sorted(entry.tags_digests)),
        templates=entry.templates if follows else (),
        digest=entry.digest if follows else spec.digest,
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
    """Whether a lock could say what a pull of this model must give, and neither a lock nor the manifest does."""
    return isinstance(spec.source, Pull) and spec.update in FOLLOWS_LOCK and not (spec.accepts or spec.digest)
