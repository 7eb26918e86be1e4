"""The rule `disk`: whether what a plan brings fits the host's disk.

The budget is `disk:` of the host or its label `disk`. Models with the same weights count once, as far as that is
known. Deletions come last, so what they free does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from ollamaops.errors import InvalidName
from ollamaops.manifest.types import Build
from ollamaops.names import ModelName
from ollamaops.plan.actions import HostPlan, Refusal
from ollamaops.plan.costs import disk_cost
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.observed import ObservedHost
from ollamaops.units import format_size


def refuse_disk(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """Nothing is brought to a host that has no room for it."""
    room, load = desired.disk_bytes, disk_cost(plan, desired, observed)
    if room is None or not load.total_bytes:
        return
    used = _used_bytes(desired, observed)
    lacking = used + load.total_bytes - room
    if lacking > 0:
        yield Refusal(
            rule="disk",
            host=plan.host,
            message=f"the models there take about {format_size(used)}, this plan brings {load}, "
            f"and the host's disk is {format_size(room)}",
            hint=f"free {format_size(lacking)} first, declare fewer models here, "
            "or use --force disk for this run",
        )


def _used_bytes(desired: DesiredHost, observed: ObservedHost) -> int:
    """What the models there take, those with the same weights once."""
    origins = {model.name: _source_of_weights(model) for model in desired.declared}
    largest: dict[str, int] = {}
    for name, model in observed.models.items():
        root = _root_of(name, origins, observed)
        weights = _known_weights(root, observed) or observed.models[root].digest
        largest[weights] = max(largest.get(weights, 0), model.size_bytes)
    return sum(largest.values())


def _source_of_weights(model: DesiredModel) -> ModelName | None:
    """The model whose weights this one is declared to have."""
    source = model.spec.source
    return None if isinstance(source, Build) and source.quantize else model.made_from


def _root_of(
    name: ModelName, origins: Mapping[ModelName, ModelName | None], observed: ObservedHost
) -> ModelName:
    """The model there that `name` has its weights from, as it is declared or as the server says; or itself."""
    seen: set[ModelName] = set()
    while name not in seen:
        seen.add(name)
        origin = origins[name] if name in origins else _parent_of(name, observed)
        if origin is not None and origin in observed.models:
            name = origin
    return name


def _known_weights(name: ModelName, observed: ObservedHost) -> str | None:
    own = observed.models[name]
    shown, memory = observed.shown.get(name), observed.memory.get(name)
    if shown is not None and shown.blobs:
        return str(shown.blobs[0])
    if memory is not None and memory.blobs and memory.digest == own.digest:
        return memory.blobs[0]
    return None


def _parent_of(name: ModelName, observed: ObservedHost) -> ModelName | None:
    """What the server says that a model was made from; up to 0.24 it says nothing."""
    with suppress(InvalidName):
        return ModelName.parse(observed.models[name].parent)
    return None
