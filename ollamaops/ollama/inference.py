"""Generate, chat and embed over the wire, as frozen values.

Unknown fields are passed over, used ones are strict. Durations are seconds (Ollama writes nanoseconds). An answer
and one chunk of a streamed answer have the same shape.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from msgspec import Struct, field

from ollamaops.names import ModelName
from ollamaops.ollama.fields import Fields
from ollamaops.ollama.messages import Json, Message, keep_given, render_keep_alive
from ollamaops.settings import ParameterValue


class Timings(Struct, frozen=True, kw_only=True):
    """How long an answer took, in seconds, and how many tokens it was. Zeros on every chunk but the last."""

    total_s: float = 0.0
    load_s: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    generate_s: float = 0.0

    @classmethod
    def read(cls, fields: Fields) -> Timings:
        return cls(
            total_s=fields.seconds("total_duration"),
            load_s=fields.seconds("load_duration"),
            prompt_tokens=fields.count("prompt_eval_count"),
            tokens=fields.count("eval_count"),
            generate_s=fields.seconds("eval_duration"),
        )

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second, 0 when nothing was generated."""
        return self.tokens / self.generate_s if self.generate_s > 0 else 0.0


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """`/api/generate`. `format` is `json` or a JSON schema; `keep_alive_s` negative means forever."""

    model: ModelName
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    images: tuple[bytes, ...] = ()
    format: str | Mapping[str, object] | None = None
    options: Mapping[str, ParameterValue] = field(default_factory=dict)
    context: tuple[int, ...] = ()
    raw: bool = False
    think: bool | str | None = None
    keep_alive_s: float | None = None

    def to_json(self) -> Json:
        """The body, without `stream`."""
        optional = {
            "prompt": self.prompt,
            "suffix": self.suffix,
            "system": self.system,
            "template": self.template,
            "images": [base64.b64encode(image).decode() for image in self.images],
            "context": list(self.context),
            "raw": self.raw or None,
        }
        asked = _asked(self.format, self.options, self.think, self.keep_alive_s)
        return {"model": self.model.display} | keep_given(optional) | asked

    def read(self, fields: Fields) -> GenerateAnswer:
        """What a server answers to this, whole or a piece."""
        return GenerateAnswer.read(fields)


class ChatRequest(Struct, frozen=True, kw_only=True):
    """`/api/chat`. `tools` are JSON descriptions of functions, as Ollama's API guide has them."""

    model: ModelName
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, object], ...] = ()
    format: str | Mapping[str, object] | None = None
    options: Mapping[str, ParameterValue] = field(default_factory=dict)
    think: bool | str | None = None
    keep_alive_s: float | None = None

    def to_json(self) -> Json:
        """The body, without `stream`."""
        body: dict[str, object] = {
            "model": self.model.display,
            "messages": [message.to_json() for message in self.messages],
        }
        asked = _asked(self.format, self.options, self.think, self.keep_alive_s)
        return body | keep_given({"tools": [dict(tool) for tool in self.tools]}) | asked

    def read(self, fields: Fields) -> ChatAnswer:
        """What a server answers to this, whole or a piece."""
        return ChatAnswer.read(fields)


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """`/api/embed`. `truncate` None leaves it to the server, which cuts; `dimensions` needs 0.11.11."""

    model: ModelName
    inputs: tuple[str, ...] = ()
    truncate: bool | None = None
    dimensions: int | None = None
    options: Mapping[str, ParameterValue] = field(default_factory=dict)
    keep_alive_s: float | None = None

    def to_json(self) -> Json:
        body: dict[str, object] = {"model": self.model.display, "input": list(self.inputs)}
        optional = {"truncate": self.truncate, "dimensions": self.dimensions}
        return body | keep_given(optional) | _asked(None, self.options, None, self.keep_alive_s)

    def read(self, fields: Fields) -> EmbedAnswer:
        """What a server answers to this, all of it."""
        return EmbedAnswer.read(fields)


class GenerateAnswer(Struct, frozen=True, kw_only=True):
    """The answer of generate, or one chunk of it. `done_reason`: stop, length, load, unload."""

    model: str = ""
    response: str = ""
    thinking: str = ""
    done: bool = False
    done_reason: str = ""
    context: tuple[int, ...] = ()
    timings: Timings = Timings()

    @classmethod
    def read(cls, fields: Fields) -> GenerateAnswer:
        return cls(
            model=fields.text("model"),
            response=fields.text("response"),
            thinking=fields.text("thinking"),
            done=fields.flag("done"),
            done_reason=fields.text("done_reason"),
            context=tuple(number for number in fields.items("context") if isinstance(number, int)),
            timings=Timings.read(fields),
        )


class ChatAnswer(Struct, frozen=True, kw_only=True):
    """The answer of chat, or one chunk of it."""

    model: str = ""
    message: Message = field(default_factory=lambda: Message("assistant"))
    done: bool = False
    done_reason: str = ""
    timings: Timings = Timings()

    @classmethod
    def read(cls, fields: Fields) -> ChatAnswer:
        return cls(
            model=fields.text("model"),
            message=Message.read(fields.inner("message")),
            done=fields.flag("done"),
            done_reason=fields.text("done_reason"),
            timings=Timings.read(fields),
        )


class EmbedAnswer(Struct, frozen=True, kw_only=True):
    """The answer of embed: one vector per input."""

    model: str = ""
    embeddings: tuple[tuple[float, ...], ...] = ()
    timings: Timings = Timings()

    @classmethod
    def read(cls, fields: Fields) -> EmbedAnswer:
        vectors = tuple(_vector(fields, row) for row in fields.items("embeddings"))
        return cls(model=fields.text("model"), embeddings=vectors, timings=Timings.read(fields))


def _asked(
    format_: str | Mapping[str, object] | None,
    options: Mapping[str, ParameterValue],
    think: bool | str | None,
    keep_alive_s: float | None,
) -> dict[str, object]:
    """What generate, chat and embed have in common; False and 0 count as given."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    asked: dict[str, object] = {"options": listed} if listed else {}
    if format_ is not None:
        asked["format"] = format_ if isinstance(format_, str) else dict(format_)
    if think is not None:
        asked["think"] = think
    if keep_alive_s is not None:
        asked["keep_alive"] = render_keep_alive(keep_alive_s)
    return asked


def _vector(fields: Fields, row: object) -> tuple[float, ...]:
    if not isinstance(row, list) or not all(isinstance(x, int | float) for x in row):
        raise fields.wrong("embeddings", "a list of lists of numbers")
    return tuple(float(x) for x in row)
