"""The rule `vram`: whether everything that is declared resident fits together in the host's memory.

The budget is the host's label `vram`. A loaded model counts with what it takes, others with the size of their layers,
which is a little less. Models with the same weights count once, because servers keep one runner for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from ollamaops.manifest.types import Build, Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import HostPlan, LoadModel, Refusal
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.residency import wants_loaded
from ollamaops.units import format_size


class _Need(Struct, frozen=True, kw_only=True):
    """What one resident takes. None: not known from here."""

    name: ModelName
    size_bytes: int | None
    is_estimate: bool

    def __str__(self) -> str:
        if self.size_bytes is None:
            return f"{self.name} ?"
        return f"{self.name} {'about ' if self.is_estimate else ''}{format_size(self.size_bytes)}"


def refuse_vram(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """Nothing may be loaded on a host whose residents do not fit together."""
    room = desired.vram_bytes
    if room is None or not any(isinstance(action, LoadModel) for action in plan.actions):
        return
    needs = _needs(desired, observed)
    total = sum(need.size_bytes or 0 for need in needs)
    if total > room:
        yield Refusal(
            rule="vram",
            host=plan.host,
            message=f"what is declared resident takes {format_size(total)}, and the host's label vram is "
            f"{format_size(room)}: {', '.join(map(str, needs))}",
            hint="declare fewer models resident here, or use --force vram for this run",
        )


def _needs(desired: DesiredHost, observed: ObservedHost) -> list[_Need]:
    """What each resident takes, those that share weights once, largest first."""
    models = {model.name: model for model in desired.declared}
    found: dict[ModelName, _Need] = {}
    for model in desired.declared:
        if wants_loaded(model.spec):
            origins = list(_origins(model, models))
            need = _need_of(model.name, origins, observed)
            before = found.setdefault(_name_of_weights(origins[-1]), need)
            if (need.size_bytes or 0) > (before.size_bytes or 0):
                found[_name_of_weights(origins[-1])] = need
    return sorted(found.values(), key=lambda need: -(need.size_bytes or 0))


def _origins(model: DesiredModel, models: Mapping[ModelName, DesiredModel]) -> Iterator[DesiredModel]:
    """The model, then everything that it has its weights from, down to where they come from."""
    seen: set[ModelName] = set()
    while model.name not in seen:
        yield model
        seen.add(model.name)
        source = _source_of_weights(model)
        model = models.get(source, model) if source else model


def _source_of_weights(model: DesiredModel) -> ModelName | None:
    """The model on the host whose very weights this one has."""
    source = model.spec.source
    is_changed = isinstance(source, Build) and (source.adapters or source.quantize)
    return None if is_changed else model.made_from


def _name_of_weights(last: DesiredModel) -> ModelName:
    source = last.spec.source
    return source.ref if isinstance(source, Pull) else last.name


def _need_of(name: ModelName, origins: Sequence[DesiredModel], observed: ObservedHost) -> _Need:
    own = observed.models.get(name)
    running = [one for one in observed.loaded or () if own and one.serves(name, own.digest)]
    if running:
        return _Need(name=name, size_bytes=max(one.size_bytes for one in running), is_estimate=False)
    sizes = [_stored_size(model, observed) for model in origins]
    return _Need(name=name, size_bytes=next((size for size in sizes if size), None), is_estimate=True)


def _stored_size(model: DesiredModel, observed: ObservedHost) -> int | None:
    """The size of the model's layers, as the host has them or will have them; None if that is not known."""
    own, source = observed.models.get(model.name), model.spec.source
    if own is not None:
        return own.size_bytes
    if isinstance(source, Pull):
        upstream = observed.upstream.get(source.ref)
        return upstream.total_bytes if upstream and upstream.has_sizes else None
    if isinstance(source, Build) and source.quantize:
        return None
    return sum(blob.size_bytes for blob in model.blobs)
