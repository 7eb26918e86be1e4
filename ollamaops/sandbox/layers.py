"""What a stored model is made of: layers, a config and the registry manifest that lists them, to the byte.

Digests are made of these bytes: key order, `omitempty`, HTML escapes and the newline at the end follow Go's
encoder, as the digests of recorded servers show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.golang import json_line, json_text
from ollamaops.sandbox.store import Store

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_IMAGE = "application/vnd.ollama.image."
MODEL, ADAPTER, PROJECTOR = _IMAGE + "model", _IMAGE + "adapter", _IMAGE + "projector"
TEMPLATE, SYSTEM, LICENSE = _IMAGE + "template", _IMAGE + "system", _IMAGE + "license"
PARAMS, MESSAGES, DRAFT = _IMAGE + "params", _IMAGE + "messages", _IMAGE + "draft"
WEIGHTS = (MODEL, ADAPTER, PROJECTOR, DRAFT)

# Go's decoder reads 512 bytes, then twice as much and so on; a manifest's last newline that falls just behind one of
# these reads is never read, and so not hashed
_UNREAD_NEWLINES = (513, 1537, 3585, 7681)


class CorruptManifest(ValueError):
    """A manifest or config that the server cannot read."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob with a meaning. `status` is the line that create prints for it."""

    media_type: str
    digest: str
    size: int
    origin: str = ""
    """The manifest's `from`: the base's name, or the file that the layer was made from."""
    status: str = field(default="", compare=False)
    name: str = ""
    """A tensor's, in manifests that a registry sent."""

    def to_json(self, *, names: bool) -> dict[str, object]:
        shown: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        extras = {"from": self.origin, "name": self.name if names else ""}
        return shown | {key: value for key, value in extras.items() if value}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A registry manifest. `raw` are its bytes on disk, when it was read.

    `has_empty_list`: no layers, written as `[]`. Go reads that into an empty list and writes `[]` again; the list
    that a create never begins, and one read from `null`, is written as `null`.
    """

    config: Layer
    layers: tuple[Layer, ...]
    raw: bytes = b""
    media_type: str = MANIFEST_TYPE
    has_empty_list: bool = False

    @property
    def digest(self) -> str:
        """64 hex digits, as tags and ps give it."""
        unread = self.raw.endswith(b"\n") and len(self.raw) in _UNREAD_NEWLINES
        return hashlib.sha256(self.raw[:-1] if unread else self.raw).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all layers and the config, each counted as often as it is listed."""
        return self.config.size + sum(layer.size for layer in self.layers)

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """What is pulled and pushed, in that order: the layers, then the config."""
        return (*self.layers, self.config) if self.config.digest else self.layers

    def to_json(self, *, names: bool) -> dict[str, object]:
        layers = [layer.to_json(names=names) for layer in self.layers]
        return {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(names=names),
            "layers": layers if layers or self.has_empty_list else None,
        }

    def pushed(self, *, names: bool) -> bytes:
        """The bytes that push sends: without the newline at the end; `names` are kept since 0.14.0."""
        return json_text(self.to_json(names=names)).encode()

    def stored(self) -> bytes:
        """The bytes that create writes."""
        return json_line(self.to_json(names=False))


