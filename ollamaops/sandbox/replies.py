"""What the pretend model says: pure rules from a conversation to a text, a JSON value or a tool call.

Decides words only; how they are cut into tokens and wrapped into answers is inference.py's. The model follows
prompts whose answer can be checked at a glance, so that a user's expectations hold offline:

* ``Reply with the word pong.`` → ``pong`` (say, answer, respond, repeat, output; quoted text; also as system)
* ``What is 6 * 7?`` → ``42``
* ``Answer as JSON with the keys name and age`` → ``{"name": …, "age": …}``; JSON that the prompt shows is repeated
* ``My name is Ada.`` … ``What is my name?`` → ``Your name is Ada.`` (shows that history arrives)

Anything else gets a sentence that says it is pretend, drawn from the whole conversation and the seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ollamaops.sandbox.schema_instance import Hints, UnsatisfiableSchema, build_instance
from ollamaops.sandbox.seeded_choice import SeededChoice

_VERB = r"(?:(?:reply|respond|answer)(?:\s+back)?|say|repeat(?:\s+after\s+me)?|output|echo)\b"
_ANY_VERB = rf"(?:{_VERB}|(?:return|print|write|send)\b)"
_ONLY = r"(?:only|just|exactly|simply|precisely)"
_NOUN = r"(?:words?|text|string|phrase|sentence|token|number|letter)"
_QUOTED = re.compile(
    rf"\b{_ANY_VERB}[^\"'`“.?!\n]{{0,60}}?(?:\"([^\"]+)\"|`([^`]+)`|“([^”]+)”|(?<!\w)'([^'\n]+)'(?!\w))",
    re.IGNORECASE,
)
_NAMED_WORD = re.compile(
    rf"\b{_ANY_VERB}(?:\s+\w+){{0,4}}?\s+(?:\w+\s+)?{_NOUN}\s*[:,]?\s+([^\s\"'`.,;:!?]+)", re.IGNORECASE
)
_BARE = re.compile(
    rf"\b{_VERB}\s*(?:{_ONLY}\s*)?(?:with\s+)?(?:{_ONLY}\s*)?:?\s*([^\n.,;:!?()]{{1,60}}?)"
    rf"(?:\s+(?:and\s+(?:nothing|no)\b[^\n.!?]*|in\s+(?:one|a\s+single)\s+word|only|exactly))?\s*(?:[.,;:!?()\n]|$)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]+")
_NOT_AN_ANSWER = frozenset(
    _WORD.findall(
        "a an the in to as at if how for your my me some any about using briefly shortly it this these that with "
        "by one all what why when where who which only"
    )
)
_MOST_WORDS = 4
_SUM = re.compile(r"(?<!\d)(-?\d{1,15})\s*(\+|-|\*|×|x|plus|minus|times)\s*(-?\d{1,15})(?!\d)", re.IGNORECASE)
_NAME_GIVEN = re.compile(r"\bmy name is\s+(\w+)|\bcall me\s+(\w+)", re.IGNORECASE)
_NAME_ASKED = re.compile(r"\bwhat(?:'s| is) my name\b|\bwho am i\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,15})?(?!\w)")
_PROPER = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w-]*(?:\s+[A-Z][\w-]*)*")
_JSON_ASKED = re.compile(r"\bjson\b", re.IGNORECASE)
_KEYS = re.compile(
    r"\b(?:keys?|fields?|properties)\b:?\s+((?:[\"'`]?\w+[\"'`]?(?:\s*,\s*(?:and\s+)?|\s+and\s+)?)+)"
)
_QUOTED_WORD = re.compile(r"[\"“`]([^\"”`]+)[\"”`]|(?<!\w)'([^'\n]+)'(?!\w)")
_SUBJECTS = (
    *("a quiet harbor", "the third lantern", "an amber river", "every small engine"),
    *("the paper moon", "no other window", "the late train", "a patient teacher"),
)
_VERBS = ("remembers", "carries", "measures", "repeats", "balances", "answers", "outlasts", "borrows")
_OBJECTS = (
    *("the tide", "seven bells", "an old map", "the long winter"),
    *("an open door", "its own echo", "a slow clock", "the last page"),
)
_SMALL_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be by can do does for from get has have how i in is it its me my of on or please that "
        "the this to use was what when where which who will with you your given tool function call"
    )
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
    """What the model wants called, with arguments that satisfy the tool's parameter schema."""

    name: str
    arguments: Mapping[str, object]


def speak(turns: Sequence[Turn], choice: SeededChoice) -> str:
    """The answer to a conversation whose last turn is the one to answer."""
    last = turns[-1] if turns else Turn("user", "")
    if last.role == "tool":
        return f"The tool {last.tool_name or 'result'} says: {last.content}"
    system = "\n".join(turn.content for turn in turns if turn.role == "system")
    rules = (
        _asked_json(last.content, choice),
        asked_words(last.content),
        _sum(last.content),
        _remembered_name(turns),
        asked_words(system),
    )
    for answer in rules:
        if answer is not None:
            return answer
    return _babble(choice, last.images)


def think_about(turns: Sequence[Turn], choice: SeededChoice) -> str:
    """The reasoning that a thinking model shows before its answer."""
    asked = " ".join(turns[-1].content.split()) if turns else ""
    return f"The user wrote {asked[:60]!r}. {_sentence(choice)} I can answer now."


