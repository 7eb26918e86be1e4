"""What goes over the wire to an Ollama server and back, as frozen values.

Unknown fields are passed over, used ones are strict (ProtocolError names the field). Sizes are bytes, durations
seconds (Ollama writes nanoseconds), and moments stay the server's text, since nothing is computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from msgspec import Struct, field

from ollamaops.errors import ProtocolError
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.features import FEATURE_OF_FIELD, Features
from ollamaops.ollama.fields import Fields
from ollamaops.ollama.messages import Json, Message, keep_given
from ollamaops.ollama.shown_modelfile import Scalar, read_parameters
from ollamaops.settings import ParameterValue, Settings, settings_of

SUCCESS: Final = "success"
PULLING: Final = "pulling manifest"


class Details(Struct, frozen=True, kw_only=True):
    """What a server tells about the weights of a model; empty text and 0 where it does not know."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0

    @classmethod
    def read(cls, fields: Fields) -> Details:
        return cls(
            parent_model=fields.text("parent_model"),
            format=fields.text("format"),
            family=fields.text("family"),
            families=fields.texts("families"),
            parameter_size=fields.text("parameter_size"),
            quantization_level=fields.text("quantization_level"),
            context_length=fields.count("context_length"),
            embedding_length=fields.count("embedding_length"),
        )


class TaggedModel(Struct, frozen=True, kw_only=True):
    """One entry of `/api/tags`. `capabilities` is None where the server does not list them (before 0.30.0)."""

    name: str
    digest: Digest
    size_bytes: int
    modified_at: str = ""
    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] | None = None
    remote_model: str = ""
    remote_host: str = ""

    @classmethod
    def read(cls, fields: Fields) -> TaggedModel:
        details = Details.read(fields.inner("details"))
        return cls(
            name=_name_of(fields),
            digest=fields.digest("digest"),
            size_bytes=fields.count("size"),
            modified_at=fields.text("modified_at"),
            parent_model=details.parent_model,
            format=details.format,
            family=details.family,
            families=details.families,
            parameter_size=details.parameter_size,
            quantization_level=details.quantization_level,
            context_length=details.context_length,
            embedding_length=details.embedding_length,
            capabilities=_capabilities_of(fields),
            remote_model=fields.text("remote_model"),
            remote_host=fields.text("remote_host"),
        )

    @property
    def is_cloud_stub(self) -> bool:
        """Whether this is a few hundred bytes that point to ollama.com."""
        return bool(self.remote_model or self.remote_host)


class UnreadableModel(Struct, frozen=True):
    """An entry of `/api/tags` that cannot be read, and why. `name` is empty when not even that can."""

    name: str
    why: str


Listed = TaggedModel | UnreadableModel


def read_listed(answer: Fields) -> tuple[Listed, ...]:
    """The entries of `/api/tags`. What is wrong with one says nothing of the others."""
    entries = enumerate(answer.items("models"))
    return tuple(_read_entry(entry, f"models[{index}]", answer.host) for index, entry in entries)


def _read_entry(entry: object, place: str, host: str) -> Listed:
    try:
        return TaggedModel.read(Fields(entry, place, host))
    except ProtocolError as error:
        known = entry if isinstance(entry, Mapping) else {}
        name = known.get("name") or known.get("model")
        return UnreadableModel(name if isinstance(name, str) else "", str(error).removeprefix(f"{place}: "))


class LoadedModel(Struct, frozen=True, kw_only=True):
    """One entry of `/api/ps`. `digest` is the manifest's when it was loaded; another one in tags: a stale model."""

    name: str
    digest: Digest
    size_bytes: int
    vram_bytes: int
    expires_at: str = ""
    context_length: int = 0
    details: Details = Details()

    @classmethod
    def read(cls, fields: Fields) -> LoadedModel:
        return cls(
            name=_name_of(fields),
            digest=fields.digest("digest"),
            size_bytes=fields.count("size"),
            vram_bytes=fields.count("size_vram"),
            expires_at=fields.text("expires_at"),
            context_length=fields.count("context_length"),
            details=Details.read(fields.inner("details")),
        )


