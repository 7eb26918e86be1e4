"""Are the weights of a built model the declared ones? By digest where they are stored as they were given, by memory
where the server converts them, else by their headers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ollamaops.errors import InvalidName
from ollamaops.files.location import FileInfo
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import Features
from ollamaops.plan.actions import Blob, Difference, Recipe
from ollamaops.plan.desired import DesiredModel
from ollamaops.state.records import ModelRecord

Field = tuple[str, str, str]  # path, desired, observed
WeightsVerdict = Literal["same", "different", "unverified"]
Tensor = tuple[str, tuple[int, ...]]  # name, shape

# what converts, or may convert, on its way into a layer: everything that is not a GGUF
_CONVERTED = (".safetensors", ".json", ".bin", ".pth", ".model", ".jinja")
_SHORT_QUANTIZATIONS = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_UNKNOWN_ARCHITECTURES = ("", "unknown")  # of a file without a header, or whose header was not read
_UNKNOWN_QUANTIZATIONS = ("", "UNKNOWN")  # every server shows F32 as unknown


def weights_verdict(
    desired: DesiredModel,
    recipe: Recipe,
    own: Contents,
    base: Contents | None,
    features: Features,
    memory: ModelRecord | None,
    *,
    just_made: bool,
) -> WeightsVerdict:
    """What is stored as it was given is compared by digest; what the server converts, by memory, else by header."""
    if recipe.base is not None and base is None:
        return "same"  # not compared now: builds.py has it looked at again when the base is there
    if recipe.quantize and _other_quantization([], own, recipe.quantize):
        return (
            "different"  # even right after it was made: a server may pass over a field that it does not know
        )
    tolerated = _adapters(recipe, own, base) if "adapters" in desired.spec.ignore else frozenset()
    observed = {*own.blobs, *own.adapters} - tolerated
    if memory is not None and not (memory.is_ours or memory.fingerprint.weights):
        memory = None  # it was found, and its weights were never compared
    if memory is not None and recipe.base is None and _is_verified(memory, desired, observed):
        return "same"
    kept = _are_files_kept(desired, recipe, features)
    given = _given_digests(recipe, base, kept=kept) - tolerated
    converted = _is_converted(recipe, kept=kept)
    if not given <= observed or (given != observed and not converted):
        return "different"
    unseen = _is_unseen(base)
    if just_made or not (converted or unseen):
        return "same"
    if memory is not None and _is_outdated(memory, desired, recipe, base):
        return "different"
    if memory is not None and (memory.digest == own.digest if unseen else memory.blobs):
        remembered = {Digest.parse(blob) for blob in memory.blobs} - tolerated
        return "different" if observed != remembered else "same" if memory.weights_verified else "unverified"
    headers = _expected_headers(desired, base)
    agree = _tensors_agree(headers, own) and not _other_quantization(headers, own, recipe.quantize)
    if not agree or any(_other_counts(desired, recipe, own, base, features)):
        return "different"
    return "different" if unseen and _has_other_parent(own, recipe) else "unverified"


def _is_verified(memory: ModelRecord, desired: DesiredModel, observed: set[Digest]) -> bool:
    """Whether these layers came of the declared files. An older server does not undo what a newer one rewrote."""
    is_for_these = memory.weights_verified and memory.fingerprint.weights == desired.fingerprint.weights
    return is_for_these and observed == set(map(Digest.parse, memory.blobs))


def _is_unseen(base: Contents | None) -> bool:
    """Whether no server shows the layers that are inherited: those of MLX models (0.14 on)."""
    return base is not None and not base.blobs


def _has_other_parent(own: Contents, recipe: Recipe) -> bool:
    """Whether the host says that it is made from another model; many models say nothing, or no name."""
    try:
        return ModelName.parse(own.parent) != recipe.base
    except InvalidName:
        return False


def _adapters(recipe: Recipe, own: Contents, base: Contents | None) -> frozenset[Digest]:
    inherited = base.adapters if base else ()
    return frozenset((*own.adapters, *inherited, *(blob.digest for blob in recipe.adapters)))


def _are_files_kept(desired: DesiredModel, recipe: Recipe, features: Features) -> bool:
    """Whether the uploads in `files` are the layers that `show` prints. Of several models it prints the last only."""
    models = [info for info in desired.weights if not info.is_projector]
    return len(models) <= 1 and not (features.gguf_rewritten or recipe.quantize)


def _given_digests(recipe: Recipe, base: Contents | None, *, kept: bool) -> set[Digest]:
    """The digests of everything that is stored as it was given, so that `show` must print them."""
    uploads = (*(recipe.files if kept else ()), *recipe.adapters)
    given = {blob.digest for blob in uploads if _is_gguf(blob)}
    if base is not None:
        given |= {*base.adapters, *(() if recipe.quantize else base.blobs)}
    return given


def _is_converted(recipe: Recipe, *, kept: bool) -> bool:
    """Whether the server makes layers whose digests cannot be predicted."""
    if recipe.drafts or recipe.quantize or (recipe.files and not kept):
        return True
    return not all(_is_gguf(blob) for blob in (*recipe.files, *recipe.adapters))


def _is_gguf(blob: Blob) -> bool:
    return not blob.name.lower().endswith(_CONVERTED)


def _is_outdated(memory: ModelRecord, desired: DesiredModel, recipe: Recipe, base: Contents | None) -> bool:
    """Whether what we remember was made from other weights: other files, or a base that has changed since.

    The base's layers, where they are to be seen in the model, are compared themselves.
    """
    if memory.fingerprint.weights != desired.fingerprint.weights:
        return True
    is_hidden = recipe.quantize is not None or _is_unseen(base)
    return is_hidden and base is not None and memory.base_digest != base.digest


def _expected_headers(desired: DesiredModel, base: Contents | None) -> list[FileInfo]:
    if base is None:
        return [info for info in desired.weights if not info.is_projector]
    return [
        FileInfo(
            digest=Digest(base.digest),
            size_bytes=0,
            architecture=base.architecture,
            parameter_count=base.parameter_count,
            quantization=base.quantization,
            tensors=base.tensors,
        )
    ]


def _tensors_agree(headers: list[FileInfo], own: Contents) -> bool:
    """Whether the headers (of one model, maybe in shards) agree with what the host shows, where both say anything."""
    architectures = {info.architecture for info in headers} - {""}
    if not architectures or not own.architecture:
        return True
    if own.architecture not in architectures:
        return False
    count = sum(info.parameter_count for info in headers)
    if own.parameter_count and count and own.parameter_count != count:
        return False
    tensors = frozenset[Tensor]().union(*(_normalized(info.tensors) for info in headers))
    return not own.tensors or tensors <= _normalized(own.tensors)


def _other_quantization(
    headers: list[FileInfo], own: Contents, quantize: str | None
) -> tuple[str, str] | None:
    """(wanted, observed) when the host shows another quantization than is declared, or than the headers say."""
    said = {_quantization(info.quantization) for info in headers if info.architecture and own.architecture}
    wanted = ({_quantization(quantize)} if quantize else said) - {*_UNKNOWN_QUANTIZATIONS}
    observed = _quantization(own.quantization)
    if not wanted or observed in _UNKNOWN_QUANTIZATIONS or observed in wanted:
        return None
    return " or ".join(sorted(wanted)), observed


def _normalized(tensors: frozenset[Tensor]) -> frozenset[Tensor]:
    """Without the ones at the end of shapes: llama-quantize, which rewrites imports since 0.30, drops them."""
    return frozenset((name, _without_last_ones(shape)) for name, shape in tensors)


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = next((end for end in range(len(shape), 0, -1) if shape[end - 1] != 1), 0)
    return shape[:kept]


def _quantization(text: str) -> str:
    return _SHORT_QUANTIZATIONS.get(text.upper(), text.upper())


def _other_counts(
    desired: DesiredModel, recipe: Recipe, own: Contents, base: Contents | None, features: Features
) -> Iterator[Field]:
    """What there is more or less of than declared, beside the weights. What shows no weights is not judged."""
    counts = _counts(desired, recipe, own, base, features) if own.blobs else ()
    for path, declared, unknown, there in counts:
        if not declared <= there <= declared + unknown:
            yield path, str(declared), str(there)


def _counts(
    desired: DesiredModel, recipe: Recipe, own: Contents, base: Contents | None, features: Features
) -> Iterator[tuple[str, int, int, int]]:
    """(path, declared, how many more it may be, there). A GGUF file without a header that is known may be anything,
    and it is not known how many layers other weights become.

    Every version prints all projectors and all adapters; of drafts, which nothing here tells from adapters, the last.
    """
    unknown = [
        blob
        for blob, info in zip(recipe.files, desired.weights, strict=True)
        if info.architecture in _UNKNOWN_ARCHITECTURES and not info.is_projector
    ]
    projectors = sum(info.is_projector for info in desired.weights) + (len(base.blobs[1:]) if base else 0)
    yield "projectors", projectors, len(unknown), len(own.blobs[1:])
    if "adapters" in desired.spec.ignore:
        return
    kept = {*(base.adapters if base else ()), *(blob.digest for blob in recipe.adapters if _is_gguf(blob))}
    are_converted = not all(map(_is_gguf, recipe.adapters))  # together they are one
    adapters = len(kept) + are_converted
    more, drafts, there = sum(map(_is_gguf, unknown)), int(bool(recipe.drafts)), len({*own.adapters})
    if features.drafts:
        declared = [path for path, count in (("adapters", adapters), ("drafts", drafts)) if count]
        yield " and ".join(declared) or "adapters or drafts", adapters + drafts, more, there
    else:
        yield "adapters", adapters, more, there
        yield "drafts", drafts, 0, 0


def weights_differences(
    host: str,
    desired: DesiredModel,
    recipe: Recipe,
    own: Contents,
    base: Contents | None,
    features: Features,
) -> list[Difference]:
    """What is said of weights that differ: their digests, unless these cannot be compared or there is more to say."""
    if base and not (base.blobs or own.blobs):
        return [Difference(host=host, model=desired.name, kind="base", desired=str(recipe.base))]
    fields: list[Field] = []
    if _is_converted(recipe, kept=_are_files_kept(desired, recipe, features)):
        fields += _other_counts(desired, recipe, own, base, features)
    headers = _expected_headers(desired, base)
    other = _other_quantization(headers, own, recipe.quantize)
    if other and (recipe.files or recipe.quantize) and _tensors_agree(headers, own):
        fields.append(("quantization", *other))
    observed = ", ".join(digest.short for digest in (*own.blobs, *own.adapters))
    return [
        Difference(host=host, model=desired.name, kind="weights", path=path, desired=wanted, observed=there)
        for path, wanted, there in fields or [("weights", _say_weights(recipe, base), observed)]
    ]


def _say_weights(recipe: Recipe, base: Contents | None) -> str:
    """The digests of everything that the weights are made from, with what they are quantized to."""
    made_of = [*(base.blobs if base else ()), *(blob.digest for blob in recipe.files)]
    kept = [*(base.adapters if base else ()), *(blob.digest for blob in recipe.adapters)]
    drafts = [blob.digest for blob in recipe.drafts]
    parts = ((made_of, recipe.quantize), (kept, None), (drafts, recipe.draft_quantize))
    return ", ".join(
        digest.short + (f" as {_quantization(quantize)}" if quantize else "")
        for digests, quantize in parts
        for digest in digests
    )
