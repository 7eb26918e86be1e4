"""Requests of generate, chat, embed and embeddings, typed or refused; this comes before the model is looked for.

Their `keep_alive` and `options` are read here too. A bare "10" is refused as `keep_alive` although 10 is not,
and servers before 0.11.8 cut fractions off and take everything below one second as "unload now". Options of a
wrong type fail when the model is loaded (500), unknown ones are ignored.

Source: Ollama 0.3.4 to 0.33.0, `api.Duration` and `api.Options`; Go's `time.ParseDuration`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ollamaops.sandbox.behavior import NEWEST_RULES, InferenceRules
from ollamaops.sandbox.request_bodies import Fields
from ollamaops.sandbox.responses import Refusal

_THINK_LEVELS = ("high", "medium", "low")
_THINK_WORDS = '"high", "medium", "low", true, or false'

FOREVER_S = math.inf
_LONGEST_NS = 2**63 - 1
_PART = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_INTEGERS = (
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu num_thread main_gpu "
    "draft_num_predict"
)
_FLOATS = "top_p min_p typical_p tfs_z temperature repeat_penalty presence_penalty frequency_penalty"
_FLAGS = "use_mmap"
_GO_TYPES = {
    **dict.fromkeys(_INTEGERS.split(), "integer"),
    **dict.fromkeys(_FLOATS.split(), "float32"),
    **dict.fromkeys(_FLAGS.split(), "boolean"),
    "stop": "array",
}


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
    fields = Fields("GenerateRequest", body)
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
    fields = Fields("ChatRequest", body)
    return ChatRequest(
        model=fields.text("model"),
        messages=tuple(
            read_message(message) for message in fields.objects("messages", "[]api.Message", "api.Message")
        ),
        tools=tuple(fields.objects("tools", "api.Tools", "api.Tool")),
        stream=fields.flag("stream") is not False,
        format=_format(fields, rules),
        options=fields.mapping("options"),
        think=_think(fields.get("think")) if rules.thinking else None,
        keep_alive_s=_keep_alive(fields, rules),
    )


def read_message(value: Mapping[str, object]) -> ChatMessage:
    """A message from a chat body or from a model's messages layer."""
    fields = Fields("Message", value)
    return ChatMessage(
        role=fields.text("role").lower(),
        content=fields.text("content"),
        images=fields.images("images"),
        tool_name=fields.text("tool_name"),
    )


def read_embed(body: object, rules: InferenceRules = NEWEST_RULES) -> EmbedRequest:
    """The request in a decoded body; Refusal 400 in the server's words."""
    fields = Fields("EmbedRequest", body)
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
    fields = Fields("EmbeddingRequest", body)
    return EmbeddingsRequest(
        model=fields.text("model"),
        prompt=fields.text("prompt"),
        options=fields.mapping("options"),
        keep_alive_s=_keep_alive(fields, rules),
    )


def _keep_alive(fields: Fields, rules: InferenceRules) -> float | None:
    try:
        return parse_keep_alive(fields.get("keep_alive"), fractions=rules.fractional_keep_alive)
    except InvalidKeepAlive as error:
        raise Refusal(400, str(error)) from error


def _format(fields: Fields, rules: InferenceRules) -> object:
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


# --- keep_alive


class InvalidKeepAlive(ValueError):
    """A `keep_alive` that Ollama refuses with status 400; the message is Ollama's."""


def parse_keep_alive(value: object, *, fractions: bool = True) -> float | None:
    """Seconds to stay loaded after the answer: `FOREVER_S` for a negative value, None for the server's default.

    `fractions` is False for servers before 0.11.8, which drop what is below a whole second of a number.
    Raises InvalidKeepAlive with the server's words.
    """
    match value:
        case None:
            return None
        case bool():
            raise InvalidKeepAlive("Unsupported type: 'bool'")
        case int() | float():
            seconds = float(value) if fractions else float(math.trunc(value))
            return FOREVER_S if value < 0 else seconds
        case str():
            seconds = parse_go_duration(value)
            return FOREVER_S if seconds < 0 else seconds
        case list():
            raise InvalidKeepAlive("Unsupported type: '[]interface {}'")
        case _:
            raise InvalidKeepAlive("Unsupported type: 'map[string]interface {}'")


def is_unload(keep_alive_s: float | None, *, fractions: bool = True) -> bool:
    """Whether an empty request with this `keep_alive` asks to unload the model at once."""
    if keep_alive_s is None or keep_alive_s == FOREVER_S:
        return False
    return keep_alive_s == 0 if fractions else keep_alive_s < 1


def parse_go_duration(text: str) -> float:
    """Seconds in a Go duration such as `1h30m`, `-1.5s`, `300ms` or `0`; InvalidKeepAlive in Go's words."""
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return 0.0
    if not body:
        raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
    total_ns = _sum_of_parts(body, text)
    if total_ns > _LONGEST_NS:
        raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
    return (-total_ns if text[0] == "-" else total_ns) / 10**9


def _sum_of_parts(body: str, text: str) -> int:
    total_ns, place = 0, 0
    while place < len(body):
        part = _PART.match(body, place)
        whole, fraction, unit = part.groups("") if part else ("", "", "")
        if not whole and len(fraction) < 2:
            raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
        if not unit:
            raise InvalidKeepAlive(f"time: missing unit in duration {_quoted(text)}")
        if unit not in _UNIT_NS:
            raise InvalidKeepAlive(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
        total_ns += int(whole or "0") * _UNIT_NS[unit] + int(float("0" + fraction) * _UNIT_NS[unit])
        place += len(whole) + len(fraction) + len(unit)
    return total_ns


def _quoted(text: str) -> str:
    """In Go's quotes; bytes that are not printable ASCII are escaped as UTF-8, as `time` does."""
    printable = "".join(
        f"\\{char}" if char in '"\\' else char if " " <= char < "\x7f" else _escaped(char) for char in text
    )
    return f'"{printable}"'


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))


# --- options


def option_problem(options: Mapping[str, object]) -> str | None:
    """The server's words about the first option of a wrong type, or None."""
    for name, value in options.items():
        if value is not None and name in _GO_TYPES and not _fits(_GO_TYPES[name], value):
            return f'option "{name}" must be of type {_GO_TYPES[name]}'
        if name == "stop" and isinstance(value, list) and not all(isinstance(item, str) for item in value):
            return 'option "stop" must be of an array of strings'
    return None


def integer_option(options: Mapping[str, object], name: str, otherwise: int) -> int:
    """A whole option that passed `option_problem`, cut like Go's conversion, or the default."""
    value = options.get(name)
    return int(value) if isinstance(value, (int, float)) else otherwise


def stop_sequences(options: Mapping[str, object]) -> tuple[str, ...]:
    """The `stop` texts that are not empty."""
    value = options.get("stop")
    return tuple(str(item) for item in value if item) if isinstance(value, list) else ()


def _fits(go_type: str, value: object) -> bool:
    if go_type == "array":
        return isinstance(value, list)
    if go_type == "boolean":
        return isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