class Tensor(Struct, frozen=True, kw_only=True):
    """Name, type (`F16`, `Q4_K`) and shape of one tensor."""

    name: str
    type: str
    shape: tuple[int, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> Tensor:
        shape = fields.items("shape")
        if not all(isinstance(size, int) for size in shape):
            raise fields.wrong("shape", "a list of integers")
        return cls(
            name=fields.text("name"),
            type=fields.text("type"),
            shape=tuple(size for size in shape if isinstance(size, int)),
        )


class ShownModel(Struct, frozen=True, kw_only=True, dict=True):
    """The answer of `/api/show`.

    `licenses` is all of them joined by newlines. `parameters` are pairs sorted by name, one per list item.
    `capabilities` is None where the server does not list them (before 0.6.4). Layers, renderer, parser and the
    single licenses are only in the text of `modelfile`; printed.py takes it apart.
    """

    modelfile: str = ""
    template: str = ""
    system: str = ""
    licenses: str = ""
    parameters: tuple[tuple[str, Scalar], ...] = ()
    messages: tuple[Message, ...] = ()
    details: Details = Details()
    model_info: Mapping[str, object] = field(default_factory=dict)
    projector_info: Mapping[str, object] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    capabilities: tuple[str, ...] | None = None
    modified_at: str = ""
    requires: str = ""
    remote_model: str = ""
    remote_host: str = ""

    @classmethod
    def read(cls, fields: Fields) -> ShownModel:
        return cls(
            modelfile=fields.text("modelfile"),
            template=fields.text("template"),
            system=fields.text("system"),
            licenses=fields.text("license"),
            parameters=read_parameters(fields.text("parameters")),
            messages=fields.objects("messages", Message.read),
            details=Details.read(fields.inner("details")),
            model_info=fields.mapping("model_info"),
            projector_info=fields.mapping("projector_info"),
            tensors=fields.objects("tensors", Tensor.read),
            capabilities=_capabilities_of(fields),
            modified_at=fields.text("modified_at"),
            requires=fields.text("requires"),
            remote_model=fields.text("remote_model"),
            remote_host=fields.text("remote_host"),
        )

    @cached_property
    def parameter_values(self) -> Mapping[str, ParameterValue]:
        """Parameters by name; `stop`, if it is text, and any name that comes more than once, is a tuple of texts."""
        grouped: dict[str, list[Scalar]] = {}
        for name, value in self.parameters:
            grouped.setdefault(name, []).append(value)
        return {
            name: tuple(str(value) for value in values)
            if len(values) > 1 or (name == "stop" and isinstance(values[0], str))
            else values[0]
            for name, values in grouped.items()
        }

    @property
    def context_length(self) -> int:
        """What the weights were made for, 0 when not told."""
        architecture = self.model_info.get("general.architecture")
        length = self.model_info.get(f"{architecture}.context_length")
        return length if isinstance(length, int) else self.details.context_length


class Progress(Struct, frozen=True, kw_only=True):
    """One line of pull, push or create, or one step of an upload.

    `digest` is empty for a step without bytes. It is the server's text, because it may be a pseudo-digest
    (`sha256:model` while tensors are pulled, zeros while quantizing).
    """

    status: str
    digest: str = ""
    total_bytes: int = 0
    completed_bytes: int = 0

    @classmethod
    def read(cls, fields: Fields) -> Progress:
        return cls(
            status=fields.text("status"),
            digest=fields.text("digest"),
            total_bytes=fields.count("total"),
            completed_bytes=fields.count("completed"),
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing can be heard of this step until it is over: hashing, converting, writing."""
        return not self.digest and not self.status.startswith(("pulling", "retrieving"))


class CreateRequest(Settings, frozen=True, kw_only=True):
    """What `/api/create` is asked to make, for servers from 0.5.5 on.

    Exactly one of `from_` and `files` says of what.
    """

    model: ModelName
    from_: ModelName | None = None
    files: Mapping[str, Digest] = field(default_factory=dict)
    adapters: Mapping[str, Digest] = field(default_factory=dict)
    drafts: Mapping[str, Digest] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The body, without `stream`."""
        settings = settings_of(self)
        settings["license"] = list(settings.pop("licenses"))
        settings["messages"] = [{"role": role, "content": content} for role, content in self.messages]
        settings["parameters"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.parameters.items()
        }
        optional: dict[str, object] = {
            "from": self.from_.display if self.from_ else None,
            "files": _digests(self.files),
            "adapters": _digests(self.adapters),
            "draft_files": _digests(self.drafts),
            **settings,
        }
        return {"model": self.model.display} | keep_given(optional)

    def unknown_fields(self, features: Features) -> tuple[tuple[str, str], ...]:
        """Fields that this server would silently pass over, each with the feature that it lacks."""
        return tuple(
            (name, flag)
            for name, flag in FEATURE_OF_FIELD.items()
            if getattr(self, name) and not getattr(features, flag)
        )


def _digests(files: Mapping[str, Digest]) -> dict[str, object]:
    return {name: str(digest) for name, digest in files.items()}


def _name_of(fields: Fields) -> str:
    name = fields.text("name") or fields.text("model")
    if not name:
        raise ProtocolError(f"{fields.place}: name is missing, not a string", host=fields.host)
    return name


def _capabilities_of(fields: Fields) -> tuple[str, ...] | None:
    return fields.texts("capabilities") if fields.has("capabilities") else None
