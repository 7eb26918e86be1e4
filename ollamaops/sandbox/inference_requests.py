"""JSON bodies of generate, chat, embed and embeddings → typed requests, or Ollama's refusal.

Decides what Ollama decides before it looks for the model: field types (in the words of Go's decoder), `keep_alive`,
`think`, base64 images, kinds of `input`. Keys match without regard to case, `null` is "not given", unknown keys are
ignored, as Go's encoding/json does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ollamaops.sandbox.keep_alive import InvalidKeepAlive, parse_keep_alive

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")
_THINK_LEVELS = ("high", "medium", "low")
_THINK_WORDS = '"high", "medium", "low", true, or false'


class Refusal(Exception):
    """An error answer: HTTP `status` and Ollama's `text`.

    `late` tells that the real server finds out when its answer has begun: a line of a stream where it streams.
    """

    def __init__(self, status: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.late = late


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRules:
    """In what the servers differ; a default is the newest behavior, its comment the first version that has it."""

    empty_embed: bool = True  # 0.3.6: embed without input loads and answers `embeddings: []`
    unload_without_loading: bool = True  # 0.3.11
    schema_format: bool = True  # 0.5.0: `format` may be a JSON schema
    full_name_in_refusals: bool = True  # 0.5.2: `registry.ollama.ai/library/x:latest does not support tools`
    thinking: bool = True  # 0.9.0
    fractional_keep_alive: bool = True  # 0.11.8
    dimensions: bool = True  # 0.11.11
    tool_call_ids: bool = True  # 0.12.10
    strict_modalities: bool = (
        True  # 0.30.0: images to a text model and embeddings of a chat model are refused
    )


NEWEST_RULES = InferenceRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """POST /api/generate. `format` is None, "json" or a schema; `keep_alive_s` as parse_keep_alive gives it."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[int, ...] | None = None
    stream: bool = True
    raw: bool = False
    format: object = None
    images: tuple[bytes, ...] = ()
    options: Mapping[str, object] | None = None
    think: bool | str | None = None
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a chat, or one stored in a model."""

    role: str
    content: str = ""
    images: tuple[bytes, ...] = ()
    tool_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """POST /api/chat."""

    model: str = ""
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Mapping[str, object], ...] = ()
    stream: bool = True
    format: object = None
    options: Mapping[str, object] | None = None
    think: bool | str | None = None
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """POST /api/embed; `inputs` is empty when there is nothing to embed."""

    model: str = ""
    inputs: tuple[str, ...] = ()
    truncate: bool = True
    dimensions: int = 0
    options: Mapping[str, object] | None = None
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """POST /api/embeddings, the older form: one prompt, one vector."""

    model: str = ""
    prompt: str = ""
    options: Mapping[str, object] | None = None
    keep_alive_s: float | None = None


def read_generate(body: object, rules: InferenceRules = NEWEST_RULES) -> GenerateRequest:
    """The request in a decoded body; Refusal 400 in the server's words."""
    fields = _Fields("GenerateRequest", body)
    return GenerateRequest(
        model=fields.text("model"),
        prompt=fields.text("prompt"),
        suffix=fields.text("suffix"),
        system=fields.text("system"),
        template=fields.text("template"),
        context=fields.integers("context"),
        stream=fields.flag("stream") is not False,
        raw=fields.flag("raw") is True,
        format=_format(fields, rules),
        images=fields.images("images"),
        options=fields.mapping("options"),
        think=_think(fields.get("think")) if rules.thinking else None,
        keep_alive_s=_keep_alive(fields, rules),
    )


def read_chat(body: object, rules: InferenceRules = NEWEST_RULES) -> ChatRequest:
    """The request in a decoded body; Refusal 400 in the server's words."""
    fields = _Fields("ChatRequest", body)
    return ChatRequest(
        model=fields.text("model"),
        messages=tuple(read_message(message) for message in fields.objects("messages", "[]api.Message")),
        tools=tuple(fields.objects("tools", "api.Tools")),
        stream=fields.flag("stream") is not False,
        format=_format(fields, rules),
        options=fields.mapping("options"),
        think=_think(fields.get("think")) if rules.thinking else None,
        keep_alive_s=_keep_alive(fields, rules),
    )


