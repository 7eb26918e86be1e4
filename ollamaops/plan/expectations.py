"""What a declared expectation asks of a model, and whether what was seen of the model meets it.

observe/verify.py asks the model and gathers the evidence. An expectation without a prompt still has the model loaded,
because servers create, list and show models that they cannot run. A model's thoughts are not part of its answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import mul
from typing import Any, cast

from jsonschema import validators
from msgspec import Struct, field
from referencing import Registry
from referencing.exceptions import Unresolvable

from ollamaops.errors import cut_text
from ollamaops.names import ModelName
from ollamaops.units import format_duration, parse_duration

Option = int | float | bool | str | tuple[str, ...] | None


class Expectation(Struct, frozen=True, kw_only=True):
    """One declared expectation; everything in it must be met. The key of the manifest is the field's name
    but for `json`, which is `is_json`, and units.

    `messages` are (role, content) pairs. `json_schema` is the schema's JSON text. `closer` is (query, near, far).
    `think` None leaves thinking out where the model can do without: it would use up the tokens of a short answer.
    """

    capabilities: tuple[str, ...] = ()
    prompt: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    matches: str = ""
    contains: tuple[str, ...] = ()
    is_json: bool = False
    json_schema: str = ""
    tools: tuple[str, ...] = ()
    length: int | None = None
    closer: tuple[str, str, str] | None = None
    max_load_s: float | None = None
    min_tokens_per_s: float | None = None
    context_length: int | None = None
    think: bool | str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def is_embedding(self) -> bool:
        """Whether its texts are to be embedded, whatever else the model can do."""
        return self.length is not None or self.closer is not None

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """What is asked as (role, content) pairs, from a prompt or messages; nothing when it is only loaded."""
        return self.messages or ((("user", self.prompt),) if self.prompt else ())

    @property
    def texts(self) -> tuple[str, ...]:
        """What is embedded: the prompt, or each message, then the three texts of `closer`."""
        return (*(content for _, content in self.conversation), *(self.closer or ()))


def read_expectations(declared: Iterable[Mapping[str, object]]) -> tuple[Expectation, ...]:
    """The expectations of a ModelSpec's `expect`, which schema and check have found to be sound."""
    return tuple(map(_read, declared))


def _read(table: Mapping[str, object]) -> Expectation:
    closer = _texts(table.get("closer"))
    messages = cast("Sequence[Mapping[str, str]]", table.get("messages", ()))
    schema, load, rate = table.get("json_schema"), table.get("max_load"), table.get("min_tokens_per_s")
    return Expectation(
        capabilities=_texts(table.get("capabilities")),
        prompt=cast("str", table.get("prompt", "")),
        messages=tuple((message["role"], message["content"]) for message in messages),
        matches=cast("str", table.get("matches", "")),
        contains=_texts(table.get("contains")),
        is_json=table.get("json") is True,
        json_schema="" if schema is None else json.dumps(schema, sort_keys=True),
        tools=_texts(table.get("tools")),
        length=cast("int | None", table.get("length")),
        closer=(closer[0], closer[1], closer[2]) if closer else None,
        max_load_s=None if load is None else parse_duration(cast("str | float", load)),
        min_tokens_per_s=None if rate is None else float(cast("int | float", rate)),
        context_length=cast("int | None", table.get("context_length")),
        think=cast("bool | str | None", table.get("think")),
        options={name: _option(value) for name, value in _pairs(table.get("options"))},
    )


def _texts(value: object) -> tuple[str, ...]:
    """One text or a list of them."""
    return (value,) if isinstance(value, str) else tuple(cast("Sequence[str]", value or ()))


