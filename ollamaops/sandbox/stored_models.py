"""Finding and loading stored models: a request's name to the manifest on disk to what the model is.

Nothing is cached: what another writer changed is seen at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ollamaops.sandbox import layers as kinds
from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.builtin_models import STAND_IN
from ollamaops.sandbox.gguf_file import BadGGUF, Header, read_header
from ollamaops.sandbox.inference import ModelFacts
from ollamaops.sandbox.inference_requests import read_message
from ollamaops.sandbox.layers import Config, CorruptManifest, Manifest, parse_config, parse_manifest
from ollamaops.sandbox.model_name import Name, adopt_spelling
from ollamaops.sandbox.store import Store
from ollamaops.sandbox.templates import (
    DEFAULT_TEMPLATE,
    own_template_capabilities,
    prefers_own_template,
    template_capabilities,
)

T = TypeVar("T")
_WORD_TOKEN, _BYTE_TOKEN = 1, 6


class NoSuchModel(LookupError):
    """No manifest of that name, or no weights behind it."""


@dataclass
class StoredModel:
    """A model with everything its layers say; of two layers with the same meaning the later one counts."""

    name: Name
    manifest: Manifest
    config: Config
    modified_ns: int
    weights: Path | None = None
    weights_digest: str = ""
    parent: str = ""
    adapters: list[Path] = field(default_factory=list)
    projectors: list[Path] = field(default_factory=list)
    drafts: list[Path] = field(default_factory=list)
    template: str = DEFAULT_TEMPLATE
    has_template: bool = False
    """Whether the template is a layer of the model, and not the default."""
    own_template_wins: bool = False
    system: str = ""
    options: dict[str, object] = field(default_factory=dict)
    messages: list[dict[str, object]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)

    def add(self, layer: kinds.Layer, path: Path) -> None:
        """Take in what a layer says. CorruptManifest, OSError."""
        match layer.media_type:
            case kinds.MODEL:
                self.weights, self.weights_digest, self.parent = path, layer.digest, layer.origin
            case kinds.ADAPTER:
                self.adapters.append(path)
            case kinds.PROJECTOR:
                self.projectors.append(path)
            case kinds.DRAFT:
                self.drafts.append(path)
            case kinds.TEMPLATE:
                self.template, self.has_template = _text(path), True
            case kinds.SYSTEM:
                self.system = _text(path)
            case kinds.LICENSE:
                self.licenses.append(_text(path))
            case kinds.PARAMS:
                self.options |= _document(path, {})
            case kinds.MESSAGES:
                self.messages = _document(path, [])
            case _:
                pass  # a kind of layer that this server does not know

    def header(self) -> Header | None:
        """The GGUF header of the weights; None for a remote model. BadGGUF, or OSError (also when there are none)."""
        if self.weights is None and not self.config.remote_model:
            raise FileNotFoundError(2, "no weights", "")
        return read_header(self.weights) if self.weights else None

    @property
    def effective_template(self) -> str:
        """The template that runs: the declared one, or the weights' own."""
        return self._own_template() or self.template

    def check_weights(self) -> None:
        """BadGGUF or OSError when the weights cannot be loaded; they may be cut off behind a header that is whole."""
        header = self.header()
        if header and self.weights and self.weights.stat().st_size < header.least_size:
            raise BadGGUF("unexpected EOF")

    def capabilities(self, *, as_declared: bool = False) -> list[str]:
        """What the model can do, in the order in which servers list it.

        `as_declared` leaves the weights' own template out of account, as tags does.
        """
        if self.config.remote_model:
            return list(self.config.capabilities)
        own = "" if as_declared else self._own_template()
        found = [*own_template_capabilities(own), *self._weights_capabilities()]
        if not own:
            found += template_capabilities(self.template)
        if self.projectors:
            found.append("vision")
        return list(dict.fromkeys([*found, *self.config.capabilities]))

    def _own_template(self) -> str:
        """The weights' own template where it runs, else nothing. A renderer or parser runs instead of either."""
        if not self.own_template_wins or self.config.renderer or self.config.parser:
            return ""
        try:
            header = self.header()
        except (OSError, BadGGUF):
            return ""
        own = header.text("tokenizer.chat_template") if header else ""
        return own if not self.has_template or prefers_own_template(own, self.template) else ""

    def _weights_capabilities(self) -> Iterator[str]:
        try:
            header = self.header()
        except (OSError, BadGGUF):
            return
        if header:
            prefix = header.architecture
            yield "embedding" if f"{prefix}.pooling_type" in header.fields else "completion"
            if f"{prefix}.vision.block_count" in header.fields:
                yield "vision"

    def for_inference(self) -> ModelFacts:
        """The facts that pretend inference needs; of weights that cannot be read nothing is known."""
        try:
            header = self.header()
        except (OSError, BadGGUF):
            header = None
        lengths = [
            header.of_architecture(key) if header else 0 for key in ("context_length", "embedding_length")
        ]
        return ModelFacts(
            full_name=self.name.full,
            capabilities=frozenset(self.capabilities()),
            weights=self.weights_digest,
            context_length=lengths[0] or 4096,
            embedding_length=lengths[1] or 384,
            template=self.effective_template,
            speaks_bytes=header is not None and _knows_only_bytes(header),
            system=self.system,
            parameters=self.options,
            messages=tuple(map(read_message, self.messages)),
        )


