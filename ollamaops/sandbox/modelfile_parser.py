"""The parser of the servers up to 0.5.4, which were sent a Modelfile: text to commands, or the server's refusal.

Written from what servers were seen to do; it shares nothing with the parser in `ollamaops.manifest`. Ollama's
parser drops every character that Go cannot print, knows no escapes and no comments behind a value, and reads
past a closing quote unless that is the last thing on its line.

Source: Ollama 0.3.0 to 0.33.0, which differ only in the commands they know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

COMMANDS = ("from", "license", "template", "system", "adapter", "parameter", "message")
"""The commands up to 0.5.4, in the order in which the refusal names them."""
_ROLES = ("system", "user", "assistant")
_BLANKS = " \t\r\n"
_SKIPPED = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_LETTERS = re.compile(r"[A-Za-z]*")
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_]*")
_LINE = re.compile(r"([^\r\n]*)([\r\n]?)")


class BadModelfile(ValueError):
    """A text that the server refuses, in its words. `line` is the number that servers from 0.4.2 on put in front.

    They count CR and LF separately, and also the line end at which they give up.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse_modelfile(text: str, commands: Sequence[str] = COMMANDS) -> list[tuple[str, str]]:
    """Name and value of each command, in order. BadModelfile.

    FROM is called `model` and PARAMETER by the parameter's name; a message's value is `role: text`.
    """
    text = text.removeprefix("\ufeff")
    found: list[tuple[str, str]] = []
    place = _end(_SKIPPED, text, 0)
    while place < len(text):
        name, prefix, place = _head(text, place, commands)
        value, place = _value(text, place)
        found.append((name, prefix + value))
        place = _end(_SKIPPED, text, place)
    if all(name != "model" for name, _ in found):
        raise BadModelfile("no FROM line")
    return found


def _head(text: str, start: int, commands: Sequence[str]) -> tuple[str, str, int]:
    """The command at `start`, what its value begins with, and where the rest of the value does."""
    # any character opens a word; one that Go cannot print is dropped from it again
    end = _end(_LETTERS, text, start + 1)
    command = (_printable(text[start]) + text[start + 1 : end]).lower()
    is_followed = _is_followed_by_blank(text, end)
    if command not in commands or not is_followed:
        raise BadModelfile(f"command must be one of {_listed(commands)}", _line_of(text, end))
    if command == "parameter":
        start, end = end + 1, _end(_PARAMETER_NAME, text, end + 1)
        if not _is_followed_by_blank(text, end):
            raise BadModelfile(f"unexpected EOF: {text[start:end]}")
        return text[start:end], "", end + 1
    if command == "message":
        start, end = end + 1, _end(_LETTERS, text, end + 1)
        is_followed = _is_followed_by_blank(text, end)
        if text[start:end] not in _ROLES or not is_followed:
            raise BadModelfile(f"message role must be one of {_listed(_ROLES)}", _line_of(text, end))
        return "message", f"{text[start:end]}: ", end + 1
    return "model" if command == "from" else command, "", end + 1


def _is_followed_by_blank(text: str, end: int) -> bool:
    if end >= len(text):
        raise BadModelfile("unexpected EOF")
    return text[end] in " \t"


def _value(text: str, place: int) -> tuple[str, int]:
    """The value at `place`, without its quotes, and where its last line ends."""
    kept, quote = "", ""
    lines: list[str] = []
    while True:
        found = _LINE.match(text, place)
        assert found is not None, "matches the empty text too"
        kept = "".join(map(_printable, found[1]))
        if not lines:
            first = kept.lstrip(_BLANKS)
            quote = next(quote for quote in ('"""', '"', "") if first.startswith(quote))
        is_long_enough = lines or len(kept.strip(_BLANKS)) >= 2 * len(quote)
        if is_long_enough and kept.rstrip(_BLANKS).endswith(quote):
            value = "".join([*lines, kept]).strip(_BLANKS)
            return value[len(quote) : len(value) - len(quote)], found.end()
        if not found[2]:
            raise BadModelfile("unexpected EOF")
        lines.append(kept + found[2])
        place = found.end()


def _end(shape: re.Pattern[str], text: str, place: int) -> int:
    """Where the run of `shape`, which may be empty, ends."""
    found = shape.match(text, place)
    assert found is not None, "matches the empty text too"
    return found.end()


def _printable(character: str) -> str:
    """The character if Go's `strconv.IsPrint` takes it, or a tab; else nothing."""
    is_kept = character in " \t" or unicodedata.category(character)[0] in "LMNPS"
    return character if is_kept else ""


def _line_of(text: str, end: int) -> int:
    seen = text[: end + 1]
    return seen.count("\n") + seen.count("\r") + 1


def _listed(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])}, or {quoted[-1]}"