def _pairs(value: object) -> Iterable[tuple[str, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _option(value: object) -> Option:
    return tuple(map(str, value)) if isinstance(value, list) else cast("Option", value)


SHOWN_CHARACTERS = 120
_MORE_ROOM = "give it more room: options.num_predict"
_LONGER = "set parameters.num_ctx of the model, if its weights can do more"
_NOT_TOLD = "set parameters.num_ctx of the model: servers before 0.10.0 do not tell their default"
_THINK, _THOUGHT = "<think>", "</think>"

Vector = tuple[float, ...]


class Evidence(Struct, frozen=True, kw_only=True):
    """What was seen of a model for one expectation.

    `text` is None when the model did not answer with words, and without the thoughts that `has_thought` tells of.
    `vectors` are those of the expectation's texts, in order.
    `load_s` is the longest load of the model so far, `tokens_per_s` None when that was too fast to measure.
    `context_length` is what a request may fill, 0 when not known. `error` are the server's words when it refused.
    """

    capabilities: tuple[str, ...] = ()
    text: str | None = None
    has_thought: bool = False
    tool_calls: tuple[str, ...] = ()
    vectors: tuple[Vector, ...] = ()
    load_s: float = 0.0
    tokens: int = 0
    tokens_per_s: float | None = None
    is_cut: bool = False
    context_length: int = 0
    error: str = ""


class Failure(Struct, frozen=True):
    """One thing that is not met: the key of the expectation (or `answer`), what was found, and a way out."""

    what: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.message}"


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of a model's expectations: none of them failed, or each failure in the order of the manifest.

    `error`: there is no verdict, because something else than the model failed.
    """

    model: ModelName
    expectations: int
    failures: tuple[Failure, ...] = ()
    error: str = ""
    hint: str | None = None
    load_s: float = 0.0
    tokens_per_s: float | None = None
    seconds: float = 0.0

    @property
    def is_met(self) -> bool:
        return not (self.failures or self.error)


def without_thinking(text: str) -> str:
    """What is said, without the thoughts before it: one that repeats the question would meet what an answer does not.

    Servers before 0.9.0 leave them in the answer, and so do newer ones for a model that thinks although it was told
    not to: of those only the end is marked, because the prompt has marked the beginning.
    """
    thoughts, end, answer = text.partition(_THOUGHT)
    if text.lstrip().startswith(_THINK) or (end and _THINK not in thoughts):
        return answer.lstrip()
    return text


def judge(expectation: Expectation, evidence: Evidence) -> tuple[Failure, ...]:
    """Everything that is not met, in the order of the keys in the schema; nothing when the expectation is met."""
    rules = (_capabilities, _refusal) if evidence.error else _RULES
    return tuple(failure for rule in rules for failure in rule(expectation, evidence))


def _refusal(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    yield Failure("answer", cut_text(evidence.error))


def _capabilities(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    missing = [name for name in expectation.capabilities if name not in evidence.capabilities]
    if missing:
        has = ", ".join(evidence.capabilities) or "none"
        yield Failure("capabilities", f"no {', no '.join(missing)}; it has {has}")


def _matches(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    if expectation.matches and not re.search(expectation.matches, evidence.text or ""):
        yield _missed("matches", f"no match of '{cut_text(expectation.matches)}' in ", evidence)


def _contains(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    for text in expectation.contains:
        if text not in (evidence.text or ""):
            yield _missed("contains", f"no '{cut_text(text, SHOWN_CHARACTERS)}' in ", evidence)


def _missed(what: str, missing: str, evidence: Evidence) -> Failure:
    """What is missing in the answer; with a way out when the model never got round to it."""
    has_room = not (evidence.is_cut and _is_thought_alone(evidence))
    return Failure(what, missing + _answer(evidence), None if has_room else _MORE_ROOM)


def _is_thought_alone(evidence: Evidence) -> bool:
    return evidence.has_thought and not evidence.text


def _answer(evidence: Evidence) -> str:
    """The answer as a message names it: `an answer of 12 characters: 'I am a cat.'`."""
    if evidence.text is None:
        return "an embedding" if evidence.vectors else "nothing: there is no answer"
    said = cut_text(evidence.text, SHOWN_CHARACTERS)
    cut = f", cut off after {evidence.tokens} tokens" if evidence.is_cut else ""
    if _is_thought_alone(evidence):
        return f"an answer of thoughts alone{cut}"
    return f"an answer of {len(evidence.text)} characters{cut}: '{said}'"


def _json(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    if not (expectation.is_json or expectation.json_schema):
        return
    key = "json" if expectation.is_json else "json_schema"
    try:
        document = json.loads(evidence.text or "")
    except (ValueError, RecursionError):
        yield _missed(key, "no JSON in ", evidence)
        return
    if expectation.json_schema:
        yield from _schema_failures(expectation.json_schema, document)


def _schema_failures(schema: str, document: Any) -> Iterator[Failure]:
    """Every way in which the document breaks the schema; a reference to somewhere else is never fetched."""
    value = json.loads(schema)
    kind = validators.validator_for(value, default=validators.Draft202012Validator)
    try:
        for error in kind(value, registry=Registry()).iter_errors(document):
            place = error.json_path.removeprefix("$").removeprefix(".")
            where = f"{place}: " if place else ""
            yield Failure("json_schema", where + cut_text(error.message, SHOWN_CHARACTERS))
    except Unresolvable as error:
        yield Failure("json_schema", f"the schema refers to '{cut_text(error.ref)}', which is not in it")


def _tools(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    missing = [name for name in expectation.tools if name not in evidence.tool_calls]
    if missing and evidence.tool_calls:
        called = ", ".join(evidence.tool_calls)
        yield Failure("tools", f"no call of {', '.join(missing)}; called: {called}")
    elif missing:
        yield _missed("tools", f"no call of {', '.join(missing)}; called: none, but ", evidence)


def _length(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    if expectation.length is None:
        return
    found = sorted({len(vector) for vector in evidence.vectors})
    if found != [expectation.length]:
        numbers = " and ".join(map(str, found)) or "no"
        yield Failure("length", f"an embedding of {numbers} numbers, {expectation.length} expected")


def _closer(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    if expectation.closer is None:
        return
    query, near, far = (f"'{cut_text(text, 40)}'" for text in expectation.closer)
    vectors = evidence.vectors[-3:]
    if len(vectors) < 3 or len({len(vector) for vector in vectors}) != 1:
        yield Failure(
            "closer",
            f"{len(evidence.vectors)} embeddings for {len(expectation.texts)} texts, or of unlike length",
        )
        return
    to_near, to_far = cosine(vectors[0], vectors[1]), cosine(vectors[0], vectors[2])
    if not to_near > to_far:
        yield Failure("closer", f"{query} is {to_near:.3f} near {near} and {to_far:.3f} near {far}")


def cosine(one: Vector, other: Vector) -> float:
    """The cosine of the angle between two vectors of equal length, from -1 to 1; 0 when one of them is zero."""
    norms = math.hypot(*one) * math.hypot(*other)
    return math.fsum(map(mul, one, other)) / norms if norms else 0.0


def _load(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    limit = expectation.max_load_s
    if limit is not None and evidence.load_s > limit:
        took, allowed = format_duration(evidence.load_s), format_duration(limit)
        yield Failure("max_load", f"loading took {took}, {allowed} allowed")


def _speed(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    limit = expectation.min_tokens_per_s
    if limit is None:
        return
    if evidence.tokens == 0:
        yield Failure("min_tokens_per_s", f"no tokens came, {limit:g} a second expected")
    elif evidence.tokens_per_s is not None and evidence.tokens_per_s < limit:
        yield Failure("min_tokens_per_s", f"{evidence.tokens_per_s:.1f} tokens a second, {limit:g} expected")


def _context(expectation: Expectation, evidence: Evidence) -> Iterator[Failure]:
    limit = expectation.context_length
    if limit is None or evidence.context_length >= limit:
        return
    found, hint = "a length that is not known", _NOT_TOLD
    if evidence.context_length:
        found, hint = f"{evidence.context_length} tokens", _LONGER
    yield Failure("context_length", f"loaded with {found}, {limit} expected", hint)


_RULES: tuple[Callable[[Expectation, Evidence], Iterator[Failure]], ...] = (
    _capabilities,
    _matches,
    _contains,
    _json,
    _tools,
    _length,
    _closer,
    _load,
    _speed,
    _context,
)
