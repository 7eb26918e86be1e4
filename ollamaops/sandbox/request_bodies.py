"""Bodies of management requests → typed values, with Go's complaints about what does not fit.

Decides what `encoding/json` decides: keys match in any case, `null` is as if absent, unknown keys are ignored, only
the first value of the body is read. The bodies of generate, chat and embed are `inference_requests`' business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollamaops.sandbox.inference_requests import Refusal
from ollamaops.sandbox.responses import bad_request

_WORD = {"t": "true", "f": "false", "n": "null"}


def decode_body(body: bytes) -> object:
    """The first JSON value of a body. Refusal 400 in the server's words."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise bad_request("missing request body")
    try:
        value: object = _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError) as error:
        raise bad_request(_Scanner(text).complaint()) from error
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _SyntaxError(Exception):
    """What Go says of a text that is not JSON."""


class _Scanner:
    """Finds the place where Go's scanner gives up. Only used for texts that are known to be wrong."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0

    def complaint(self) -> str:
        try:
            self._value()
        except _SyntaxError as error:
            return str(error)
        return "unexpected EOF"

    def _peek(self) -> str:
        while self._text[self._position : self._position + 1] in {" ", "\t", "\r", "\n"}:
            self._position += 1
        if self._position >= len(self._text):
            raise _SyntaxError("unexpected EOF")
        return self._text[self._position]

    def _fail(self, where: str) -> _SyntaxError:
        char = self._text[self._position]
        shown = {"'": r"'\''", '"': "'\"'"}.get(char, f"'{char}'" if char.isprintable() else repr(char))
        return _SyntaxError(f"invalid character {shown} {where}")

    def _value(self) -> None:
        char = self._peek()
        if char == "{":
            self._object()
        elif char == "[":
            self._array()
        elif char == '"':
            self._string()
        elif char in _WORD:
            self._word(_WORD[char])
        elif char == "-" or char.isdigit():
            match = re.compile(r"-?[0-9.eE+-]*").match(self._text, self._position)
            self._position = match.end() if match else self._position + 1
        else:
            raise self._fail("looking for beginning of value")

    def _word(self, word: str) -> None:
        for index, letter in enumerate(word):
            if self._position >= len(self._text):
                raise _SyntaxError("unexpected EOF")
            if self._text[self._position] != letter:
                raise self._fail(f"in literal {word} (expecting '{word[index]}')")
            self._position += 1

    def _string(self) -> None:
        self._position += 1
        while True:
            if self._position >= len(self._text):
                raise _SyntaxError("unexpected EOF")
            char = self._text[self._position]
            if char < " ":
                raise self._fail("in string literal")
            self._position += 2 if char == "\\" else 1
            if char == '"':
                return

    def _object(self) -> None:
        self._position += 1
        if self._peek() == "}":
            self._position += 1
            return
        while True:
            if self._peek() != '"':
                raise self._fail("looking for beginning of object key string")
            self._string()
            if self._peek() != ":":
                raise self._fail("after object key")
            self._position += 1
            self._value()
            if self._end_of_item("}", "after object key:value pair"):
                return

    def _array(self) -> None:
        self._position += 1
        if self._peek() == "]":
            self._position += 1
            return
        while True:
            self._value()
            if self._end_of_item("]", "after array element"):
                return

    def _end_of_item(self, end: str, where: str) -> bool:
        char = self._peek()
        if char not in {end, ","}:
            raise self._fail(where)
        self._position += 1
        return char == end


class Fields:
    """Typed access to the fields of a request; a wrong type is a Refusal 400 in Go's words."""

    def __init__(self, struct: str, body: bytes) -> None:
        value = decode_body(body)
        if value is not None and not isinstance(value, dict):
            raise bad_request(f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}")
        self._struct = struct
        self._values = {key.lower(): item for key, item in (value or {}).items()}

    def get(self, key: str) -> object:
        return self._values.get(key)

    def text(self, *keys: str) -> str:
        """The first of these texts that is not empty."""
        texts = [self._text(key) for key in keys]
        return next(filter(None, texts), "")

    def _text(self, key: str) -> str:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "string")
        return value or ""

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "bool")
        return value

    def texts_by_key(self, key: str) -> dict[str, str] | None:
        """A map of texts; None when it is not given, which is not the same as empty."""
        value = self.mapping(key, "map[string]string")
        if value is None:
            return None
        for item in value.values():
            if item is not None and not isinstance(item, str):
                raise self._wrong(key, item, "string")
        return {name: str(item or "") for name, item in value.items()}

    def mapping(self, key: str, go_type: str = "map[string]interface {}") -> dict[str, object] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, go_type)
        return value

    def messages(self, key: str) -> list[dict[str, object]]:
        """Chat messages, keys in lower case: the role (also in lower case), the content, then what else is given."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self._wrong(key, value, "[]api.Message")
        return [self._message(key, item) for item in value or ()]

    def _message(self, key: str, item: object) -> dict[str, object]:
        if not isinstance(item, dict):
            raise self._wrong(key, item, "api.Message")
        known = {name.lower(): value for name, value in item.items()}
        for name in ("role", "content"):
            if not isinstance(known.get(name, ""), str | None):
                kind = kind_of(known[name])
                raise bad_request(
                    f"json: cannot unmarshal {kind} into Go struct field Message.{name} of type string"
                )
        message: dict[str, object] = {
            "role": str(known.get("role") or "").lower(),
            "content": str(known.get("content") or ""),
        }
        return message | {name: item for name, item in known.items() if name not in message and item}

    def _wrong(self, key: str, value: object, go_type: str) -> Refusal:
        return bad_request(
            f"json: cannot unmarshal {kind_of(value)} into Go struct field {self._struct}.{key} of type {go_type}"
        )


def kind_of(value: object) -> str:
    """What Go's decoder calls a JSON value."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


