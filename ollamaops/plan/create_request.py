"""From a Recipe to what goes over the wire: the structured request, or a Modelfile for servers up to 0.5.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from ollamaops.manifest.modelfile import Command, Modelfile, render_for_wire
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.features import Features
from ollamaops.ollama.wire import CreateRequest
from ollamaops.plan.actions import Blob, Recipe
from ollamaops.plan.unsupported import commands_of
from ollamaops.settings import settings_of


def build_request(model: ModelName, recipe: Recipe, features: Features) -> CreateRequest:
    """The create request for servers ≥ 0.5.5."""
    return CreateRequest(
        **settings_of(recipe),
        model=model,
        from_=recipe.base,
        files=_files(recipe.files, features),
        adapters=_named(recipe.adapters),
        drafts=_named(recipe.drafts),
    )


def _files(blobs: tuple[Blob, ...], features: Features) -> dict[str, Digest]:
    """Relative names since 0.30; before, base names, as `ollama create` of those versions sends them."""
    if features.deterministic_files:
        return _named(blobs)
    names = flat_names([blob.name for blob in blobs])
    return {names[blob.name]: blob.digest for blob in blobs}


def flat_names(names: Sequence[str]) -> dict[str, str]:
    """Relative name → base name. Where two files have one (config.json, 1_Pooling/config.json), it stays relative."""
    base_names = [PurePosixPath(name).name for name in names]
    counts = Counter(base_names)
    return {name: base if counts[base] == 1 else name for name, base in zip(names, base_names, strict=True)}


def _named(blobs: tuple[Blob, ...]) -> dict[str, Digest]:
    return {blob.name: blob.digest for blob in blobs}


def render_request(recipe: Recipe, base: ModelName | None) -> str:
    """The Modelfile for servers ≤ 0.5.4; `base` as the host spells it.

    ModelfileError for text that a Modelfile cannot carry.
    """
    commands = [("model", base.display)] if base else [("model", f"@{blob.digest}") for blob in recipe.files]
    commands += [("adapter", f"@{blob.digest}") for blob in recipe.adapters]
    words = commands_of(recipe)
    return render_for_wire(Modelfile((*(Command(name, args) for name, args in commands), *words)))
