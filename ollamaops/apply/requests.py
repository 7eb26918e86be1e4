"""From a Recipe to what goes over the wire: the structured request, or a Modelfile for servers up to 0.5.4."""

from __future__ import annotations

from pathlib import PurePosixPath

from ollamaops.manifest.modelfile import Command, Modelfile, render_for_wire
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.inference import Message
from ollamaops.ollama.version import Features
from ollamaops.ollama.wire import CreateRequest
from ollamaops.plan.actions import Blob, Recipe


def build_request(model: ModelName, recipe: Recipe, features: Features) -> CreateRequest:
    """The create request for servers ≥ 0.5.5."""
    return CreateRequest(
        model=model,
        from_=recipe.base,
        files=_files(recipe.files, features),
        adapters=_named(recipe.adapters),
        drafts=_named(recipe.drafts),
        template=recipe.template,
        system=recipe.system,
        licenses=recipe.licenses,
        parameters=recipe.parameters,
        messages=tuple(Message(role, content) for role, content in recipe.messages),
        quantize=recipe.quantize,
        draft_quantize=recipe.draft_quantize,
        renderer=recipe.renderer,
        parser=recipe.parser,
        requires=recipe.requires,
    )


def _files(blobs: tuple[Blob, ...], features: Features) -> dict[str, Digest]:
    """Relative names since 0.30; before, base names, as `ollama create` of those versions sends them."""
    if features.deterministic_files:
        return _named(blobs)
    return {PurePosixPath(blob.name).name: blob.digest for blob in blobs}


def _named(blobs: tuple[Blob, ...]) -> dict[str, Digest]:
    return {blob.name: blob.digest for blob in blobs}


def render_request(recipe: Recipe, base: ModelName | None) -> str:
    """The Modelfile for servers ≤ 0.5.4; `base` as the host spells it.

    ModelfileError for text that a Modelfile cannot carry.
    """
    commands = [("model", base.display)] if base else [("model", f"@{blob.digest}") for blob in recipe.files]
    commands += [("adapter", f"@{blob.digest}") for blob in recipe.adapters]
    commands += [
        (name, text) for name, text in (("template", recipe.template), ("system", recipe.system)) if text
    ]
    for name, value in recipe.parameters.items():
        commands += [(name, _text(item)) for item in (value if isinstance(value, tuple) else (value,))]
    commands += [("license", text) for text in recipe.licenses]
    commands += [("message", f"{role}: {content}") for role, content in recipe.messages]
    return render_for_wire(Modelfile(tuple(Command(name, args) for name, args in commands)))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
