"""Templates as far as a server must know them: whether one is well formed, what it asks for, which built-in it is.

`check_template` speaks the words of Go's text/template. The fields that a template uses (`.Tools`, `.Suffix`, …)
become capabilities. Nothing here runs a template. A GGUF's own (Jinja) template counts as a built-in one when it is
less than 100 edits away from it; then the built-in text and its stop words become layers of the model. Servers from
0.30 on run the GGUF's own template instead of the model's where it offers more: they look for words in its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

DEFAULT_TEMPLATE = "{{ .Prompt }}"

_FUNCTIONS = {
    *("and", "break", "call", "continue", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne"),
    *("not", "or", "print", "printf", "println", "slice", "urlquery"),
    *("currentDate", "json", "toTypeScriptType", "yesterdayDate"),  # Ollama's own
}
_BLOCKS = frozenset({"if", "range", "with", "block", "define"})
_COMMANDS = _BLOCKS | {"else", "end", "template", "break", "continue"}
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+) | (?P<text>"(?:\\.|[^"\\\n])*"|`[^`]*`) | (?P<char>'(?:\\.|[^'\\\n])+')
    | (?P<field>\.[A-Za-z_]\w*) | (?P<variable>\$\w*) | (?P<number>[+-]?\d[\w.]*) | (?P<word>[A-Za-z_]\w*)
    | (?P<sign>:=|[.|(),=])""",
    re.VERBOSE,
)

_RESULT_MARKS = ('eq .Role "tool"', "tool_response", "TOOL_RESULTS")
_OWN_RESULT_MARKS = (
    *("tool_response", "tool_results", "ipython", "message.role == 'tool'", 'message.role == "tool"'),
    *("role'] == 'tool'", 'role\'] == "tool"', "role\"] == 'tool'", 'role"] == "tool"'),
)


class BadTemplate(ValueError):
    """Not a template. `str()` is what Go's parser says."""


@dataclass(frozen=True, slots=True)
class _Action:
    """The inside of one `{{ … }}`: its tokens as (kind, text), and the line it is on."""

    tokens: tuple[tuple[str, str], ...]
    line: int

    @property
    def command(self) -> str:
        kind, text = self.tokens[0] if self.tokens else ("", "")
        return text if kind == "word" and text in _COMMANDS else ""


def check_template(text: str) -> None:
    """BadTemplate if Go's parser would not take the template."""
    open_blocks: list[str] = []
    for action in _actions(text):
        _check_words(action)
        _nest(action, open_blocks)
    if open_blocks:
        raise _error(1 + text.count("\n"), "unexpected EOF")


@lru_cache(maxsize=512)
def template_variables(text: str) -> frozenset[str]:
    """The names of the fields and variables that a template uses, in lower case. Empty for a bad template."""
    try:
        actions = _actions(text)
    except BadTemplate:
        return frozenset()
    tokens = [token for action in actions for token in action.tokens]
    return frozenset(word.strip(".$").lower() for kind, word in tokens if kind in {"field", "variable"})


def template_capabilities(text: str) -> list[str]:
    """What a (Go) template offers."""
    used = template_variables(text)
    return [
        capability
        for variable, capability in (("tools", "tools"), ("suffix", "insert"), ("thinking", "thinking"))
        if variable in used
    ]


def own_template_capabilities(jinja: str) -> list[str]:
    """What the template that weights carry offers."""
    found = ["tools"] if "tools" in jinja or "tool_call" in jinja else []
    return [*found, "thinking"] if _shows_thinking(jinja) else found


def _shows_thinking(jinja: str) -> bool:
    if "<think>" in jinja and "</think>" in jinja:
        return True
    splits = any(f"content.split({quote}</think>{quote})" in jinja for quote in "'\"")
    return splits and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja


def prefers_own_template(jinja: str, declared: str) -> bool:
    """Whether servers from 0.30 on run the weights' own template although the model has another one.

    It must offer more, or be the only one of the two that can tell a model what its tool calls gave.
    """
    own, others = own_template_capabilities(jinja), template_capabilities(declared)
    if len(own) > len(others):
        return not _returns_results(declared) or _own_returns_results(jinja)
    same_tools = "tools" in own and set(own) == set(others)
    return same_tools and _own_returns_results(jinja) and not _returns_results(declared)


def _returns_results(declared: str) -> bool:
    takes_calls = {"tools", "toolcalls"} <= template_variables(declared)
    return takes_calls and any(mark in declared for mark in _RESULT_MARKS)


