"""Modelfile text ↔ commands, as Ollama's own parser and printer do it, and the model that the commands ask for.

The parser drops every character that is not printable (no-break spaces, zero-width joiners), knows no escapes and no
comments after a value, and reads on past a closing quote that is not the last thing on its line.

Source: Ollama's parser, unchanged from 0.3.0 to 0.33.0 but for new commands.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import Struct

from ollamaops.errors import InvalidValue, ModelfileError, Problem
from ollamaops.manifest.parameters import GONE_PARAMETERS, parse_parameter
from ollamaops.manifest.types import Build
from ollamaops.settings import Message, ParameterValue

# command word → the name of the command; `PARAMETER x` is named x itself
COMMANDS = {
    "from": "model",
    "license": "license",
    "template": "template",
    "system": "system",
    "adapter": "adapter",
    "draft": "draft",
    "renderer": "renderer",
    "parser": "parser",
    "parameter": "parameter",
    "message": "message",
    "requires": "requires",
}
ROLES = ("system", "user", "assistant")

_TEXT_COMMANDS = frozenset(COMMANDS) - {"from", "message", "parameter"}
_NOT_PARAMETERS = _TEXT_COMMANDS | {"model", "message"}
_SINCE_STRUCTURED = frozenset({"draft", "renderer", "parser", "requires"})

_NO_COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", '
    '"parser", "parameter", "message", or "requires"'
)
_NO_ROLE = 'message role must be one of "system", "user", or "assistant"'
_WORD_ENDS = " \t"
_BLANKS = " \t\r\n"
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_LETTERS = re.compile(r"[A-Za-z]*")
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_]*")
_REST_OF_LINE = re.compile(r"[^\r\n]*")
_PLAIN = re.compile(r"[A-Za-z0-9@._/:+-]+")
_ENDS_EARLY = re.compile(r'"""[ \t]*[\r\n]')
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
# printable since Unicode 15, the version of Ollama's Go; Python 3.11 knows Unicode 14
_UNICODE_15 = re.compile(
    "[\u0cf3\u0ece\U00010efd-\U00010eff\U0001123f-\U00011241\U00011b00-\U00011b09\U00011f00-\U00011f10"
    "\U00011f12-\U00011f3a\U00011f3e-\U00011f59\U0001342f\U00013440-\U00013455\U0001b132\U0001b155"
    "\U0001d2c0-\U0001d2d3\U0001df25-\U0001df2a\U0001e030-\U0001e06d\U0001e08f\U0001e4d0-\U0001e4f9\U0001f6dc"
    "\U0001f774-\U0001f776\U0001f77b-\U0001f77f\U0001f7d9\U0001fa75-\U0001fa77\U0001fa87\U0001fa88"
    "\U0001faad-\U0001faaf\U0001fabb-\U0001fabd\U0001fabf\U0001face\U0001facf\U0001fada\U0001fadb\U0001fae8"
    "\U0001faf7\U0001faf8\U0002b739\U00031350-\U000323af]"
)

