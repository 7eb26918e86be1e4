"""The texts in an answer of `/api/show`, read back into values: `parameters` and `modelfile`.

They tell which blobs a model is made of and, as far as the text still shows it, its template, licenses and messages.

The two are printed differently. Values in `parameters` are in Go's syntax (`%#v`), and a text that stands alone looks
like a list of one. In `modelfile` nothing is escaped, so Ollama's own parser cannot read back what Ollama prints: a
value has quotes only if it spans lines or has outer spaces, and three only if it contains quotes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ollamaops.names import Digest

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

# `/` and `\\` alike: only the file's name counts
_BLOB: Final = re.compile(r'sha256[-:]([0-9a-f]{64})"*\Z')
_WORDS: Final = "FROM|ADAPTER|DRAFT|TEMPLATE|SYSTEM|RENDERER|PARSER|REQUIRES|LICENSE"
_COMMAND: Final = re.compile(
    rf"^(?P<word>{_WORDS}|PARAMETER (?P<parameter>\S*)|MESSAGE (?P<role>\S*)) ", re.MULTILINE
)
# a value in three quotes ends before the next command or at the end; one in single quotes has none inside
_CLOSES: Final = {
    '"""': re.compile(rf'"""(?=\n(?:{_WORDS}|PARAMETER|MESSAGE) |\n?\Z)'),
    '"': re.compile(r'"(?=\n|\Z)'),
}


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


class ShownModelfile(Struct, frozen=True, kw_only=True):
    """What a printed Modelfile says. Empty and None where it says nothing.

    `model` is the last weights layer, None for MLX models and cloud stubs; `projectors` are the other FROM lines;
    `parameters` are (name, printed text), messages (role, content).
    """

    model: Digest | None = None
    projectors: tuple[Digest, ...] = ()
    adapters: tuple[Digest, ...] = ()
    drafts: tuple[Digest, ...] = ()
    template: str | None = None
    system: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    licenses: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    messages: tuple[tuple[str, str], ...] = ()


def parse_shown_modelfile(text: str, known: Iterable[str] = ()) -> ShownModelfile:
    """What the text of show's `modelfile` field says. Never fails: what it does not know it passes over.

    `known` are texts that other fields of show give exactly. They tell where such a text ends, which cannot be seen
    otherwise: a one-line text may begin with a quote, and a text in quotes may hold quotes and lines that look like
    commands.
    """
    spelled = sorted(((_printed(value), value) for value in known if value), key=lambda pair: -len(pair[0]))
    found: dict[str, list[str]] = {}
    parameters: list[tuple[str, str]] = []
    messages: list[tuple[str, str]] = []
    position = 0
    while command := _COMMAND.search(text, position):
        value, position = _value(text, command.end(), spelled)
        if command["parameter"] is not None:
            parameters.append((command["parameter"], value))
        elif command["role"] is not None:
            messages.append((command["role"], value))
        else:
            found.setdefault(command["word"], []).append(value)
    bases = found.get("FROM", [])
    return ShownModelfile(
        model=next(iter(_digests(bases[:1])), None),
        projectors=_digests(bases[1:]),
        adapters=_digests(found.get("ADAPTER", [])),
        drafts=_digests(found.get("DRAFT", [])),
        template=_last(found, "TEMPLATE"),
        system=_last(found, "SYSTEM"),
        renderer=_last(found, "RENDERER"),
        parser=_last(found, "PARSER"),
        requires=_last(found, "REQUIRES"),
        licenses=tuple(found.get("LICENSE", [])),
        parameters=tuple(parameters),
        messages=tuple(messages),
    )


def _last(found: dict[str, list[str]], word: str) -> str | None:
    return found[word][-1] if word in found else None


def _digests(values: list[str]) -> tuple[Digest, ...]:
    """The digests at the end of blob paths, of Windows too; a model's name or nothing at all has none."""
    return tuple(Digest(match[1]) for match in map(_BLOB.search, values) if match)


def _value(text: str, start: int, spelled: Iterable[tuple[str, str]]) -> tuple[str, int]:
    """The value that was printed at `start`, and where its last line ends. `spelled`: (as printed, value)."""
    for printed, value in spelled:
        end_of_known = start + len(printed)
        if text.startswith(printed, start) and text[end_of_known : end_of_known + 1] in ("", "\n"):
            return value, end_of_known
    for quote, close in _CLOSES.items():
        end = close.search(text, start + len(quote)) if text.startswith(quote, start) else None
        if end is not None and _quote_of(text[start + len(quote) : end.start()]) == quote:
            return text[start + len(quote) : end.start()], end.end()
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    return text[start:line_end], line_end


def read_back(template: str) -> str | None:
    """What a Modelfile that is printed with this template says it is: quoting loses a little."""
    return parse_shown_modelfile(f"TEMPLATE {_printed(template)}\n").template


def _printed(value: str) -> str:
    quote = _quote_of(value)
    return f"{quote}{value}{quote}"


def _quote_of(value: str) -> str:
    """The quote that Ollama prints around a value."""
    if "\n" in value or value.startswith(" ") or value.endswith(" "):
        return '"""' if '"' in value else '"'
    return ""
