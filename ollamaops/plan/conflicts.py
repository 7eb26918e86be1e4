"""Entries that cannot both hold, found by the names they write on a host besides their own.

manifest/check.py refuses two entries of one name; here are those that would undo each other's work in every run,
because one pulls or pushes under a name that means something else to another. Nothing is planned for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.plan.desired import DesiredModel


def find_conflicts(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Models for which nothing can be planned, each with what is wrong."""
    declared = {model.name: model for model in models}
    found = _pinned_twice(declared.values()) | _pushed_twice(declared.values())
    for model in declared.values():
        spec = model.spec
        if isinstance(spec.source, Pull) and _is_made_otherwise(spec.source.ref, declared):
            found[spec.name] = f"pulled as '{spec.source.ref}', which another entry makes on the host"
        elif spec.push and spec.push != spec.name and spec.push in declared:
            found[spec.name] = f"pushed as '{spec.push}', which another entry declares or is made from"
    return found


def _is_made_otherwise(ref: ModelName, declared: Mapping[ModelName, DesiredModel]) -> bool:
    source = declared[ref].spec.source if ref in declared else None
    return source is not None and not (isinstance(source, Pull) and source.ref == ref)


def _pinned_twice(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Entries that pull one reference with different pins."""
    pinned: dict[ModelName, list[DesiredModel]] = {}
    for model in models:
        if isinstance(model.spec.source, Pull) and model.spec.digest:
            pinned.setdefault(model.spec.source.ref, []).append(model)
    return {
        model.name: f"'{ref}' is pinned to {len({other.spec.digest for other in group})} different digests"
        for ref, group in pinned.items()
        for model in group
        if len({other.spec.digest for other in group}) > 1
    }


def _pushed_twice(models: Iterable[DesiredModel]) -> dict[ModelName, str]:
    """Entries that push to one name: whoever is last wins, in every run."""
    pushing: dict[ModelName, list[DesiredModel]] = {}
    for model in models:
        if model.spec.push:
            pushing.setdefault(model.spec.push, []).append(model)
    return {
        model.name: f"'{ref}' is where {len(group)} entries push to"
        for ref, group in pushing.items()
        for model in group
        if len(group) > 1
    }
