"""What a registry keeps under a tag, as values: parse it, tell which digests stand for it, compare two of them.

The digest in `/api/tags` is the registry's digest only for models pulled by Ollama 0.19.0 and newer. Older servers
rewrite the manifest in their own layout, and a server that made the model and pushed it keeps a file with one more
newline. `digest_set` holds all of these.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from msgspec import Struct, structs

from ollamaops.errors import InvalidValue, ProtocolError, cut_text
from ollamaops.names import Digest, ModelName

LayerKind = Literal[
    "weights",
    "projector",
    "adapter",
    "template",
    "system",
    "parameters",
    "messages",
    "license",
    "config",
    "other",
]

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LIST_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

_OLLAMA_PREFIX = "application/vnd.ollama.image."
_OLLAMA_KINDS: Mapping[str, LayerKind] = {
    "model": "weights",
    "tensor": "weights",
    "embed": "weights",
    "draft": "weights",
    "projector": "projector",
    "adapter": "adapter",
    "template": "template",
    "prompt": "template",
    "system": "system",
    "params": "parameters",
    "messages": "messages",
    "license": "license",
    "config": "config",
    "json": "config",
}
_CONFIG_TYPES = {
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.empty.v1+json",
}
_GO_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_SIZE_BYTES = 2**63 - 1


class Layer(Struct, frozen=True):
    """One blob that a registry manifest names. `from_` and `name` are Ollama's own fields, mostly empty."""

    media_type: str
    digest: Digest
    size_bytes: int
    name: str = ""
    from_: str = ""

    @property
    def kind(self) -> LayerKind:
        """What the blob is to a model, told by its media type (whose parameters after `;` do not count)."""
        base = self.media_type.partition(";")[0].strip().lower()
        if base.startswith(_OLLAMA_PREFIX):
            return _OLLAMA_KINDS.get(base.removeprefix(_OLLAMA_PREFIX), "other")
        return "config" if base in _CONFIG_TYPES else "other"


@dataclass(frozen=True, slots=True)
class RegistryManifest:
    """One model: its config and its layers in order. `raw` is what was read, empty if it came from a lock.

    `layers_are_null`: there are none, and the manifest says `null` where others say `[]`. So Ollama writes a model
    of nothing but a config (a cloud stub, ≥ 0.12.0), and a server that writes it anew keeps to what it read.
    """

    media_type: str
    config: Layer
    layers: tuple[Layer, ...]
    raw: bytes = field(default=b"", compare=False, repr=False)
    layers_are_null: bool = False

    @property
    def parts(self) -> tuple[Layer, ...]:
        """Every blob it names, config last, as Ollama pulls them."""
        return (*self.layers, self.config)

    @property
    def is_model(self) -> bool:
        """Whether it can be an Ollama model: one of nothing but a config, or with at least one layer of Ollama's."""
        return not self.layers or any(layer.media_type.startswith(_OLLAMA_PREFIX) for layer in self.layers)


