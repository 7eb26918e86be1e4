"""Reading foreign JSON: strict on what is used, blind to the rest.

A value of the wrong type is a ProtocolError that names the field; an absent one and null are the same thing, as
they are for the Go programs that write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ollamaops.errors import InvalidValue, ProtocolError
from ollamaops.names import Digest

T = TypeVar("T")


class Fields:
    """A JSON object and where it came from (`gpu-1: list models: models[3]`), for messages."""

    def __init__(self, value: object, place: str = "answer", host: str = "") -> None:
        self.place = place
        self.host = host
        if not isinstance(value, Mapping):
            raise self._error(place, "an object", value)
        self.values: Mapping[str, object] = value

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._error(self._at(name), "a string", value)
        return value

    def count(self, name: str, default: int = 0) -> int:
        """An integer; a fraction of nothing (`3.0`) is one too."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(self._at(name), "an integer", value)
        return value

    def seconds(self, name: str) -> float:
        """A duration, which Ollama writes in nanoseconds."""
        return self.count(name) / 1e9

    def flag(self, name: str) -> bool:
        """A boolean, False when absent."""
        value = self.values.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._error(self._at(name), "true or false", value)
        return value

    def digest(self, name: str) -> Digest:
        """A SHA-256 digest, with or without `sha256:`."""
        text = self.text(name)
        try:
            return Digest.parse(text)
        except InvalidValue as error:
            raise self._error(self._at(name), "a digest", text) from error

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty when absent."""
        return tuple(self._text_item(name, index, item) for index, item in enumerate(self.items(name)))

    def items(self, name: str) -> Iterable[object]:
        """A list of anything, empty when absent."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._error(self._at(name), "a list", value)
        return value

    def objects(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of objects, each read by `read`."""
        return tuple(
            read(Fields(item, f"{self._at(name)}[{index}]", self.host))
            for index, item in enumerate(self.items(name))
        )

    def inner(self, name: str) -> Fields:
        """An object; one without fields when absent."""
        value = self.values.get(name)
        return Fields({} if value is None else value, self._at(name), self.host)

    def mapping(self, name: str) -> Mapping[str, object]:
        """An object as it is, empty when absent."""
        return self.inner(name).values

    def wrong(self, name: str, wanted: str) -> ProtocolError:
        """The error for a field that is not what it should be."""
        return self._error(self._at(name), wanted, self.values.get(name))

    def _text_item(self, name: str, index: int, item: object) -> str:
        if not isinstance(item, str):
            raise self._error(f"{self._at(name)}[{index}]", "a string", item)
        return item

    def _at(self, name: str) -> str:
        return f"{self.place}: {name}"

    def _error(self, place: str, wanted: str, value: object) -> ProtocolError:
        found = _KINDS.get(type(value), type(value).__name__)
        return ProtocolError(f"{place} is {found}, not {wanted}", host=self.host)


_KINDS = {
    type(None): "missing",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