def read_message(value: Mapping[str, object]) -> ChatMessage:
    """A message from a chat body or from a model's messages layer."""
    fields = _Fields("Message", value)
    return ChatMessage(
        role=fields.text("role").lower(),
        content=fields.text("content"),
        images=fields.images("images"),
        tool_name=fields.text("tool_name"),
    )


def read_embed(body: object, rules: InferenceRules = NEWEST_RULES) -> EmbedRequest:
    """The request in a decoded body; Refusal 400 in the server's words."""
    fields = _Fields("EmbedRequest", body)
    truncate = fields.flag("truncate")
    return EmbedRequest(
        model=fields.text("model"),
        inputs=_inputs(fields.get("input"), rules),
        truncate=truncate is not False,
        dimensions=fields.integer("dimensions") if rules.dimensions else 0,
        options=fields.mapping("options"),
        keep_alive_s=_keep_alive(fields, rules),
    )


def read_embeddings(body: object, rules: InferenceRules = NEWEST_RULES) -> EmbeddingsRequest:
    """The request in a decoded body; Refusal 400 in the server's words."""
    fields = _Fields("EmbeddingRequest", body)
    return EmbeddingsRequest(
        model=fields.text("model"),
        prompt=fields.text("prompt"),
        options=fields.mapping("options"),
        keep_alive_s=_keep_alive(fields, rules),
    )


def _keep_alive(fields: _Fields, rules: InferenceRules) -> float | None:
    try:
        return parse_keep_alive(fields.get("keep_alive"), fractions=rules.fractional_keep_alive)
    except InvalidKeepAlive as error:
        raise Refusal(400, str(error)) from error


def _format(fields: _Fields, rules: InferenceRules) -> object:
    if rules.schema_format:
        value = fields.get("format")
        return None if value == "" else value
    text = fields.text("format")
    if text not in ("", "json"):
        raise Refusal(400, 'format must be empty or "json"')
    return text or None


def _think(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise Refusal(400, f"think must be a boolean or string ({_THINK_WORDS})")
    if value not in _THINK_LEVELS:
        raise Refusal(400, f'invalid think value: "{value}" (must be {_THINK_WORDS})')
    return value


def _inputs(value: object, rules: InferenceRules) -> tuple[str, ...]:
    if value is None and rules.empty_embed:
        return ()
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise Refusal(400, "invalid input type")


class _Fields:
    """Typed access to a body's keys; a wrong type is a Refusal in the words of Go's decoder."""

    def __init__(self, struct: str, body: object) -> None:
        if not isinstance(body, Mapping):
            raise Refusal(400, f"json: cannot unmarshal {_kind(body)} into Go value of type api.{struct}")
        self._struct = struct
        self._values = {str(key).lower(): value for key, value in body.items()}

    def get(self, key: str) -> object:
        return self._values.get(key)

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(key, value, "string")
        return value

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "bool")
        return value

    def integer(self, key: str) -> int:
        value = self.get(key)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "int")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong(key, value, "[]int")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int):
                raise self._wrong(key, item, "int")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, object] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(key, value, "map[string]interface {}")
        return value

    def objects(self, key: str, go_type: str) -> list[Mapping[str, object]]:
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, value, go_type)
        for item in value:
            if not isinstance(item, Mapping):
                raise self._wrong(key, item, go_type.removeprefix("[]").replace("api.Tools", "api.Tool"))
        return value

    def images(self, key: str) -> tuple[bytes, ...]:
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._wrong(key, value, "[]api.ImageData")
        return tuple(self._image(key, item) for item in value)

    def _image(self, key: str, item: object) -> bytes:
        if not isinstance(item, str):
            raise self._wrong(key, item, "api.ImageData")
        try:
            return base64.b64decode(item, validate=True)
        except (binascii.Error, ValueError) as error:
            bad = _NOT_BASE64.search(item)
            place = bad.start() if bad else len(item) // 4 * 4
            raise Refusal(400, f"illegal base64 data at input byte {place}") from error

    def _wrong(self, key: str, value: object, go_type: str) -> Refusal:
        return Refusal(
            400,
            f"json: cannot unmarshal {_kind(value)} into Go struct field {self._struct}.{key} of type {go_type}",
        )


def _kind(value: object) -> str:
    """What Go's decoder calls a JSON value; a number that is not whole comes with its digits."""
    match value:
        case bool():
            return "bool"
        case int():
            return "number"
        case float():
            return f"number {value}"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
