"""The template that a host will make prompts with once it has pulled what a registry has now.

Servers from 0.30 on may prefer the template that the weights carry; for these the header of the GGUF is read at the
registry, without the weights.
"""

from __future__ import annotations

from contextlib import suppress

from ollamaops.errors import RemoteError, WeightsError
from ollamaops.names import ModelName
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.ollama.contents import NO_TEMPLATE
from ollamaops.ollama.features import Features
from ollamaops.plan.templates import offers_more
from ollamaops.registry.documents import Document, RegistryManifest, layers_by_kind


def coming_template(
    registries: RegistryCache, ref: ModelName, insecure: bool, document: Document, features: Features
) -> str | None:
    """The text of it; None when the registry does not give what would tell."""
    if not isinstance(document, RegistryManifest):
        return None
    declared, jinja = _declared(registries, ref, insecure, document), ""
    if features.jinja_in_template:
        found = carried_template(registries, ref, insecure, document)
        if found is None:
            return None
        jinja = found
    if declared is None:
        return None
    return jinja if jinja and (not declared or offers_more(jinja, declared)) else declared or NO_TEMPLATE


def carried_template(
    registries: RegistryCache, ref: ModelName, insecure: bool, document: Document
) -> str | None:
    """The template that the weights carry, "" if they carry none; None when that is not known."""
    layers = layers_by_kind(document.parts).get("weights", ())
    if len(layers) != 1 or not layers[0].media_type.endswith("image.model"):
        return None if layers else ""
    with suppress(RemoteError, WeightsError):
        return registries.weights_template(ref, layers[0], insecure)
    return None


def _declared(
    registries: RegistryCache, ref: ModelName, insecure: bool, document: RegistryManifest
) -> str | None:
    """The text of its template layer, the last if there are several; "" if there is none, None if it is not known."""
    layers = layers_by_kind(document.parts).get("template", ())
    if not layers:
        return ""
    if layers[-1].size_bytes > MAX_KEPT_BYTES:
        return None
    with suppress(RemoteError):
        return registries.blob(ref, layers[-1], insecure).decode("utf-8", "replace")
    return None
