"""The `parameters` text of `/api/show`, read back into values.

Pure. Easily missed: the values are in Go's syntax (`%#v`), numbers went through a float64 on the server, and a text
that stands alone looks like a list of one.
"""

from __future__ import annotations

import re
from typing import Final

Scalar = int | float | bool | str | None

_KEY_WIDTH: Final = 30
_ESCAPES: Final = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
}
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,400}")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def read_parameters(text: str) -> tuple[tuple[str, Scalar], ...]:
    """Name and value of each line of `parameters`, sorted by name, the order of equal names kept.

    A list (`stop`) has one line per item. Numbers are int when whole: `1e+06` is 1000000.
    """
    pairs = [_read_parameter(line) for line in text.split("\n") if line.strip()]
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def read_go_value(text: str) -> Scalar:
    """The value of Go's `%#v`: `"a\\n"`, `true`, `1e+06`, `<nil>`; the text itself for anything else."""
    text = text.strip()
    if len(text) >= 2 and text.startswith('"') and text.endswith('"'):
        return _ESCAPE.sub(_unescape, text[1:-1])
    if text in ("true", "false"):
        return text == "true"
    if text in ("<nil>", "interface {}(nil)"):
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() else number
    return text


def _read_parameter(line: str) -> tuple[str, Scalar]:
    """Ollama prints `%-30s %#v`: the name is padded, a longer name ends at the first blank after it."""
    if line[_KEY_WIDTH : _KEY_WIDTH + 1] == " ":
        return line[:_KEY_WIDTH].rstrip(), read_go_value(line[_KEY_WIDTH + 1 :])
    name, _, value = line.partition(" ")
    return name, read_go_value(value)


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        number = int(code, 16)
        return chr(number) if number <= 0x10FFFF else "\ufffd"
    return _ESCAPES.get(match[4], match[4])