def speak_json(turns: Sequence[Turn], choice: SeededChoice) -> object:
    """A JSON object for `format: json`: what the prompt asks for, else one that holds the plain answer."""
    wanted = _wanted_json(turns[-1].content, choice) if turns else None
    return wanted if wanted is not None else {"answer": speak(turns, choice)}


def speak_by_schema(turns: Sequence[Turn], schema: Mapping[str, object], choice: SeededChoice) -> object:
    """A JSON value valid under the schema; UnsatisfiableSchema when there is none to be found."""
    return build_instance(schema, choice, hints_of(turns[-1].content if turns else ""))


def call_tool(
    turns: Sequence[Turn], tools: Sequence[Mapping[str, object]], choice: SeededChoice
) -> ToolCall | None:
    """The call of the tool that the last message plausibly asks for, or None: say something instead.

    A tool is asked for when the message shares a word with its name, or two with its description and parameters.
    """
    if not turns or turns[-1].role != "user":
        return None
    prompt = turns[-1].content
    scored = [
        (_likeness(prompt, function), number) for number, function in enumerate(map(_function_of, tools))
    ]
    score, number = max(scored, key=lambda pair: (pair[0], -pair[1]), default=(0, 0))
    if score < 2:
        return None
    function = _function_of(tools[number])
    return ToolCall(str(function.get("name", "")), _arguments(function.get("parameters"), prompt, choice))


def hints_of(prompt: str) -> Hints:
    """What a prompt offers to fill a schema: asked-for and quoted words, proper names, numbers."""
    asked = asked_words(prompt)
    quoted = [first or second for first, second in _QUOTED_WORD.findall(prompt)]
    words = [asked] if asked else quoted + _PROPER.findall(prompt)
    return Hints(prompt, tuple(words), tuple(map(float, _NUMBER.findall(prompt))))


def asked_words(text: str) -> str | None:
    """The words that the text asks to be said, or None when it asks for none."""
    if quoted := _QUOTED.search(text):
        return next(group for group in quoted.groups() if group)
    if named := _NAMED_WORD.search(text):
        return named[1]
    for bare in _BARE.finditer(text):
        words = bare[1].split()
        if words and words[0].casefold() not in _NOT_AN_ANSWER and len(words) <= _MOST_WORDS:
            return re.split(r"\s+or\s+", bare[1].strip())[0]
    return None


def _sum(text: str) -> str | None:
    found = _SUM.search(text)
    if found is None:
        return None
    left, sign, right = int(found[1]), found[2].casefold(), int(found[3])
    if sign in ("+", "plus"):
        return str(left + right)
    return str(left - right) if sign in ("-", "minus") else str(left * right)


def _remembered_name(turns: Sequence[Turn]) -> str | None:
    if not _NAME_ASKED.search(turns[-1].content if turns else ""):
        return None
    for turn in reversed(turns):
        if given := _NAME_GIVEN.search(turn.content):
            return f"Your name is {given[1] or given[2]}."
    return "You have not told me your name."


def _babble(choice: SeededChoice, images: int) -> str:
    seen = f" with {images} image{'s' if images > 1 else ''}" if images else ""
    sentences = " ".join(_sentence(choice.branch(number)) for number in range(2 + choice.below(2)))
    return f"Pretend answer{seen}: {sentences}"


def _sentence(choice: SeededChoice) -> str:
    subject = choice.branch("subject").one_of(_SUBJECTS)
    verb, what = choice.branch("verb").one_of(_VERBS), choice.branch("object").one_of(_OBJECTS)
    return f"{subject.capitalize()} {verb} {what}."


def _asked_json(text: str, choice: SeededChoice) -> str | None:
    """JSON as text, when the prompt speaks of JSON and says which."""
    wanted = _wanted_json(text, choice) if _JSON_ASKED.search(text) else None
    return None if wanted is None else json.dumps(wanted, ensure_ascii=False)


def _wanted_json(text: str, choice: SeededChoice) -> object | None:
    """The object that the text shows, or one with the keys that it names."""
    shown = _json_in(text)
    keys = _KEYS.search(text)
    if shown is not None or keys is None:
        return shown
    names = re.findall(r"\w+", re.sub(r"\band\b", " ", keys[1]))
    return build_instance({"type": "object", "required": names}, choice) if names else None


def _json_in(text: str) -> object | None:
    """The first JSON object written out in the text."""
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value: object = json.JSONDecoder().raw_decode(text, start)[0]
        except ValueError:
            continue
        return value
    return None


def _function_of(tool: Mapping[str, object]) -> Mapping[str, object]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else {}


def _likeness(prompt: str, function: Mapping[str, object]) -> int:
    asked = set(_stems(prompt))
    name = set(_stems(str(function.get("name", "")).replace("_", " ")))
    about = set(_stems(json.dumps([function.get("description"), function.get("parameters")])))
    return 2 * len(asked & name) + len(asked & (about - name))


def _stems(text: str) -> Iterator[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for word in _WORD.findall(spaced.casefold()):
        if word not in _SMALL_WORDS and len(word) > 1:
            yield re.sub(r"(?:ing|ed|es|s)$", "", word) if len(word) > 4 else word


def _arguments(parameters: object, prompt: str, choice: SeededChoice) -> Mapping[str, object]:
    schema = parameters if isinstance(parameters, Mapping) else {}
    try:
        value = build_instance({"type": "object", **schema}, choice, hints_of(prompt))
    except UnsatisfiableSchema:
        return {}
    return value if isinstance(value, Mapping) else {}