@dataclass(frozen=True)
class CreateRequest:
    """POST /api/create of both eras: `modelfile` of the old one, the rest of the new one."""

    model: str
    stream: bool
    quantize: str
    modelfile: str = ""
    path: str = ""
    origin: str = ""
    files: Mapping[str, str] | None = None
    adapters: Mapping[str, str] | None = None
    template: str = ""
    system: str = ""
    license: object = None
    parameters: Mapping[str, object] | None = None
    messages: Sequence[dict[str, object]] = ()
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    info: Mapping[str, object] | None = None
    draft_files: Mapping[str, str] | None = None


def read_create(body: bytes) -> CreateRequest:
    """The request in a body. Refusal 400."""
    fields = Fields("CreateRequest", body)
    return CreateRequest(
        model=fields.text("model", "name"),
        stream=fields.flag("stream") is not False,
        quantize=fields.text("quantize", "quantization"),
        modelfile=fields.text("modelfile"),
        path=fields.text("path"),
        origin=fields.text("from"),
        files=fields.texts_by_key("files"),
        adapters=fields.texts_by_key("adapters"),
        template=fields.text("template"),
        system=fields.text("system"),
        license=fields.get("license"),
        parameters=fields.mapping("parameters"),
        messages=fields.messages("messages"),
        renderer=fields.text("renderer"),
        parser=fields.text("parser"),
        requires=fields.text("requires"),
        remote_host=fields.text("remote_host"),
        info=fields.mapping("info"),
        draft_files=fields.texts_by_key("draft_files"),
    )


@dataclass(frozen=True)
class ModelRequest:
    """POST /api/pull, /api/push and DELETE /api/delete."""

    model: str
    insecure: bool
    stream: bool


def read_model_request(body: bytes, struct: str) -> ModelRequest:
    """The request in a body, called `struct` in complaints. Refusal 400."""
    fields = Fields(struct, body)
    return ModelRequest(
        fields.text("model", "name"), fields.flag("insecure") is True, fields.flag("stream") is not False
    )
