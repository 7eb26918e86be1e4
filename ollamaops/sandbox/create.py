"""POST /api/create of servers from 0.5.5 on: base or files, what is laid over them, a manifest.

When the base cannot be pulled, the work reports that and goes on. Servers whose streams end at an error never get
there; older ones write a manifest without weights over the model that was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from posixpath import normpath
from urllib.parse import urlsplit

from ollamaops.sandbox import layers as kinds
from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.gguf_file import BadGGUF, Header, read_header
from ollamaops.sandbox.gguf_rewrite import file_type_name
from ollamaops.sandbox.golang import human_number, json_line, sorted_map
from ollamaops.sandbox.import_weights import (
    Part,
    detect_kind,
    finish_weights,
    import_adapters,
    import_drafts,
    import_files,
)
from ollamaops.sandbox.layers import (
    Config,
    CorruptManifest,
    Layer,
    Manifest,
    existing_layer,
    new_layer,
    without,
)
from ollamaops.sandbox.model_name import BothSuffixes, Name, parse_name, strip_source
from ollamaops.sandbox.request_bodies import CreateRequest, kind_of
from ollamaops.sandbox.responses import SUCCESS, Line, Refusal, Work, bad_request, failure, line, os_failure
from ollamaops.sandbox.store import Store
from ollamaops.sandbox.stored_models import NoSuchModel, StoredModels
from ollamaops.sandbox.templates import BadTemplate, check_template

Pull = Callable[[Name], Work]
_INFO_TEXTS = {
    "model_family": "model_family",
    "base_name": "base_name",
    "quantization_level": "file_type",
    "parameter_size": "model_type",
}
_CLOUD = "https://ollama.com:443"
_INFO_NUMBERS = ("context_length", "embedding_length")


@dataclass(frozen=True)
class Creator:
    """Makes models in one store as one server version makes them; `pull` fetches a missing base."""

    models: StoredModels
    pull: Pull

    @property
    def store(self) -> Store:
        return self.models.store

    @property
    def behavior(self) -> Behavior:
        return self.models.behavior

    def checked(self, request: CreateRequest) -> Name:
        """The name of the model to make. Refusal if the server refuses before the work begins."""
        files = {**(request.files or {}), **(request.draft_files or {} if self.behavior.drafts else {})}
        if self.behavior.file_paths_checked and not all(map(_is_plain_path, files)):
            raise bad_request("file path must be relative")
        if self.behavior.empty_digest_refused and not all(
            [*files.values(), *(request.adapters or {}).values()]
        ):
            raise bad_request("invalid digest format")
        name = parse_name(request.model)
        if not name.is_valid:
            raise bad_request("invalid model name")
        return self.models.spelled(name)

    def create(self, request: CreateRequest, name: Name) -> Work:
        """The lines of making `name`."""
        if request.quantize and not self.behavior.quantizes_gguf and self._is_gguf(request):
            raise bad_request("quantization of GGUF models is no longer supported: import quantized weights")
        old = self.old_manifest(name)
        config = Config()
        if self.behavior.config_extras:
            config = replace(config, renderer=request.renderer, parser=request.parser)
        if self.behavior.requires_known:
            config = replace(config, requires=request.requires)
        config, parts = yield from self._base(request, config)
        if not config.remote_model:
            parts = parts + (yield from self._further_weights(request, parts))
        if request.info is not None and self.behavior.config_extras:
            config = _informed(config, request.info, strict=self.behavior.info_type_errors)
        yield from self._assemble(request, name, config, parts)
        self.remove_layers(old)
        yield line(SUCCESS)

    def _is_gguf(self, request: CreateRequest) -> bool:
        return bool(request.origin) or detect_kind(self.store, request.files or {}) == "gguf"

    def old_manifest(self, name: Name) -> Manifest | None:
        """The manifest that a create of `name` replaces; None if there is none or it cannot be read."""
        try:
            return self.models.manifest(name)
        except (NoSuchModel, CorruptManifest):
            return None

    def remove_layers(self, old: Manifest | None) -> None:
        """Remove the blobs of a replaced manifest that no other manifest uses."""
        for layer in old.blobs if old else ():
            self.store.remove_unused_blob(layer.digest)

    def _base(
        self, request: CreateRequest, config: Config
    ) -> Generator[Line, None, tuple[Config, list[Part]]]:
        if request.origin:
            return (yield from self._from_model(request, config))
        if request.files is not None:
            parts = yield from import_files(self.store, self.behavior, request.files)
            return config, parts
        raise bad_request("neither 'from' or 'files' was specified")

    def _from_model(
        self, request: CreateRequest, config: Config
    ) -> Generator[Line, None, tuple[Config, list[Part]]]:
        text, is_cloud = request.origin, False
        if self.behavior.source_suffixes:
            try:
                reference = strip_source(text)
            except BothSuffixes as error:
                raise bad_request(str(error)) from error
            text, is_cloud = reference.name, reference.is_cloud
        origin = parse_name(text)
        if not origin.is_valid:
            raise bad_request("invalid model name")
        remote = request.remote_host if self.behavior.config_extras else ""
        if remote or is_cloud:
            return replace(config, remote_host=remote_url(remote or _CLOUD), remote_model=text), []
        try:
            parts = yield from self.parts_of(origin)
        except Refusal as refusal:
            yield refusal
            return config, []
        return self._inherit(config, origin), parts

    def parts_of(self, name: Name) -> Generator[Line, None, list[Part]]:
        """The layers of a base, which is pulled if it is not there."""
        try:
            manifest = self.models.manifest(name)
        except (NoSuchModel, CorruptManifest):
            yield from self.pull(name)
            manifest = self.models.manifest(name)
        return [self._inherited(layer, name) for layer in manifest.layers]

    def _inherited(self, layer: Layer, base: Name) -> Part:
        try:
            found = existing_layer(self.store, layer.digest, layer.media_type, base.short)
            is_weights = layer.media_type in kinds.WEIGHTS
            return Part(found, read_header(self.store.blob_path(layer.digest)) if is_weights else None)
        except OSError as error:
            raise os_failure(error, "stat") from error
        except BadGGUF as error:
            raise failure(str(error)) from error

    def _inherit(self, config: Config, base: Name) -> Config:
        """What the base's config gives to a model made from it."""
        if not self.behavior.config_extras:
            return config
        inherited = self.models.config(self.models.manifest(base))
        known = Config()
        if self.behavior.renderer_inherited:
            known = Config(renderer=inherited.renderer, parser=inherited.parser)
        if self.behavior.requires_known:
            known = replace(known, requires=inherited.requires)
        if self.behavior.capabilities_inherited:
            known = replace(known, model_format=inherited.model_format, capabilities=inherited.capabilities)
        return config.filled_from(known)

    def _further_weights(self, request: CreateRequest, base: list[Part]) -> Generator[Line, None, list[Part]]:
        """Adapters and drafts, in this order in the manifest, drafts first in the stream."""
        drafts: list[Part] = []
        adapters: list[Part] = []
        try:
            if request.draft_files is not None and self.behavior.drafts:
                drafts = yield from import_drafts(self.store, self.behavior, request.draft_files)
            if request.adapters is not None:
                adapters = yield from import_adapters(self.store, self.behavior, request.adapters, base)
        except Refusal as refusal:
            raise bad_request(refusal.text) from refusal
        return adapters + drafts

    def _assemble(self, request: CreateRequest, name: Name, config: Config, parts: list[Part]) -> Work:
        finished = []
        for part in parts:
            finished.append((yield from finish_weights(self.store, self.behavior, part, request.quantize)))
        config = self.described(config, finished)
        try:
            layers = self._overlaid(request, [part.layer for part in finished])
            yield from self.write(name, config, layers, config_line=False)
        except OSError as error:
            raise os_failure(error, "write") from error

    def described(self, config: Config, parts: Iterable[Part]) -> Config:
        """The config with what the weights say about themselves."""
        families = list(config.model_families or ())
        for part in parts:
            if part.header is None:
                continue
            if part.layer.media_type == kinds.DRAFT:
                config = replace(config, draft_architecture=part.header.architecture)
            elif part.layer.media_type == kinds.MODEL or self.behavior.all_weights_described:
                config = config.filled_from(_described(part.header))
                families.append(part.header.architecture)
        return replace(config, model_families=tuple(families) or None)

    def _overlaid(self, request: CreateRequest, layers: list[Layer]) -> list[Layer]:
        if request.template:
            layers = without(self.store, layers, kinds.TEMPLATE)
            layers.append(self.template_layer(request.template))
        if request.system:
            layers = without(self.store, layers, kinds.SYSTEM)
            layers.append(new_layer(self.store, request.system.encode(), kinds.SYSTEM))
        for text in _licenses(request.license):
            layers.append(new_layer(self.store, text.encode(), kinds.LICENSE))
        layers = self._with_parameters(dict(request.parameters or {}), layers)
        if request.messages:
            layers = without(self.store, layers, kinds.MESSAGES)
            messages = [self._stored_message(message) for message in request.messages]
            layers.append(new_layer(self.store, json_line(messages), kinds.MESSAGES))
        return layers

    def _stored_message(self, message: Mapping[str, object]) -> dict[str, object]:
        keys = ("role", "content", *self.behavior.message_keys)
        return {key: message[key] for key in keys if key in message}

    def template_layer(self, text: str) -> Layer:
        """The layer of a template. Refusal 400 for one that Go cannot parse."""
        try:
            check_template(text)
        except BadTemplate as error:
            raise bad_request(f"template error: {error}") from error
        return new_layer(self.store, text.encode(), kinds.TEMPLATE)

    def _with_parameters(self, parameters: dict[str, object], layers: list[Layer]) -> list[Layer]:
        for layer in layers:
            if layer.media_type == kinds.PARAMS:
                parameters = {**json.loads(self.store.read_blob(layer.digest)), **parameters}
        if not parameters:
            return layers
        layers = without(self.store, layers, kinds.PARAMS)
        return [*layers, new_layer(self.store, json_line(sorted_map(as_go(parameters))), kinds.PARAMS)]

    def write(self, name: Name, config: Config, layers: list[Layer], *, config_line: bool) -> Work:
        """The last lines: every layer's, then the manifest's. OSError when the disk is full."""
        blob = new_layer(self.store, config.to_bytes(layers, self.behavior), kinds.CONFIG_TYPE)
        for layer in [*layers, blob] if config_line else layers:
            yield line(layer.status)
        yield line("writing manifest")
        self.store.write_manifest(name, Manifest(blob, tuple(layers)).stored())