def _own_returns_results(jinja: str) -> bool:
    has_calls = "tool_calls" in jinja or "assistant_tool_call" in jinja
    return has_calls and any(mark in jinja for mark in _OWN_RESULT_MARKS)


def _error(line: int, message: str) -> BadTemplate:
    return BadTemplate(f"template: :{line}: {message}")


def _actions(text: str) -> list[_Action]:
    actions, position = [], 0
    while (start := text.find("{{", position)) >= 0:
        line = 1 + text.count("\n", 0, start)
        if re.match(r"(- )?\s*/\*", text[start + 2 :]):
            end = text.find("*/", start)
            if end < 0:
                raise _error(line, "unclosed comment")
            position = text.find("}}", end) + 2
            if position < 2:
                raise _error(line, "comment ends before closing delimiter")
            continue
        action, position = _read_action(text, start + 2, line)
        actions.append(action)
    return actions


def _read_action(text: str, position: int, line: int) -> tuple[_Action, int]:
    if text.startswith("-", position) and text[position + 1 : position + 2].isspace():
        position += 1
    tokens: list[tuple[str, str]] = []
    while True:
        if text.startswith("}}", position) or re.match(r"\s-\}\}", text[position : position + 4]):
            if text.startswith("}}", position):
                return _Action(tuple(tokens), line), position + 2
            return _Action(tuple(tokens), line), position + 4
        here = 1 + text.count("\n", 0, position)
        if position >= len(text):
            raise _error(here, "unclosed action")
        match = _TOKEN.match(text, position)
        if match is None:
            raise _error(here, _bad_character(text[position]))
        if match.lastgroup != "space":
            tokens.append((str(match.lastgroup), match[0]))
        position = match.end()


def _bad_character(char: str) -> str:
    if char == '"':
        return "unterminated quoted string"
    if char == "`":
        return "unterminated raw quoted string"
    if char == "'":
        return "unterminated character constant"
    return f"unrecognized character in action: U+{ord(char):04X} {char!r}"


def _check_words(action: _Action) -> None:
    if not action.tokens:
        raise _error(action.line, "missing value for command")
    for index, (kind, word) in enumerate(action.tokens):
        known = word in _FUNCTIONS or word in {"true", "false", "nil"} or (word in _COMMANDS and index == 0)
        if kind == "word" and not known and not _is_else_block(action, index):
            raise _error(action.line, f'function "{word}" not defined')
    if action.command in {"if", "range", "with"} and len(action.tokens) == 1:
        raise _error(action.line, f"missing value for {action.command}")


def _is_else_block(action: _Action, index: int) -> bool:
    return index == 1 and action.command == "else" and action.tokens[1][1] in {"if", "with"}


def _nest(action: _Action, open_blocks: list[str]) -> None:
    if action.command in _BLOCKS:
        open_blocks.append(action.command)
    elif action.command == "end":
        if not open_blocks:
            raise _error(action.line, "unexpected {{end}}")
        open_blocks.pop()
    elif action.command == "else" and not open_blocks:
        raise _error(action.line, "unexpected {{else}}")


# --- templates that servers know

_NEAR = 100


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """A recognized template: the `jinja` that models carry, the `text` stored instead, and its `stop` words."""

    name: str
    jinja: str
    text: str
    stop: tuple[str, ...] = ()


_CHATML_JINJA = (
    r"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    r" + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_STOP = ("<|im_start|>", "<|im_end|>")
_TEMPLATES = (
    BuiltinTemplate(
        "chatml",
        _CHATML_JINJA,
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        _CHATML_STOP,
    ),
)
_OLD_TEMPLATES = (
    BuiltinTemplate(
        "chatml",
        _CHATML_JINJA,
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
        _CHATML_STOP,
    ),
)


def recognize(jinja: str, *, old: bool) -> BuiltinTemplate | None:
    """The built-in template that is nearest to a model's own, or None if none is near."""
    known = _OLD_TEMPLATES if old else _TEMPLATES
    near = [(_distance(jinja, template.jinja), template) for template in known]
    distance, template = min(near, key=lambda pair: pair[0])
    return template if distance < _NEAR else None


def _distance(left: str, right: str) -> int:
    """The edit distance, or `_NEAR` when it is at least that."""
    if abs(len(left) - len(right)) >= _NEAR:
        return _NEAR
    row = list(range(len(right) + 1))
    for number, char in enumerate(left, 1):
        before, row[0] = row[0], number
        for column, other in enumerate(right, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (char != other)),
            )
    return min(row[-1], _NEAR)
