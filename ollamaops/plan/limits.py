"""What a server of some version cannot build, in words: asked of Features, never of a version number.

Decides before anything is sent, because old servers take what they do not understand and build something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ollamaops.ollama.version import Features, first_version_with
from ollamaops.plan.actions import Recipe

_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)
_NOT_GGUF = (".safetensors", ".bin", ".pth")
_ADAPTERS_SINCE = "0.3.7"


def unsupported(recipe: Recipe, features: Features) -> tuple[str, str] | None:
    """(what and why, the way out) of the first thing that such a server cannot do; None when it can do it all."""
    return next(_reasons(recipe, features), None)


def _reasons(recipe: Recipe, features: Features) -> Iterator[tuple[str, str]]:
    yield from _weights_reasons(recipe, features)
    if (recipe.renderer or recipe.parser) and not features.renderer_and_parser:
        since = first_version_with("renderer_and_parser")
        yield "it has no renderer and parser", f"upgrade to {since}, or leave them out"
    if recipe.requires and not features.requires_field:
        since = first_version_with("requires_field")
        yield "it does not know REQUIRES", f"upgrade to {since}, or leave it out"
    if "min_p" in recipe.parameters and not features.min_p:
        yield "it has no parameter min_p", f"upgrade to {first_version_with('min_p')}, or leave it out"
    if not features.structured_create:
        yield from _modelfile_reasons(recipe)


def _weights_reasons(recipe: Recipe, features: Features) -> Iterator[tuple[str, str]]:
    if recipe.quantize and not features.takes_quantize(recipe.quantize):
        types = ", ".join(sorted(features.quantize_types))
        yield f"it does not quantize to {recipe.quantize}", f"it makes {types}"
    if any(_SHARD.search(blob.name) for blob in recipe.files) and not features.split_gguf:
        since = first_version_with("split_gguf")
        yield "it does not merge a GGUF in shards", f"merge the shards first, or upgrade to {since}"
    if (recipe.drafts or recipe.draft_quantize) and not features.drafts:
        yield "it has no draft models", f"upgrade to {first_version_with('drafts')}, or leave out DRAFT"
    if recipe.adapters and features.gguf_adapters_misread:
        yield "it takes an adapter for the weights", f"upgrade to {_ADAPTERS_SINCE}, or leave the adapter out"


def _modelfile_reasons(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a Modelfile on the wire (servers up to 0.5.4) has no way to say."""
    since = first_version_with("structured_create")
    if any(blob.name.lower().endswith(_NOT_GGUF) for blob in (*recipe.files, *recipe.adapters)):
        yield "weights other than GGUF are not uploaded to it", f"convert them to GGUF, or upgrade to {since}"
    unset = sorted(name for name, value in recipe.parameters.items() if value is None or value == ())
    if unset:
        yield f"it cannot un-set the parameter {unset[0]}", f"state a value, or upgrade to {since}"