@lru_cache(maxsize=512)
def parse_manifest(raw: bytes) -> Manifest:
    """The manifest in `raw`. CorruptManifest if it is not one."""
    try:
        document = json.loads(raw)
        config, layers = document.get("config") or {}, document.get("layers")
        return Manifest(
            _parse_layer(config),
            tuple(_parse_layer(layer) for layer in layers or ()),
            raw,
            media_type=str(document.get("mediaType") or ""),
            has_empty_list=layers == [],
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise CorruptManifest(str(error)) from error


def _parse_layer(document: Mapping[str, object]) -> Layer:
    size = document.get("size")
    return Layer(
        str(document.get("mediaType") or ""),
        str(document.get("digest") or ""),
        size if isinstance(size, int) else 0,
        str(document.get("from") or ""),
        name=str(document.get("name") or ""),
    )


_INHERITED = ("renderer", "parser", "requires", "capabilities")
_TEXTS = ("renderer", "parser", "requires", "remote_host", "remote_model", "base_name")
_OMITTED_IF_EMPTY = (
    *("renderer", "parser", "requires", "remote_host", "remote_model", "capabilities"),
    *("context_length", "embedding_length", "base_name"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """What the config blob says of a model."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    """The count of parameters, for people."""
    file_type: str = ""
    """The quantization."""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""
    draft_architecture: str = ""

    def details(self, parent: str = "") -> dict[str, object]:
        """The `details` of tags, ps and show."""
        return {
            "parent_model": parent,
            "format": self.model_format,
            "family": self.model_family,
            "families": None if self.model_families is None else list(self.model_families),
            "parameter_size": self.model_type,
            "quantization_level": self.file_type,
        }

    def filled_from(self, other: Config) -> Config:
        """With the texts and capabilities that are still empty taken from `other`."""
        names = ("model_format", "model_family", "model_type", "file_type", *_INHERITED)
        return replace(self, **{name: getattr(self, name) or getattr(other, name) for name in names})

    def without_extras(self) -> Config:
        """What servers before 0.12 read of it."""
        names = ("model_format", "model_family", "model_families", "model_type", "file_type")
        return Config(**{name: getattr(self, name) for name in names})

    def to_bytes(self, layers: Iterable[Layer], behavior: Behavior) -> bytes:
        """The config blob."""
        draft = {"model_format": "gguf", "architecture": self.draft_architecture}
        document: dict[str, object] = {
            "model_format": self.model_format,
            "model_family": self.model_family,
            "model_families": self.model_families,
            "model_type": self.model_type,
            "file_type": self.file_type,
            **{name: value for name in _OMITTED_IF_EMPTY if (value := getattr(self, name))},
            **({"draft": draft} if self.draft_architecture else {}),
            "architecture": "amd64",
            "os": "linux",
        }
        if behavior.config_rootfs:
            document["rootfs"] = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        return json_line(document)


def parse_config(raw: bytes) -> Config:
    """The config in a blob. CorruptManifest if it is not one."""
    try:
        document = json.loads(raw)
        names = ("model_format", "model_family", "model_type", "file_type", *_TEXTS)
        texts = {name: str(document.get(name) or "") for name in names}
        families = document.get("model_families")
        return Config(
            **texts,
            model_families=None if families is None else tuple(map(str, families)),
            capabilities=tuple(map(str, document.get("capabilities") or ())),
            context_length=int(document.get("context_length") or 0),
            embedding_length=int(document.get("embedding_length") or 0),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise CorruptManifest(str(error)) from error


def new_layer(store: Store, data: bytes, media_type: str) -> Layer:
    """Store `data` as a layer. OSError when the disk is full."""
    digest, is_new = store.add_blob(data)
    return Layer(media_type, digest, len(data), status=layer_status(digest, is_new=is_new))


def layer_status(digest: str, *, is_new: bool) -> str:
    """The line that create prints for a layer."""
    return f"{'creating new' if is_new else 'using existing'} layer {digest}"


def existing_layer(store: Store, digest: str, media_type: str, origin: str = "") -> Layer:
    """A blob that is there as a layer. FileNotFoundError when it is not."""
    size = store.blob_size(digest)
    store.touch_blob(digest)
    return Layer(media_type, digest, size, origin, layer_status(digest, is_new=False))


def without(store: Store, layers: Iterable[Layer], media_type: str) -> list[Layer]:
    """The layers of other kinds; blobs of the dropped ones go too, unless a manifest uses them."""
    kept = []
    for layer in layers:
        if layer.media_type == media_type:
            store.remove_unused_blob(layer.digest)
        else:
            kept.append(layer)
    return kept
