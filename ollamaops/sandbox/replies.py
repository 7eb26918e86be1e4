"""What the pretend model says: a few prompts have scripted replies, all others get made-up sentences.

A reply that the prompt spells out is given, so that a user's expectations can be tried offline: ``Reply with the
word pong.`` is answered ``pong``. That works with say, answer, respond, repeat, return and output, for text in
quotes, and from the system prompt. Everything else is drawn from the whole conversation and the seed, and says that
it is pretend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollamaops.sandbox.schema_instance import UnsatisfiableSchema, build_instance
from ollamaops.sandbox.seeded_choice import SeededChoice

_WORD = re.compile(r"[a-z]+")
_SAY = r"\b(?:reply|respond|answer|say|repeat|return|output|echo)\b"
_NOUN = r"(?:(?:the|one|a single)\s+)?(?:words?|text|string|phrase)"
_FILLER = rf"(?:[\s:,]|\b(?:back|after\s+me|only|just|exactly|simply|with|{_NOUN})\b)*"
_QUOTED = r"(?:\"([^\"]+)\"|`([^`]+)`|“([^”]+)”|(?<!\w)'([^'\n]+)'(?!\w))"
_QUOTED_REPLY = re.compile(rf"{_SAY}[^\"'`“.?!\n]{{0,60}}?{_QUOTED}", re.IGNORECASE)
_BARE_REPLY = re.compile(
    rf"{_SAY}{_FILLER}(?<=[\s:,])(\w[^\n.,;:!?()]{{0,40}}?)(?:\s+(?:and|or)\b[^\n.!?]*)?\s*(?:[.!?\n]|$)",
    re.IGNORECASE,
)
_NOT_A_REPLY = frozenset(
    _WORD.findall(
        "a about an any as at briefly by for how if in it me my of shortly so some that the these this those to "
        "using what when where which who why with your"
    )
)
_MOST_WORDS = 4
_SUBJECTS = (
    *("A quiet harbor", "The third lantern", "An amber river", "Every small engine"),
    *("The paper moon", "No other window", "The late train", "A patient teacher"),
)
_VERBS = ("remembers", "carries", "measures", "repeats", "balances", "answers", "outlasts", "borrows")
_OBJECTS = (
    *("the tide", "seven bells", "an old map", "the long winter"),
    *("an open door", "its own echo", "a slow clock", "the last page"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as the model sees it. `images` is how many pictures came with it."""

    role: str
    content: str
    images: int = 0
    tool_name: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The tool that the model wants called, with arguments that satisfy its parameter schema."""

    name: str
    arguments: Mapping[str, object]


def reply_to(turns: Sequence[Turn], choice: SeededChoice) -> str:
    """The answer to a conversation whose last turn is the one to answer."""
    last = turns[-1] if turns else Turn("user", "")
    if last.role == "tool":
        return f"The tool {last.tool_name or 'result'} says: {last.content}"
    system = "\n".join(turn.content for turn in turns if turn.role == "system")
    sentences = " ".join(_sentence(choice.branch(number)) for number in range(3))
    return scripted_reply(last.content) or scripted_reply(system) or f"Pretend answer: {sentences}"


def scripted_reply(prompt: str) -> str | None:
    """The words that a prompt asks to be said, or None when it asks for none."""
    if quoted := _QUOTED_REPLY.search(prompt):
        return next(group for group in quoted.groups() if group)
    for bare in _BARE_REPLY.finditer(prompt):
        words = bare[1].split()
        if words[0].casefold() not in _NOT_A_REPLY and len(words) <= _MOST_WORDS:
            return bare[1]
    return None


def thoughts_on(turns: Sequence[Turn], choice: SeededChoice) -> str:
    """The reasoning that a thinking model shows before its answer."""
    asked = " ".join(turns[-1].content.split()) if turns else ""
    return f"The user wrote {asked[:60]!r}. {_sentence(choice)} I can answer now."


def tool_call_for(
    turns: Sequence[Turn], tools: Sequence[Mapping[str, object]], choice: SeededChoice
) -> ToolCall | None:
    """A call of the first tool whose name shares a word with the prompt; None: answer in words."""
    if not turns or turns[-1].role != "user":
        return None
    asked = set(_WORD.findall(turns[-1].content.casefold()))
    for tool in tools:
        function = tool.get("function")
        function = function if isinstance(function, Mapping) else {}
        name, parameters = str(function.get("name", "")), function.get("parameters")
        if asked & {word.casefold() for word in re.findall(r"[A-Z]?[a-z]{3,}", name)}:
            return ToolCall(name, _arguments(parameters if isinstance(parameters, Mapping) else {}, choice))
    return None


def _arguments(parameters: Mapping[str, object], choice: SeededChoice) -> Mapping[str, object]:
    try:
        value = build_instance({"type": "object", **parameters}, choice)
    except UnsatisfiableSchema:
        return {}
    return value if isinstance(value, Mapping) else {}


def _sentence(choice: SeededChoice) -> str:
    subject, verb, what = (choice.branch(words).one_of(words) for words in (_SUBJECTS, _VERBS, _OBJECTS))
    return f"{subject} {verb} {what}."