def _described(header: Header) -> Config:
    return Config(
        model_format="gguf",
        model_family=header.architecture,
        model_type=human_number(header.parameter_count),
        file_type=file_type_name(header),
    )


def remote_url(given: str) -> str:
    """Where a remote stub's model runs, completed as the server does: scheme, host, port. Refusal."""
    if given.startswith("/"):
        return f"http://localhost:11434{normpath(given)}"
    url = given if "://" in given else f"http://{given}"
    if url == "http://ollama.com":
        return _CLOUD
    parts = urlsplit(url)
    try:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
        port = parts.port or 11434
    except ValueError as error:
        raise bad_request("bad remote") from error
    path = normpath(parts.path) if parts.path else ""
    return f"{parts.scheme}://{host}:{port}{'' if path == '/' else path}"


def as_go(parameters: Mapping[str, object]) -> dict[str, object]:
    """JSON values as Go reads them into `any`: every number a float64."""
    return {key: _as_go(value) for key, value in parameters.items()}


def _as_go(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, list):
        return [_as_go(item) for item in value]
    return sorted_map(as_go(value)) if isinstance(value, dict) else value


def _is_plain_path(path: str) -> bool:
    """Go's `fs.ValidPath`: relative, no empty, `.` or `..` element; `.` alone is fine."""
    return path == "." or all(part not in {"", ".", ".."} for part in path.split("/"))