_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD = r"[0-9A-Za-z-]+"
# as golang.org/x/mod/semver takes it: `1` and `1.2` are versions too
_SEMVER = re.compile(
    rf"v?({_NUMBER}(?:\.{_NUMBER}"
    rf"(?:\.{_NUMBER}(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?(?:\+{_BUILD}(?:\.{_BUILD})*)?)?)?)"
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `name` is `model` for FROM, a parameter's own name for PARAMETER, else the word in lower case.

    `args` is the value; for a message `role: text`. `line` counts from 1, as an editor does, 0 if unknown.
    """

    name: str
    args: str
    line: int = field(default=0, compare=False)

    @property
    def is_parameter(self) -> bool:
        return self.name not in _NOT_PARAMETERS


class Modelfile(Struct, frozen=True):
    """The commands of one Modelfile, in order; at least one of a parsed one is a `model`."""

    commands: tuple[Command, ...]

    def args_of(self, name: str) -> tuple[str, ...]:
        """The values of all commands of that name."""
        return tuple(command.args for command in self.commands if command.name == name)


def decode_modelfile(data: bytes) -> str:
    """The text in UTF-8, or in UTF-16 if it begins with that byte order mark; what is neither becomes U+FFFD."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


def parse_modelfile(text: str, path: str = "Modelfile") -> Modelfile:
    """The commands in `text`. ModelfileError carries Ollama's own message, to the character.

    Its `line` is that of the command at fault as an editor counts; the number inside Ollama's message counts CR
    and LF apart and the failing line end too.
    """
    commands = tuple(found.command for found in find_commands(text, path))
    if not any(command.name == "model" for command in commands):
        raise ModelfileError("no FROM line", path=path)
    return Modelfile(commands)


class FoundCommand(Struct, frozen=True):
    """A command and where it is in its text: offsets of its word, of its raw value and of the value's end."""

    command: Command
    start: int
    value_start: int
    end: int


def find_commands(text: str, path: str = "Modelfile") -> Iterator[FoundCommand]:
    """Each command of `text` with its place. ModelfileError where Ollama's parser gives up."""
    reader = _Reader(text, path)
    position = _end(_BETWEEN, text, 1 if text.startswith("\ufeff") else 0)
    while position < len(text):
        found = reader.command(position)
        yield found
        position = _end(_BETWEEN, text, found.end)


class _Reader:
    """Reads one command at a time. Offsets in, values and offsets out."""

    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._line_starts = [match.end() for match in _LINE_BREAK.finditer(text)]

    def command(self, start: int) -> FoundCommand:
        text = self._text
        end = self._end_of_word(_LETTERS, start + 1, start)
        # whatever comes first opens the word, and is forgotten if it is not printable
        word = keep_printable(text[start]) + text[start + 1 : end]
        name = COMMANDS.get(word.lower())
        if name is None or text[end] not in _WORD_ENDS:
            raise self._failure(start, _NO_COMMAND, end)
        prefix = ""
        if name == "parameter":
            word_start, end = end + 1, self._end_of_word(_PARAMETER_NAME, end + 1, start)
            name = text[word_start:end]
            if text[end] not in _WORD_ENDS:
                raise self._failure(start, f"unexpected EOF: {name}")
        elif name == "message":
            word_start, end = end + 1, self._end_of_word(_LETTERS, end + 1, start)
            prefix = text[word_start:end] + ": "
            if text[word_start:end] not in ROLES or text[end] not in _WORD_ENDS:
                raise self._failure(start, _NO_ROLE, end)
        value, value_end = self._value(end + 1, start)
        return FoundCommand(Command(name, prefix + value, self._line(start)), start, end + 1, value_end)

    def _end_of_word(self, shape: re.Pattern[str], position: int, start: int) -> int:
        end = _end(shape, self._text, position)
        if end == len(self._text):
            raise self._failure(start, "unexpected EOF")
        return end

    def _value(self, position: int, start: int) -> tuple[str, int]:
        """The value that begins at `position`, and the offset of the line end that closes it."""
        parts: list[str] = []
        end = _end(_REST_OF_LINE, self._text, position)
        parts.append(keep_printable(self._text[position:end]))
        quote = _opening_quote(parts[0].lstrip(_BLANKS))
        while not _is_closed(parts, quote):
            if end == len(self._text):
                raise self._failure(start, "unexpected EOF")
            position, end = end + 1, _end(_REST_OF_LINE, self._text, end + 1)
            parts += [self._text[position - 1], keep_printable(self._text[position:end])]
        value = "".join(parts).strip(_BLANKS)
        return value[len(quote) : len(value) - len(quote)], end

    def _line(self, position: int) -> int:
        return bisect_right(self._line_starts, position) + 1

    def _failure(self, start: int, message: str, counted_to: int | None = None) -> ModelfileError:
        """Ollama's words, with Ollama's line number if it gives one for this failure."""
        if counted_to is not None:
            seen = self._text[: counted_to + 1]
            message = f"(line {seen.count(chr(10)) + seen.count(chr(13)) + 1}): {message}"
        return ModelfileError(message, line=self._line(start), path=self._path)


def _end(shape: re.Pattern[str], text: str, position: int) -> int:
    """Where the run of `shape` (which matches the empty text too) that begins at `position` ends."""
    match = shape.match(text, position)
    assert match is not None
    return match.end()


def _opening_quote(value: str) -> str:
    return next(quote for quote in ('"""', '"', "") if value.startswith(quote))


def _is_closed(parts: list[str], quote: str) -> bool:
    """Whether the line read last ends the value; `parts` are lines and the line ends between them."""
    if not parts[-1].rstrip(_BLANKS).endswith(quote):
        return False
    return len(parts) > 1 or len(parts[0].strip(_BLANKS)) >= 2 * len(quote)


def is_printable(character: str) -> bool:
    """Whether Ollama's parser keeps the character (Go's strconv.IsPrint, Unicode 15)."""
    return character.isprintable() or _UNICODE_15.match(character) is not None


def keep_printable(line: str) -> str:
    """What Ollama's parser keeps of a line: printable characters and tabs."""
    if line.isprintable():
        return line
    return "".join(character for character in line if character == "\t" or is_printable(character))


def build_from_modelfile(modelfile: Modelfile, path: str = "Modelfile") -> tuple[Build, list[Problem]]:
    """What `ollama create -f` sends, and every parameter and version that it would refuse.

    What FROM, ADAPTER and DRAFT name is left out: whether that is a file takes a look at the disk.
    """
    parameters, problems = _parameters(modelfile, path)
    requires: str | None = None
    for command in modelfile.commands:
        if command.name == "requires":
            match = _SEMVER.fullmatch(command.args)
            requires = match[1] if match else None
            if match is None:
                message = "requires must be a valid semver (e.g. 0.14.0)"
                problems.append(Problem(path, command.line, 1, message))
    messages = (args.partition(": ") for args in modelfile.args_of("message"))
    build = Build(
        template=_last(modelfile, "template"),
        system=_last(modelfile, "system"),
        licenses=modelfile.args_of("license"),
        parameters=parameters,
        messages=tuple(Message(role, content) for role, _, content in messages),
        renderer=_last(modelfile, "renderer"),
        parser=_last(modelfile, "parser"),
        requires=requires,
    )
    return build, problems


def _last(modelfile: Modelfile, name: str) -> str | None:
    """The value that wins. An empty one is not sent, so it means "not given"."""
    args = modelfile.args_of(name)
    return args[-1] or None if args else None


def _parameters(modelfile: Modelfile, path: str) -> tuple[dict[str, ParameterValue], list[Problem]]:
    parameters: dict[str, ParameterValue] = {}
    problems: list[Problem] = []
    for command in modelfile.commands:
        name = command.name
        if not command.is_parameter or name in GONE_PARAMETERS:
            continue
        try:
            value = parse_parameter(name, command.args)
        except InvalidValue as error:
            problems.append(Problem(path, command.line, 1, str(error)))
            continue
        former = parameters.get(name)
        parameters[name] = former + value if isinstance(former, tuple) and isinstance(value, tuple) else value
    return parameters, problems


def head_of(command: Command) -> str:
    """What stands before the value: `FROM`, `PARAMETER stop`, `MESSAGE user`."""
    if command.name == "model":
        return "FROM"
    if command.name == "message":
        return f"MESSAGE {command.args.partition(': ')[0]}"
    return command.name.upper() if command.name in _TEXT_COMMANDS else f"PARAMETER {command.name}"


def value_of(command: Command) -> str:
    """The value without the role of a message."""
    return command.args.partition(": ")[2] if command.name == "message" else command.args


def render_for_wire(modelfile: Modelfile, path: str = "Modelfile") -> str:
    """Text from which a server before 0.5.5 reads exactly these commands; ModelfileError if there is none."""
    if not modelfile.args_of("model"):
        raise ModelfileError("no FROM line", path=path)
    return "".join(_wire_line(command, path) for command in modelfile.commands)


def flaw_on_wire(command: Command) -> str | None:
    """Why a server before 0.5.5 would not read exactly this command out of a Modelfile; None: it would."""
    flaw = _flaw_of_head(command) or _flaw_of_value(value_of(command))
    return f"{head_of(command)} cannot be sent in a Modelfile: {flaw}" if flaw else None


def _wire_line(command: Command, path: str) -> str:
    if flaw := flaw_on_wire(command):
        raise ModelfileError(flaw, line=command.line, path=path)
    head, value = head_of(command), value_of(command)
    return f"{head} {value}\n" if _PLAIN.fullmatch(value) else f'{head} """{value}"""\n'


def _flaw_of_head(command: Command) -> str | None:
    if command.name in _SINCE_STRUCTURED:
        return "servers before 0.5.5 do not know it"
    if command.name == "message" and command.args.partition(": ")[:2] not in {(role, ": ") for role in ROLES}:
        return _NO_ROLE
    if not _PARAMETER_NAME.fullmatch(command.name):
        return "a parameter has letters, digits and underscores only"
    return None


def _flaw_of_value(value: str) -> str | None:
    lost = next((sign for sign in value if sign not in _BLANKS and not is_printable(sign)), None)
    if lost is not None:
        return f"{describe_character(lost)} would be dropped"
    return 'a line in it ends in """, which would end the value' if _ENDS_EARLY.search(value) else None


def describe_character(character: str) -> str:
    """Code point and name: `U+200D ZERO WIDTH JOINER`."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"