@dataclass(frozen=True)
class Listed:
    """What tags needs of a model. It does not read all layers, so a missing blob does not hide the model."""

    name: Name
    manifest: Manifest
    config: Config
    modified_ns: int


class StoredModels:
    """The models of one store, addressed as one server version addresses them."""

    def __init__(self, store: Store, behavior: Behavior) -> None:
        self.store, self.behavior = store, behavior

    def spelled(self, name: Name) -> Name:
        """The name as stored, if a stored one differs only in case (servers that fold case)."""
        return adopt_spelling(name, self.store.names()) if self.behavior.names_fold_case else name

    def collides(self, name: Name) -> bool:
        """Whether an old server refuses to make `name`, because another model differs from it only in case."""
        if self.behavior.names_fold_case:
            return False
        return any(other != name and other.folded == name.folded for other in self.store.names())

    def manifest(self, name: Name) -> Manifest:
        """The manifest of exactly that name. NoSuchModel or CorruptManifest."""
        if not name.is_valid:
            raise NoSuchModel(name.full)
        try:
            return parse_manifest(self.store.read_manifest(name))
        except OSError as error:
            raise NoSuchModel(name.short) from error

    def load(self, name: Name) -> StoredModel:
        """The model of exactly that name. NoSuchModel, CorruptManifest or OSError (a blob is missing)."""
        return self.read_layers(name, self.manifest(name))

    def read_layers(self, name: Name, manifest: Manifest) -> StoredModel:
        """The model with that manifest. CorruptManifest or OSError (a blob is missing)."""
        model = StoredModel(
            *(name, manifest, self.config(manifest), self.store.modified_ns(name)),
            own_template_wins=self.behavior.own_template_wins,
        )
        for layer in manifest.layers:
            model.add(layer, self.store.blob_path(layer.digest))
        return model

    def config(self, manifest: Manifest) -> Config:
        """What this version reads of the config that a manifest refers to. CorruptManifest or OSError."""
        if not manifest.config.digest:
            return Config()
        found = parse_config(self.store.read_blob(manifest.config.digest))
        if not self.behavior.requires_known:
            found = replace(found, requires="")
        return found if self.behavior.config_extras else found.without_extras()

    def listed(self) -> Iterator[Listed]:
        """Every model that tags can list: those with a corrupt manifest or without a config are left out."""
        for name in self.store.names():
            try:
                manifest = self.manifest(name)
                yield Listed(name, manifest, self.config(manifest), self.store.modified_ns(name))
            except (NoSuchModel, CorruptManifest, OSError):
                continue


def _knows_only_bytes(header: Header) -> bool:
    """Whether the vocabulary has bytes and control tokens but no words. What such weights say is hardly ever UTF-8.

    The built-in models have no words either, but stand for models that speak.
    """
    kinds_of_token = header.fields.get("tokenizer.ggml.token_type")
    is_stand_in = header.text("general.name").startswith(STAND_IN)
    if is_stand_in or kinds_of_token is None or not isinstance(kinds_of_token.value, list):
        return False
    return _BYTE_TOKEN in kinds_of_token.value and _WORD_TOKEN not in kinds_of_token.value


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _document(path: Path, like: T) -> T:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptManifest(f"{path.name}: {error}") from error
    if not isinstance(document, type(like)):
        raise CorruptManifest(f"{path.name} holds no {type(like).__name__}")
    return document
