"""Layers in words: what kind they are, how large, and what changed between two manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ollamaops.plan.codec import Json
from ollamaops.registry.documents import Layer, LayerChange, LayerKind
from ollamaops.units import format_size

_CALLED: Mapping[LayerKind, str] = {"license": "license", "config": "metadata", "other": "other layers"}


def call_kind(kind: LayerKind) -> str:
    """`weights`, `template`, `license` …"""
    return _CALLED.get(kind, kind)


def render_layer(layer: Layer) -> str:
    """`weights 9bc19bc19bc1 of 2.0 GB`"""
    return f"{call_kind(layer.kind)} {layer.digest.short} of {format_size(layer.size_bytes)}"


def render_changes(changes: Iterable[LayerChange]) -> str:
    """`weights 2.0 GB → 2.1 GB, template 1.4 kB → not there`; one phrase for each kind."""
    return ", ".join(map(_render_change, changes))


def _render_change(change: LayerChange) -> str:
    if not change.added and not change.removed:
        return f"{call_kind(change.kind)} in another order"
    return f"{call_kind(change.kind)} {_render_size(change.removed)} → {_render_size(change.added)}"


def _render_size(layers: tuple[Layer, ...]) -> str:
    return format_size(sum(layer.size_bytes for layer in layers)) if layers else "none"


def changes_to_json(changes: Iterable[LayerChange]) -> list[Json]:
    """Each with `kind`, `added` and `removed` layers, `download_bytes`."""
    return [
        {
            "kind": change.kind,
            "added": [layer_to_json(layer) for layer in change.added],
            "removed": [layer_to_json(layer) for layer in change.removed],
            "download_bytes": change.download_bytes,
        }
        for change in changes
    ]


def layer_to_json(layer: Layer | None) -> Json:
    """`kind`, `digest`, `size_bytes`, `media_type`; null for no layer."""
    if layer is None:
        return None
    return {
        "kind": layer.kind,
        "digest": str(layer.digest),
        "size_bytes": layer.size_bytes,
        "media_type": layer.media_type,
    }
