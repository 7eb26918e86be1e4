"""Warnings about a valid Modelfile: what it does and its author probably did not mean.

Nothing here changes what is sent. Ollama itself reports none of this, since its parser accepts any value.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator

from msgspec import Struct

from ollamaops.errors import Problem
from ollamaops.manifest.modelfile import (
    COMMANDS,
    FoundCommand,
    describe_character,
    find_commands,
    head_of,
    is_printable,
    value_of,
)
from ollamaops.manifest.parameters import GONE_PARAMETERS

_PROSE = frozenset({"system", "template", "message", "license"})
_LAST_WINS = frozenset({"system", "template", "adapter", "renderer", "parser", "requires"})
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_COMMAND_LINE = re.compile(rf"[\r\n][ \t]*({'|'.join(COMMANDS).upper()})[ \t]")
_COMMENT = re.compile(r"(?:^|[ \t])#[ \t]")
_COMMENT_IN_WORD = re.compile(r"[ \t]#")


class _Seen(Struct, frozen=True):
    """A command with its text. `word` is in capitals, `raw` the value as written, quotes and all."""

    found: FoundCommand
    word: str
    raw: str

    @property
    def name(self) -> str:
        return self.found.command.name

    @property
    def head(self) -> str:
        return head_of(self.found.command)

    @property
    def is_quoted(self) -> bool:
        return self.raw.lstrip().startswith('"')


class _Warning(Struct, frozen=True):
    """Where (an offset into the text), what, and what to do."""

    offset: int
    message: str
    hint: str


def lint_modelfile(text: str, path: str = "Modelfile") -> tuple[Problem, ...]:
    """Warnings about a valid Modelfile, sorted by place. ModelfileError if it is not valid."""
    seen = [_see(found, text) for found in find_commands(text, path)]
    warnings = [warning for check in _CHECKS for one in seen for warning in check(one)]
    warnings += _repeated(seen)
    starts = [0, *(match.end() for match in _LINE_BREAK.finditer(text))]
    problems = []
    for warning in warnings:
        line = bisect_right(starts, warning.offset)
        column = warning.offset - starts[line - 1] + 1
        problems.append(Problem(path, line, column, warning.message, warning.hint))
    return tuple(sorted(problems, key=lambda p: (p.line, p.column, p.message)))


def _see(found: FoundCommand, text: str) -> _Seen:
    word = text[found.start : found.value_start].split()[0].upper()
    return _Seen(found, word, text[found.value_start : found.end])


def _dropped(seen: _Seen) -> Iterator[_Warning]:
    lost = [sign for sign in dict.fromkeys(seen.raw) if sign not in "\t\r\n" and not is_printable(sign)]
    for sign in lost:
        count = seen.raw.count(sign)
        times = "" if count == 1 else f" ({count} times)"
        yield _Warning(
            seen.found.value_start + seen.raw.index(sign),
            f"{describe_character(sign)} is dropped from {seen.head}{times}",
            "a Modelfile carries printable characters, spaces, tabs and line ends only; the manifest's own keys"
            " carry all",
        )


def _undecodable(seen: _Seen) -> Iterator[_Warning]:
    offset = seen.raw.find("\ufffd")
    if offset >= 0:
        yield _Warning(
            seen.found.value_start + offset,
            f"{seen.head} has U+FFFD where a byte was not UTF-8",
            "save the file as UTF-8",
        )


def _runs_on(seen: _Seen) -> Iterator[_Warning]:
    """A quote that closes in the middle of its line does not end the value."""
    value = seen.raw.strip()
    quote = next(quote for quote in ('"""', '"', "") if value.startswith(quote))
    first, *more = _LINE_BREAK.split(value)
    if not more:
        return
    if quote in first[len(quote) :]:
        yield _Warning(
            seen.found.start,
            f"{seen.head} goes on for {len(more) + 1} lines: more text follows the closing quote on the first",
            'a quote ends a value only as the last thing on a line; put """ around text that has quotes in it',
        )
    elif seen.name != "license":
        yield from _command_lines(seen)


def _command_lines(seen: _Seen) -> Iterator[_Warning]:
    for match in _COMMAND_LINE.finditer(seen.raw):
        yield _Warning(
            seen.found.value_start + match.start(1),
            f"this line is part of {seen.head}, which begins on line {seen.found.command.line}",
            "close the quote on the line before, if you mean it as a command",
        )


def _inline_comment(seen: _Seen) -> Iterator[_Warning]:
    shape = _COMMENT if seen.name in _PROSE or seen.name == "stop" else _COMMENT_IN_WORD
    match = None if seen.is_quoted else shape.search(seen.raw)
    if match:
        yield _Warning(
            seen.found.value_start + match.start(),
            f"the text from # on is part of {seen.head}",
            "put the comment on a line of its own",
        )


def _single_quotes(seen: _Seen) -> Iterator[_Warning]:
    value = seen.raw.strip()
    if len(value) > 1 and value[0] == value[-1] == "'":
        yield _Warning(seen.found.start, f"the single quotes are part of {seen.head}", 'use "…"')


def _outer_blanks(seen: _Seen) -> Iterator[_Warning]:
    blank = seen.raw[:1] in " \t" or seen.raw[-1:] in " \t"
    if blank and seen.raw.strip() and not seen.is_quoted and (seen.name in _PROSE or seen.name == "stop"):
        yield _Warning(
            seen.found.value_start, f"the spaces around {seen.head} are lost", 'keep them with "…"'
        )


def _empty(seen: _Seen) -> Iterator[_Warning]:
    if value_of(seen.found.command):
        return
    if seen.name in ("system", "template"):
        message = f"an empty {seen.head} sends nothing: the inherited one stays"
        hint = "servers since 0.5.5 cannot clear it; leave the line out, or give it a text"
    elif seen.name == "model":
        message = "FROM without a value means the folder of the Modelfile"
        hint = "write FROM . if you mean that"
    else:
        message, hint = f"{seen.head} has no value", "leave the line out, or give it a value"
    yield _Warning(seen.found.start, message, hint)


def _odd_name(seen: _Seen) -> Iterator[_Warning]:
    if seen.word == "PARAMETER" and not seen.name:
        message = f"two spaces after PARAMETER make its name empty and its value '{seen.raw.strip()}'"
        yield _Warning(seen.found.start, message, "write one space")
    elif seen.word == "PARAMETER" and not seen.found.command.is_parameter:
        message = f"PARAMETER {seen.name} is read as {seen.head}"
        yield _Warning(seen.found.start, message, f"Ollama has no parameter '{seen.name}'")


def _gone(seen: _Seen) -> Iterator[_Warning]:
    if seen.name in GONE_PARAMETERS:
        last = GONE_PARAMETERS[seen.name]
        message = f"PARAMETER {seen.name} is skipped: Ollama {last} was the last version to have it"
        yield _Warning(seen.found.start, message, "leave the line out")


_CHECKS: tuple[Callable[[_Seen], Iterator[_Warning]], ...] = (
    _dropped,
    _undecodable,
    _runs_on,
    _inline_comment,
    _single_quotes,
    _outer_blanks,
    _empty,
    _odd_name,
    _gone,
)


def _repeated(all_seen: list[_Seen]) -> Iterator[_Warning]:
    lines: dict[str, int] = {}
    for seen in all_seen:
        command = seen.found.command
        wins = command.is_parameter and command.name != "stop"
        if (wins or command.name in _LAST_WINS) and command.name in lines:
            yield _Warning(
                seen.found.start,
                f"this {seen.head} replaces the one on line {lines[command.name]}",
                "keep one of them: the last wins",
            )
        lines[command.name] = command.line
