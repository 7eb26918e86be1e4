"""What a server of some version cannot build, in words: asked of Features, never of a version number.

This is checked before anything is sent: old servers take what they do not understand and build something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ollamaops.files.location import FileInfo
from ollamaops.manifest.modelfile import Command, flaw_on_wire
from ollamaops.ollama.features import FEATURE_OF_FIELD, Features, first_version_with
from ollamaops.plan.actions import Recipe
from ollamaops.settings import WEIGHTS_SETTINGS

_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)
_NOT_GGUF = (".safetensors", ".bin", ".pth")
_ADAPTERS_SINCE = "0.3.7"
_WITHOUT = {  # feature → what a server without it lacks, and what to do without it
    "drafts": ("it has no draft models", "leave out DRAFT"),
    "renderer_and_parser": ("it has no renderer and parser", "leave them out"),
    "requires_field": ("it does not know REQUIRES", "leave it out"),
}


def unsupported(recipe: Recipe, features: Features, weights: Sequence[FileInfo]) -> tuple[str, str] | None:
    """(what and why, the way out) of the first thing that such a server cannot do; None when it can do it all.

    `weights` are what is known of `recipe.files`, one by one, or of what is in the archive that they are sent in.
    """
    return next(_reasons(recipe, features, weights), None)


def _reasons(recipe: Recipe, features: Features, weights: Sequence[FileInfo]) -> Iterator[tuple[str, str]]:
    for name, flag in FEATURE_OF_FIELD.items():
        if getattr(recipe, name) and not getattr(features, flag):
            what, way_out = _WITHOUT[flag]
            yield what, f"upgrade to {first_version_with(flag)}, or {way_out}"
    for name in WEIGHTS_SETTINGS:
        yield from _type_reasons(getattr(recipe, name), features)
    if any(_SHARD.search(blob.name) for blob in recipe.files) and not features.split_gguf:
        since = first_version_with("split_gguf")
        yield "it does not merge a GGUF in shards", f"merge the shards first, or upgrade to {since}"
    if recipe.adapters and features.gguf_adapters_misread:
        yield "it takes an adapter for the weights", f"upgrade to {_ADAPTERS_SINCE}, or leave the adapter out"
    if recipe.quantize:
        yield from _source_reasons(recipe, features, weights)
    for name, flag, is_known in (
        ("min_p", "min_p", features.min_p),
        ("draft_num_predict", "drafts", features.drafts),
    ):
        if name in recipe.parameters and not is_known:
            yield f"it has no parameter {name}", f"upgrade to {first_version_with(flag)}, or leave it out"
    if not features.structured_create:
        yield from _modelfile_reasons(recipe)


def _type_reasons(quantize: str | None, features: Features) -> Iterator[tuple[str, str]]:
    if quantize and not features.takes_quantize(quantize):
        types = ", ".join(sorted(features.quantize_types))
        yield f"it does not quantize to {quantize}", f"it makes {types}"


def _source_reasons(
    recipe: Recipe, features: Features, weights: Sequence[FileInfo]
) -> Iterator[tuple[str, str]]:
    """Servers quantize what says of itself that it is F16 or BF16. F32 is number 0 in a GGUF, which they take for
    nothing said (measured up to 0.33). Only the first shard of several says anything."""
    taken = ("F16", "BF16") if features.quantizes_bf16 else ("F16",)
    for blob, info in zip(recipe.files, weights, strict=False):  # an archive is one file
        says_nothing = info.architecture in ("", "unknown") or info.is_projector
        if not says_nothing and info.quantization not in taken:
            what = "F32, or does not say what it is" if info.quantization == "unknown" else info.quantization
            yield (
                f"it quantizes only {' and '.join(taken)} files, and {blob.name} is {what}",
                "give it an F16 file, or leave out quantize",
            )


def _modelfile_reasons(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a Modelfile on the wire (servers up to 0.5.4) has no way to say."""
    since = first_version_with("structured_create")
    if any(blob.name.lower().endswith(_NOT_GGUF) for blob in recipe.files):
        yield (
            "weights other than GGUF go to it only from this disk",
            f"download them first, convert them to GGUF, or upgrade to {since}",
        )
    if any(blob.name.lower().endswith(_NOT_GGUF) for blob in recipe.adapters):
        yield "adapters other than GGUF are not sent to it", f"convert them to GGUF, or upgrade to {since}"
    unset = sorted(name for name, value in recipe.parameters.items() if value is None or value == ())
    if unset:
        yield f"it cannot un-set the parameter {unset[0]}", f"state a value, or upgrade to {since}"
    for flaw in filter(None, map(flaw_on_wire, commands_of(recipe))):
        yield flaw, f"change it, or upgrade to {since}"


def commands_of(recipe: Recipe) -> tuple[Command, ...]:
    """What a Modelfile on the wire says of the recipe after what the model is made from."""
    texts = (("template", recipe.template), ("system", recipe.system))
    commands = [(name, text) for name, text in texts if text]
    for name, value in recipe.parameters.items():
        commands += [(name, _text(item)) for item in (value if isinstance(value, tuple) else (value,))]
    commands += [("license", text) for text in recipe.licenses]
    commands += [("message", f"{role}: {content}") for role, content in recipe.messages]
    return tuple(Command(name, args) for name, args in commands)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
