"""What the actions of a plan cost: bytes to download and to upload, and what they leave on the host's disk.

Of an import only what is certain counts, for weights of 16 bits. Until its next start a server keeps what it was sent
and what it made of that on the way, beside the result.

| import          | what it takes beside the upload                                                         |
|-----------------|-----------------------------------------------------------------------------------------|
| GGUF            | nothing; from 0.30.0 on the result, and for a while the copy that it is written from     |
| safetensors     | the GGUF that is made of them; from 0.30.0 on the result, which is written from that     |
| GGUF in shards  | the same                                                                                |
| with `quantize` | the GGUF that is made of it, if one is, and the result, by the bits of its smallest type |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from ollamaops.files.gguf_types import TENSOR_TYPES
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import Action, Cost, CreateModel, HostPlan, PullModel, Recipe, UploadBlob
from ollamaops.plan.desired import DesiredHost, LocalBlob
from ollamaops.plan.observed import ObservedHost
from ollamaops.units import format_size

# what a server makes one GGUF of, before anything else
_MADE_INTO_ONE = re.compile(
    r"\.(safetensors|pth|zip)$|pytorch_model.*\.bin$|-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE
)
_NO_WEIGHTS = (".json", ".model", ".jinja")
# Bits of the weights that servers quantize. Safetensors are not looked into and may have 32.
_SOURCE_BITS = 16
_AS_LARGE = (None, "F16", "BF16")  # a source that is of this type already is left as it is
_TYPE_BITS = {name: 8 * size_bytes / count for name, count, size_bytes in TENSOR_TYPES.values() if size_bytes}


def pull_cost(ref: ModelName, observed: ObservedHost, planned: Iterable[Action]) -> Cost:
    """What the pull moves; layers that another planned pull brings are moved once."""
    answer = observed.upstream.get(ref)
    if answer is None or answer.error or not answer.has_sizes:
        return Cost(download_bytes=None)
    others = [pull.model for pull in planned if isinstance(pull, PullModel) and pull.model != ref]
    known = [observed.upstream[name] for name in others if name in observed.upstream]
    coming = {digest for other in known for digest, _ in other.layers} - observed.present_blobs
    present = sum(size for digest, size in answer.layers if digest in observed.present_blobs)
    shared = sum(size for digest, size in answer.layers if digest in coming)
    return Cost(download_bytes=answer.total_bytes - present - shared, present_bytes=present)


def upload_cost(blob: LocalBlob, observed: ObservedHost) -> Cost:
    """What sending the file moves: nothing if the host has it. A size of 0 is one that is not known."""
    if blob.digest in observed.present_blobs:
        return Cost(present_bytes=blob.size_bytes)
    return Cost(upload_bytes=blob.size_bytes or None)


class DiskCost(Struct, frozen=True, kw_only=True):
    """What a plan brings to the disk. `unknown` counts pulls of unknown size; `is_least` says that it will
    be more."""

    pulled_bytes: int
    unknown: int
    uploaded_bytes: int
    imported_bytes: int
    is_least: bool

    @property
    def total_bytes(self) -> int:
        return self.pulled_bytes + self.uploaded_bytes + self.imported_bytes

    def __str__(self) -> str:
        """`12.0 GB (8.0 GB pulled, 4.0 GB uploaded)`"""
        parts = {
            "pulled": self.pulled_bytes,
            "uploaded": self.uploaded_bytes,
            "to import": self.imported_bytes,
        }
        told = [f"{format_size(size)} {how}" for how, size in parts.items() if size]
        unknown = [f"{self.unknown} pulled of unknown size"] if self.unknown else []
        total = f"{'at least ' if self.is_least else ''}{format_size(self.total_bytes)}"
        return f"{total} ({', '.join([*told, *unknown])})"


def disk_cost(plan: HostPlan, desired: DesiredHost, observed: ObservedHost) -> DiskCost:
    uploads = [action for action in plan.actions if isinstance(action, UploadBlob)]
    recipes = [action.recipe for action in plan.actions if isinstance(action, CreateModel)]
    layers, unknown = _layers_to_pull(plan, observed)
    is_untold = unknown > 0 or not all(action.size_bytes for action in uploads)
    return DiskCost(
        pulled_bytes=sum(layers.values()),
        unknown=unknown,
        uploaded_bytes=sum(action.cost.upload_bytes or 0 for action in uploads),
        imported_bytes=_import_bytes(plan, recipes, desired, observed),
        is_least=is_untold or any(recipe.quantize for recipe in recipes),
    )


def _layers_to_pull(plan: HostPlan, observed: ObservedHost) -> tuple[dict[Digest, int], int]:
    """Layers that are not there, each once, and how many pulls have unknown layers."""
    layers: dict[Digest, int] = {}
    unknown = 0
    for action in plan.actions:
        if isinstance(action, PullModel):
            upstream = observed.upstream.get(action.model)
            if upstream is None or upstream.error or not upstream.has_sizes:
                unknown += 1
            else:
                layers.update(upstream.layers)
    return {digest: size for digest, size in layers.items() if digest not in observed.present_blobs}, unknown


def _import_bytes(
    plan: HostPlan, recipes: Iterable[Recipe], desired: DesiredHost, observed: ObservedHost
) -> int:
    """What all imports leave beside the uploads, the same one once, and the largest of the copies that go again."""
    sizes = {action.digest: action.size_bytes for action in plan.actions if isinstance(action, UploadBlob)}
    kept = {info.digest for model in desired.models for info in model.weights if info.is_projector}
    made: dict[object, tuple[int, int]] = {}
    for recipe in recipes:
        source = [blob for blob in recipe.files if blob.digest not in kept and _holds_weights(blob.name)]
        source_bytes = sum(sizes.get(blob.digest, 0) for blob in source)
        if recipe.base is not None:
            source_bytes = _base_bytes(recipe.base, observed) if recipe.quantize else 0
        rewritten = observed.features.gguf_rewritten and recipe.base is None
        made[recipe.base, recipe.files, recipe.quantize] = _room_for(
            recipe, source_bytes, rewritten=rewritten
        )
    return sum(stays for stays, _ in made.values()) + max(
        (passing for _, passing in made.values()), default=0
    )


def _holds_weights(name: str) -> bool:
    return not name.lower().endswith(_NO_WEIGHTS)


def _room_for(recipe: Recipe, source_bytes: int, *, rewritten: bool) -> tuple[int, int]:
    """How many bytes an import takes beside its source, and how many more as long as it lasts."""
    is_made_into_one = any(_MADE_INTO_ONE.search(blob.name) for blob in recipe.files)
    made_bytes = source_bytes if is_made_into_one else 0
    if recipe.quantize not in _AS_LARGE:
        return made_bytes + int(source_bytes * _bits_per_weight(recipe.quantize) / _SOURCE_BITS), 0
    if not rewritten:
        return made_bytes, 0
    return made_bytes + source_bytes, source_bytes - made_bytes


def _bits_per_weight(quantize: str) -> float:
    """The least that a weight can take: 8.5 as Q8_0; 4.5 as Q4_K_M, which mixes larger types in (about 4.85)."""
    wanted = quantize.upper()
    family = wanted.partition("_")[0]
    kinds = [kind for kind in _TYPE_BITS if wanted.startswith(kind)]
    kinds = kinds or [
        kind for kind in _TYPE_BITS if kind.startswith(family)
    ]  # IQ3_M is a mixture of IQ3 types
    return min((_TYPE_BITS[kind] for kind in kinds), default=0.0)


def _base_bytes(base: ModelName, observed: ObservedHost) -> int:
    """What is known of the size of a base that is there, or that the plan pulls."""
    there, upstream = observed.models.get(base), observed.upstream.get(base)
    if there is not None:
        return there.size_bytes
    return upstream.total_bytes if upstream is not None else 0
