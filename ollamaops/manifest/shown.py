"""The `modelfile` text of `/api/show`, taken apart.

Decides which blobs a model is made of and, as far as the text still tells, its template, licences and messages.
Leaves to others what the other fields of show say exactly (system, parameters, messages). Easily missed: the text
is printed without escaping, so Ollama's own parser does not read back what Ollama prints. This reader undoes the
printing instead: a value has quotes only if it spans lines or has outer spaces, and three only if it has some.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ollamaops.names import Digest

# `/` and `\\` alike: only the file's name counts
_BLOB = re.compile(r'sha256[-:]([0-9a-f]{64})"*\Z')
_WORDS = "FROM|ADAPTER|DRAFT|TEMPLATE|SYSTEM|RENDERER|PARSER|REQUIRES|LICENSE"
_COMMAND = re.compile(
    rf"^(?P<word>{_WORDS}|PARAMETER (?P<parameter>\S*)|MESSAGE (?P<role>\S*)) ", re.MULTILINE
)
# a value in three quotes ends before the next command or at the end; one in single quotes has none inside
_CLOSES = {
    '"""': re.compile(rf'"""(?=\n(?:{_WORDS}|PARAMETER|MESSAGE) |\n?\Z)'),
    '"': re.compile(r'"(?=\n|\Z)'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModelfile:
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


def parse_shown_modelfile(text: str) -> ShownModelfile:
    """What the text of show's `modelfile` field says. Never fails: what it does not know it passes over."""
    found: dict[str, list[str]] = {}
    parameters: list[tuple[str, str]] = []
    messages: list[tuple[str, str]] = []
    position = 0
    while command := _COMMAND.search(text, position):
        value, position = _value(text, command.end())
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


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that was printed at `start`, and where its last line ends."""
    for quote, close in _CLOSES.items():
        end = close.search(text, start + len(quote)) if text.startswith(quote, start) else None
        if end is not None and _quote_of(text[start + len(quote) : end.start()]) == quote:
            return text[start + len(quote) : end.start()], end.end()
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    return text[start:line_end], line_end


def _quote_of(value: str) -> str:
    """The quote that Ollama prints around a value."""
    if "\n" in value or value.startswith(" ") or value.endswith(" "):
        return '"""' if '"' in value else '"'
    return ""