def _licenses(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise failure(f"json: cannot unmarshal {kind_of(value)} into Go value of type []string")
    for item in value:
        if not isinstance(item, str | None):
            raise failure(f"json: cannot unmarshal {kind_of(item)} into Go value of type string")
    return [item or "" for item in value]


def _informed(config: Config, info: Mapping[str, object], *, strict: bool) -> Config:
    """The config with `info` laid over it; what it does not name is emptied. Refusal for a wrong type if strict."""
    texts = {}
    for key, attribute in _INFO_TEXTS.items():
        value = info.get(key, "")
        if strict and not isinstance(value, str):
            raise bad_request(f'info field "{key}" must be a string')
        texts[attribute] = str(value)
    numbers = {}
    for key in _INFO_NUMBERS:
        value = info.get(key, 0)
        if strict and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise bad_request(f'info field "{key}" must be a number')
        numbers[key] = int(value) if isinstance(value, int | float) else 0
    families = (texts["model_family"],) if texts["model_family"] else config.model_families
    capabilities = config.capabilities + _informed_capabilities(info.get("capabilities"), strict=strict)
    config = replace(config, model_families=families, capabilities=capabilities)
    return replace(
        config,
        model_family=texts["model_family"],
        base_name=texts["base_name"],
        file_type=texts["file_type"],
        model_type=texts["model_type"],
        context_length=numbers["context_length"],
        embedding_length=numbers["embedding_length"],
    )


def _informed_capabilities(value: object, *, strict: bool) -> tuple[str, ...]:
    if value is None or (not strict and not isinstance(value, list)):
        return ()
    if not isinstance(value, list):
        raise bad_request('info field "capabilities" must be an array of strings')
    for index, item in enumerate(value):
        if strict and not isinstance(item, str):
            raise bad_request(f'info field "capabilities" element {index} must be a string')
    return tuple(item if isinstance(item, str) else "" for item in value)
