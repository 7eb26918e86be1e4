"""Bodies of requests as typed values, and Go's complaints about what does not fit.

As in Go's `encoding/json`, keys match in any case, `null` is as if absent, unknown keys are ignored, and only the
first value of a body is read. The requests of generate, chat and embed are built in `inference_requests`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollamaops.sandbox.responses import Refusal, bad_request

_SYNTAX_ERRORS = {
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Expecting value": "looking for beginning of value",
    "Invalid control character at": "in string literal",
}
"""Python's messages in Go's words."""
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")


def decode_body(body: bytes) -> object:
    """The first JSON value of a body. Refusal 400 in the server's words."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise bad_request("missing request body")
    try:
        value: object = _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        char, where = text[error.pos : error.pos + 1], _SYNTAX_ERRORS.get(error.msg)
        shown = {"'": r"'\''", '"': "'\"'"}.get(char, f"'{char}'" if char.isprintable() else repr(char))
        complaint = f"invalid character {shown} {where}" if char and where else "unexpected EOF"
        raise bad_request(complaint) from error
    except (RecursionError, ValueError) as error:  # ValueError: more digits than Python reads
        raise bad_request("exceeded max depth") from error
    return value


def _refuse_constant(name: str) -> object:
    raise bad_request(f"invalid character '{name[0]}' looking for beginning of value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


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


class Fields:
    """Typed access to the fields of a decoded request; a wrong type is a Refusal 400 in Go's words."""

    def __init__(self, struct: str, value: object) -> None:
        if value is not None and not isinstance(value, Mapping):
            raise bad_request(f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}")
        self._struct = struct
        self._values = {str(key).lower(): item for key, item in (value or {}).items()}

    def get(self, key: str) -> object:
        return self._values.get(key)

    def text(self, *keys: str) -> str:
        """The first of these texts that is not empty."""
        return next(filter(None, [self._text(key) for key in keys]), "")

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

    def integer(self, key: str) -> int:
        value = self.get(key)
        return 0 if value is None else self._integer(key, value)

    def _integer(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "int")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        if self.get(key) is None:
            return None
        return tuple(self._integer(key, item) for item in self._list(key, "[]int"))

    def mapping(self, key: str, go_type: str = "map[string]interface {}") -> dict[str, object] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, go_type)
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

    def objects(self, key: str, go_type: str, item_type: str) -> list[dict[str, object]]:
        """A list of objects, empty when it is not given."""
        items = self._list(key, go_type)
        for item in items:
            if not isinstance(item, dict):
                raise self._wrong(key, item, item_type)
        return [item for item in items if isinstance(item, dict)]

    def images(self, key: str) -> tuple[bytes, ...]:
        """Images in base64, as bytes."""
        return tuple(self._image(key, item) for item in self._list(key, "[]api.ImageData"))

    def _image(self, key: str, item: object) -> bytes:
        if not isinstance(item, str):
            raise self._wrong(key, item, "api.ImageData")
        try:
            return base64.b64decode(item, validate=True)
        except (binascii.Error, ValueError) as error:
            bad = _NOT_BASE64.search(item)
            place = bad.start() if bad else len(item) // 4 * 4
            raise bad_request(f"illegal base64 data at input byte {place}") from error

    def _list(self, key: str, go_type: str) -> list[object]:
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self._wrong(key, value, go_type)
        return value or []

    def _wrong(self, key: str, value: object, go_type: str) -> Refusal:
        return bad_request(
            f"json: cannot unmarshal {kind_of(value)} into Go struct field {self._struct}.{key} of type {go_type}"
        )


@dataclass(frozen=True)
class CreateRequest:
    """POST /api/create of both eras: `modelfile` and `path` of the old one, the rest of the new one."""

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
    fields = Fields("CreateRequest", decode_body(body))
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
        messages=[_message(item) for item in fields.objects("messages", "[]api.Message", "api.Message")],
        renderer=fields.text("renderer"),
        parser=fields.text("parser"),
        requires=fields.text("requires"),
        remote_host=fields.text("remote_host"),
        info=fields.mapping("info"),
        draft_files=fields.texts_by_key("draft_files"),
    )


def _message(item: Mapping[str, object]) -> dict[str, object]:
    """A chat message, its keys and its role in lower case: role, content, then what else is given."""
    fields = Fields("Message", item)
    message: dict[str, object] = {"role": fields.text("role").lower(), "content": fields.text("content")}
    others = {key.lower(): value for key, value in item.items() if value}
    return message | {key: value for key, value in others.items() if key not in message}


@dataclass(frozen=True)
class ModelRequest:
    """POST /api/pull, /api/push and DELETE /api/delete."""

    model: str
    insecure: bool
    stream: bool


def read_model_request(body: bytes, struct: str) -> ModelRequest:
    """The request in a body, called `struct` in complaints. Refusal 400."""
    fields = Fields(struct, decode_body(body))
    return ModelRequest(
        fields.text("model", "name"), fields.flag("insecure") is True, fields.flag("stream") is not False
    )
