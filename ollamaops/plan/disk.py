"""Whether what a plan brings fits a host's disk: the rule `disk`.

Decides by the budget of the host (`disk`, or its label `disk`), what its models take and what the plan brings. Models
with the same weights count once, as far as that is known. The fact a reader would miss: deletions come last, so what
they free does not count, and a server that rewrites what it imports (0.30.0 on) needs the room of a GGUF three times:
for the upload, for the copy that it works on, and for the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ollamaops.errors import InvalidName
from ollamaops.manifest.types import Build
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import CreateModel, HostPlan, PullModel, Refusal, UploadBlob
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.observed import ObservedHost
from ollamaops.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """What a plan brings to the disk. `unknown` counts pulls whose size nobody told."""

    pulled_bytes: int
    unknown: int
    uploaded_bytes: int
    imported_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.pulled_bytes + self.uploaded_bytes + self.imported_bytes

    def __str__(self) -> str:
        parts = {
            "pulled": self.pulled_bytes,
            "uploaded": self.uploaded_bytes,
            "to import": self.imported_bytes,
        }
        told = [f"{format_size(size)} {how}" for how, size in parts.items() if size]
        return ", ".join([*told, *([f"{self.unknown} pulled of unknown size"] if self.unknown else [])])


def refuse_disk(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> Iterator[Refusal]:
    """Nothing is brought to a host that has no room for it."""
    room, load = desired.disk_bytes, _load_of(plan, observed)
    if room is None or not load.total_bytes:
        return
    used = _used_bytes(desired, observed)
    lacking = used + load.total_bytes - room
    if lacking > 0:
        yield Refusal(
            rule="disk",
            host=plan.host,
            message=f"the models there take about {format_size(used)}, this plan brings "
            f"{format_size(load.total_bytes)} ({load}), and the host's disk is {format_size(room)}",
            hint=f"free {format_size(lacking)} first, declare fewer models here, "
            "or use --force disk for this run",
        )


def _load_of(plan: HostPlan, observed: ObservedHost) -> _Load:
    uploads = [action for action in plan.actions if isinstance(action, UploadBlob)]
    layers, unknown = _layers_to_pull(plan, observed)
    return _Load(
        pulled_bytes=sum(layers.values()),
        unknown=unknown,
        uploaded_bytes=sum(action.cost.upload_bytes for action in uploads),
        imported_bytes=_import_bytes(plan, {one.digest: one.size_bytes for one in uploads}, observed),
    )


def _layers_to_pull(plan: HostPlan, observed: ObservedHost) -> tuple[dict[Digest, int], int]:
    """Layers that are not there, each once, and how many pulls have layers that nobody told."""
    layers: dict[Digest, int] = {}
    unknown = 0
    for action in plan.actions:
        if isinstance(action, PullModel):
            upstream = observed.upstream.get(action.model)
            if upstream is None or upstream.error:
                unknown += 1
            else:
                layers.update(upstream.layers)
    return {digest: size for digest, size in layers.items() if digest not in observed.present_blobs}, unknown


def _import_bytes(plan: HostPlan, sizes: Mapping[Digest, int], observed: ObservedHost) -> int:
    """What the results of all imports take, and the largest of the copies that a server works on.

    What quantizing leaves is not known beforehand and counts as nothing.
    """
    if not observed.features.gguf_rewritten:
        return 0
    recipes = [action.recipe for action in plan.actions if isinstance(action, CreateModel)]
    results = [
        sum(sizes.get(blob.digest, 0) for blob in recipe.files) for recipe in recipes if not recipe.quantize
    ]
    return sum(results) + max(results, default=0)


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