@dataclass(frozen=True, slots=True)
class ManifestList:
    """Several manifests under one tag (a Docker manifest list or an OCI index), each for some kind of host.

    Which child a host takes is the host's choice and not known here; `name` of a child says what it is for.
    """

    media_type: str
    children: tuple[Layer, ...]
    raw: bytes = field(default=b"", compare=False, repr=False)

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The manifests it names."""
        return self.children

    @property
    def is_model(self) -> bool:
        """A child may be one."""
        return True


Document = RegistryManifest | ManifestList


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """What a registry answered for `name`. `digest` is that of `raw`."""

    name: ModelName
    raw: bytes = field(repr=False)
    digest: Digest
    document: Document

    @property
    def blobs(self) -> Mapping[Digest, int]:
        """Digest → bytes of every blob the model consists of, each once. Empty for a list of manifests."""
        if isinstance(self.document, ManifestList):
            return {}
        return {part.digest: part.size_bytes for part in self.document.parts}


def parse_document(raw: bytes) -> Document:
    """The manifest or the list of manifests in `raw`; unknown media types and fields are taken as they come.

    ProtocolError (without a host) when it is neither, or when a descriptor lacks its digest or size.
    """
    tree = _parse_json(raw)
    if isinstance(layers := tree.get("layers"), list):
        return _parse_manifest(tree, layers, raw)
    if isinstance(children := tree.get("manifests"), list):
        _check_schema(tree)
        return ManifestList(_text_at(tree, "mediaType"), _parse_children(children), raw)
    if "layers" in tree and layers is None:
        return replace(_parse_manifest(tree, [], raw), layers_are_null=True)
    if "fsLayers" in tree:
        raise _not_a_manifest("it has the old layout, schema version 1")
    raise _not_a_manifest("it has neither layers nor manifests")


def canonical_bytes(manifest: RegistryManifest, *, names: bool = True) -> bytes:
    """The manifest as Ollama itself writes it: Go's `json.Marshal`, compact, fixed order of keys, no newline.

    `names` False leaves out the layers' `name`, as servers < 0.14.0 do.
    """
    layers = [_layer_tree(layer, names) for layer in manifest.layers]
    tree = {
        "schemaVersion": 2,
        "mediaType": manifest.media_type,
        "config": _layer_tree(manifest.config, names),
        "layers": None if manifest.layers_are_null else layers,
    }
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_GO_ESCAPES).encode()


def digest_set(raw: bytes) -> frozenset[str]:
    """Every digest (bare hex) with which `/api/tags` may show a model whose registry manifest is `raw`.

    For a list of manifests these include the digests of its children. ProtocolError as for parse_document.
    """
    document = parse_document(raw)
    if isinstance(document, ManifestList):
        return _file_digests({raw}) | {child.digest.hex for child in document.children}
    return _file_digests({raw}) | canonical_digests(document)


def is_current(tags_digest: str, fetched: FetchedManifest) -> bool:
    """Whether `/api/tags` of a host shows what the registry has now, whatever version pulled it."""
    return tags_digest.lower().removeprefix("sha256:") in digest_set(fetched.raw)


def canonical_digests(manifest: RegistryManifest) -> frozenset[str]:
    """The part of `digest_set` that needs no raw bytes: what servers that write the manifest anew would show."""
    return _file_digests({canonical_bytes(manifest, names=names) for names in (True, False)})


def hashed_part(stored: bytes) -> bytes:
    """The part of a stored manifest file that goes into its digest in `/api/tags`.

    The server hashes what Go's JSON decoder has read when the closing brace is found; its buffer holds 512
    bytes and then twice itself and 512 more. So a file of 513, 1537, 3585, 7681 … bytes that ends in a newline
    is hashed without it.
    """
    end = len(stored.rstrip(b" \t\r\n"))
    buffered = 512
    while buffered < end:
        buffered = 2 * buffered + 512
    return stored[:buffered]


class LayerChange(Struct, frozen=True):
    """What differs between two documents in one kind of layer.

    Both tuples are empty when only the order differs, or how often a layer is named.

    `download_bytes` is the size of those added blobs that the old document has nowhere.
    """

    kind: LayerKind
    added: tuple[Layer, ...]
    removed: tuple[Layer, ...]
    download_bytes: int


def compare(old: Document, new: Document) -> tuple[LayerChange, ...]:
    """What changed from `old` to `new`, kind by kind, weights first; empty when a host would behave the same.

    The order of layers counts within a kind (licenses are joined, the last messages win), not between kinds:
    servers ≤ 0.24 order layers at random.
    """
    before, after = layers_by_kind(old.parts), layers_by_kind(new.parts)
    had = {part.digest for part in old.parts}
    return tuple(
        _change(kind, before.get(kind, ()), after.get(kind, ()), had)
        for kind in cast("tuple[LayerKind, ...]", get_args(LayerKind))
        if _digests(before.get(kind, ())) != _digests(after.get(kind, ()))
    )


def layers_by_kind(layers: Iterable[Layer]) -> dict[LayerKind, tuple[Layer, ...]]:
    """The layers of each kind, in their order; kinds without any are not there."""
    kinds: dict[LayerKind, tuple[Layer, ...]] = {}
    for layer in layers:
        kinds[layer.kind] = (*kinds.get(layer.kind, ()), layer)
    return kinds


def _change(
    kind: LayerKind, before: tuple[Layer, ...], after: tuple[Layer, ...], had: set[Digest]
) -> LayerChange:
    added = tuple(layer for layer in after if layer.digest not in _digests(before))
    removed = tuple(layer for layer in before if layer.digest not in _digests(after))
    new_blobs = {layer.digest: layer.size_bytes for layer in added if layer.digest not in had}
    return LayerChange(kind, added, removed, sum(new_blobs.values()))


def _digests(layers: tuple[Layer, ...]) -> tuple[Digest, ...]:
    return tuple(layer.digest for layer in layers)


def _file_digests(forms: set[bytes]) -> frozenset[str]:
    files = {form + ending for form in forms for ending in (b"", b"\n")}
    parts = files | {hashed_part(file) for file in files}
    return frozenset(hashlib.sha256(part).hexdigest() for part in parts)


def _layer_tree(layer: Layer, names: bool) -> dict[str, object]:
    tree: dict[str, object] = {
        "mediaType": layer.media_type,
        "digest": str(layer.digest),
        "size": layer.size_bytes,
    }
    if layer.from_:
        tree["from"] = layer.from_
    if layer.name and names:
        tree["name"] = layer.name
    return tree


def _not_a_manifest(why: str) -> ProtocolError:
    return ProtocolError(f"not a registry manifest: {why}")


def _parse_json(raw: bytes) -> dict[str, object]:
    try:
        tree = json.loads(raw.decode("utf-8", errors="replace"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        start = cut_text(raw[:80].decode("utf-8", errors="replace"), 40)
        raise _not_a_manifest(f"it is not JSON, it begins {start!r}") from None
    if not isinstance(tree, dict):
        raise _not_a_manifest("it is not a JSON object")
    return tree


def _refuse_constant(word: str) -> None:
    raise ValueError(word)


def _check_schema(tree: Mapping[str, object]) -> None:
    version = tree.get("schemaVersion")
    if isinstance(version, bool) or version != 2:
        raise _not_a_manifest(f"schema version {cut_text(str(version), 20)}, not 2")


def _parse_manifest(tree: Mapping[str, object], layers: list[object], raw: bytes) -> RegistryManifest:
    _check_schema(tree)
    config = _parse_layer(tree.get("config"), "config")
    return RegistryManifest(_text_at(tree, "mediaType"), config, _parse_layers(layers, "layers"), raw)


def _parse_layers(items: list[object], where: str) -> tuple[Layer, ...]:
    return tuple(_parse_layer(item, f"{where}[{index}]") for index, item in enumerate(items))


def _parse_layer(item: object, where: str) -> Layer:
    if not isinstance(item, dict):
        raise _not_a_manifest(f"{where} is not an object")
    try:
        digest = Digest.parse(_text_at(item, "digest"))
    except InvalidValue as error:
        raise _not_a_manifest(f"{where}: {error}") from None
    size = item.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MAX_SIZE_BYTES:
        raise _not_a_manifest(f"{where} has no size in bytes")
    return Layer(_text_at(item, "mediaType"), digest, size, _text_at(item, "name"), _text_at(item, "from"))


def _parse_children(items: list[object]) -> tuple[Layer, ...]:
    children = _parse_layers(items, "manifests")
    return tuple(
        structs.replace(child, name=child.name or _runs_on(item))
        for child, item in zip(children, items, strict=True)
        if isinstance(item, dict)
    )


def _runs_on(item: Mapping[str, object]) -> str:
    """What a child of a list is for: `runner`, or `os/architecture` of its `platform`; else empty."""
    platform = item.get("platform")
    if isinstance(platform, dict):
        return "/".join(filter(None, (_text_at(platform, key) for key in ("os", "architecture"))))
    return _text_at(item, "runner")


def _text_at(tree: Mapping[str, object], key: str) -> str:
    """The string under `key`, half surrogate pairs replaced as Go's decoder does; empty when there is none."""
    value = tree.get(key)
    return _LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else ""
