"""Turns of a chat and values of parameters, which requests of every kind hold.

A message that `show` lists for a model and one of a chat have the same shape.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from msgspec import Struct, field

from ollamaops.ollama.fields import Fields

Json = Mapping[str, object]


class ToolCall(Struct, frozen=True, kw_only=True):
    """A function that the model wants called."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    id: str = ""

    @classmethod
    def read(cls, fields: Fields) -> ToolCall:
        function = fields.inner("function")
        return cls(name=function.text("name"), arguments=function.mapping("arguments"), id=fields.text("id"))

    def to_json(self) -> Json:
        call: dict[str, object] = {"function": {"name": self.name, "arguments": dict(self.arguments)}}
        return call | ({"id": self.id} if self.id else {})


class Message(Struct, frozen=True):
    """One turn of a chat. `images` are raw bytes."""

    role: str
    content: str = ""
    images: tuple[bytes, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Message:
        return cls(
            fields.text("role"),
            fields.text("content"),
            thinking=fields.text("thinking"),
            tool_calls=fields.objects("tool_calls", ToolCall.read),
            tool_name=fields.text("tool_name"),
        )

    def to_json(self) -> Json:
        optional = {
            "images": [base64.b64encode(image).decode() for image in self.images],
            "thinking": self.thinking,
            "tool_calls": [call.to_json() for call in self.tool_calls],
            "tool_name": self.tool_name,
        }
        return {"role": self.role, "content": self.content} | keep_given(optional)


def keep_given(optional: Mapping[str, object]) -> dict[str, object]:
    """Without what is None, an empty text, list or object."""
    return {
        name: value for name, value in optional.items() if value is not None and value not in ("", [], {})
    }


def render_keep_alive(seconds: float) -> int | str:
    """`keep_alive` as every version takes it: -1 forever, whole seconds as a number, parts as `1500ms`."""
    if seconds < 0 or seconds == float("inf"):
        return -1
    if float(seconds).is_integer():
        return int(seconds)
    return f"{max(1, round(seconds * 1000))}ms"
