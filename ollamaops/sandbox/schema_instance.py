"""JSON Schema → one JSON value that satisfies it: how the pretend model obeys `format` and tool parameters.

Decides the value; what the prompt offers (`Hints`) is used where the schema leaves room. Drawing follows the schema
top down and is then checked by the jsonschema package; a draw that fails is thrown again, because `oneOf`, `not` and
`pattern` cannot be satisfied by construction alone. Optional properties are always given, but for recursion's end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jsonschema import Draft202012Validator

from ollamaops.sandbox.pattern_words import text_matching
from ollamaops.sandbox.seeded_choice import SeededChoice

ATTEMPTS = 24
_DEEPEST = 4
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "juniper", "maple", "opal")
_FORMATS = {
    "date": "2024-0{d}-1{d}",
    "date-time": "2024-0{d}-1{d}T0{d}:3{d}:00Z",
    "time": "0{d}:3{d}:00Z",
    "duration": "P{d}D",
    "email": "{w}{d}@example.com",
    "idn-email": "{w}{d}@example.com",
    "hostname": "{w}{d}.example.com",
    "uri": "https://example.com/{w}/{d}",
    "url": "https://example.com/{w}/{d}",
    "uri-reference": "/{w}/{d}",
    "uuid": "0000000{d}-000{d}-4000-8000-00000000000{d}",
    "ipv4": "192.0.2.{d}",
    "ipv6": "2001:db8::{d}",
    "json-pointer": "/{w}/{d}",
    "regex": "{w}",
}


class UnsatisfiableSchema(ValueError):
    """No value was found for the schema: it contradicts itself, or asks for more than we can draw."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What the prompt offers: words and numbers in its order, and the whole text for enum values it names."""

    text: str = ""
    words: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Draw:
    """One attempt: the root schema for `$ref`, the lots, the hints."""

    root: Mapping[str, object]
    hints: Hints


def build_instance(schema: Mapping[str, object], choice: SeededChoice, hints: Hints | None = None) -> object:
    """A value valid under `schema` (draft 2020-12, local `$ref` only); UnsatisfiableSchema when none was found.

    Equal schema, choice and hints give an equal value.
    """
    validator = Draft202012Validator(schema)
    for attempt in range(ATTEMPTS):
        given = hints if hints and attempt < 2 else Hints()
        try:
            value = _value(schema, choice.branch(attempt), _Draw(schema, given), 0)
            if validator.is_valid(value):
                return value
        except _CONTRADICTIONS:
            continue
    raise UnsatisfiableSchema("no value satisfies the schema")


_CONTRADICTIONS = (UnsatisfiableSchema, re.error, ValueError, TypeError, KeyError, IndexError, RecursionError)


def _value(schema: object, choice: SeededChoice, draw: _Draw, depth: int) -> object:
    if not isinstance(schema, Mapping):
        if schema is False:
            raise UnsatisfiableSchema("false allows nothing")
        return choice.one_of(_WORDS)
    flat = _flattened(schema, choice, draw)
    if "const" in flat:
        return flat["const"]
    options = flat.get("enum")
    if isinstance(options, list):
        return _of_enum(options, choice, draw.hints)
    return _typed(_type_of(flat, choice, depth), flat, choice, draw, depth)


def _flattened(schema: Mapping[str, object], choice: SeededChoice, draw: _Draw) -> Mapping[str, object]:
    """The schema with `$ref`, `allOf` and one branch of `anyOf`/`oneOf`/`if` merged in."""
    merged = {key: value for key, value in schema.items() if key not in _COMBINING}
    for number, part in enumerate(_parts(schema, choice, draw)):
        if part is False:
            raise UnsatisfiableSchema("false allows nothing")
        if isinstance(part, Mapping):
            merged = _merged(merged, _flattened(part, choice.branch("part", number), draw))
    return merged


_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "then", "else"})


def _parts(schema: Mapping[str, object], choice: SeededChoice, draw: _Draw) -> Iterator[object]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield _resolved(reference, draw.root)
    yield from _list(schema.get("allOf"))
    for key in ("anyOf", "oneOf"):
        if branches := _list(schema.get(key)):
            yield choice.branch(key).one_of(branches)
    if "if" in schema:
        if choice.branch("if").below(2):
            yield from (schema["if"], schema.get("then", True))
        else:
            yield schema.get("else", True)


def _resolved(reference: str, root: Mapping[str, object]) -> object:
    """What a local reference (`#/$defs/x`) points at; UnsatisfiableSchema for any other."""
    if not reference.startswith("#"):
        raise UnsatisfiableSchema(f"reference {reference} is not local")
    place: object = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~").replace("%24", "$")
        place = place[int(key)] if isinstance(place, list) else _mapping(place)[key]
    return place


def _merged(left: Mapping[str, object], right: Mapping[str, object]) -> dict[str, object]:
    """Both schemas at once, as far as plain keywords go: the narrower bound, the union of properties and required."""
    result = dict(left)
    for key, value in right.items():
        result[key] = _both(key, result[key], value) if key in result else value
    return result


def _both(key: str, left: object, right: object) -> object:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return {**left, **right, **{k: {"allOf": [left[k], right[k]]} for k in left.keys() & right.keys()}}
    if key == "required" and isinstance(left, list) and isinstance(right, list):
        return [*left, *(name for name in right if name not in left)]
    if key in ("enum", "type") and isinstance(left, list) and isinstance(right, list):
        return [item for item in left if item in right]
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return max(left, right) if key.lower().startswith(("min", "exclusivemin")) else min(left, right)
    return right


def _type_of(schema: Mapping[str, object], choice: SeededChoice, depth: int) -> str:
    named = schema.get("type")
    if isinstance(named, str):
        return named
    if isinstance(named, list) and named:
        useful = [kind for kind in named if kind != "null"]
        return str(choice.branch("type").one_of(useful)) if useful and depth < _DEEPEST else str(named[-1])
    for kind, marks in _TELLTALES.items():
        if marks & schema.keys():
            return kind
    return "string"


_TELLTALES = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "contains", "uniqueItems"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}


def _typed(kind: str, schema: Mapping[str, object], choice: SeededChoice, draw: _Draw, depth: int) -> object:
    match kind:
        case "object":
            return _object(schema, choice, draw, depth)
        case "array":
            return _array(schema, choice, draw, depth)
        case "string":
            return _string(schema, choice, draw.hints)
        case "integer":
            return int(_number(schema, choice, draw.hints, whole=True))
        case "number":
            return _number(schema, choice, draw.hints, whole=False)
        case "boolean":
            return choice.below(2) == 0
        case "null":
            return None
        case _:
            raise UnsatisfiableSchema(f"type {kind} is not known")


def _object(schema: Mapping[str, object], choice: SeededChoice, draw: _Draw, depth: int) -> dict[str, object]:
    properties = _mapping(schema.get("properties", {}))
    required = [str(name) for name in _list(schema.get("required"))]
    names = list(properties) if depth < _DEEPEST else [name for name in properties if name in required]
    most = _count(schema, "maxProperties", len(names) + len(required) + 8)
    names = sorted(names, key=lambda name: name not in required)[: max(most, len(required))]
    names = [name for name in properties if name in names] + [n for n in required if n not in properties]
    result: dict[str, object] = {}
    for name in names:
        allowed = properties.get(name, _extra_schema(schema))
        if allowed is not False:
            result[name] = _value(allowed, choice.branch("property", name), draw, depth + 1)
    for number in range(_count(schema, "minProperties", 0) - len(result)):
        extra = f"{_WORDS[number % len(_WORDS)]}{number}"
        result[extra] = _value(_extra_schema(schema), choice.branch("extra", number), draw, depth + 1)
    return result


def _extra_schema(schema: Mapping[str, object]) -> object:
    """What a property without a schema of its own must satisfy."""
    extra = schema.get("additionalProperties", True)
    return {"type": "string"} if extra is True else extra


def _array(schema: Mapping[str, object], choice: SeededChoice, draw: _Draw, depth: int) -> list[object]:
    first = _list(schema.get("prefixItems"))
    items = schema.get("items", True)
    contains = schema.get("contains")
    fewest = max(_count(schema, "minItems", 0), 0 if items is False else len(first))
    most = _count(schema, "maxItems", max(fewest, 3))
    wanted = (
        fewest
        if depth >= _DEEPEST
        else choice.between(min(max(fewest, 1), most), max(min(fewest + 2, most), 0))
    )
    if items is False:
        wanted = min(wanted or len(first), len(first))
    result: list[object] = []
    for number in range(wanted):
        inside = first[number] if number < len(first) else {"type": "string"} if items is True else items
        if contains is not None and number == wanted - 1 and number >= len(first):
            inside = {"allOf": [inside, contains]}
        result.append(_fresh_item(inside, choice.branch("item", number), draw, depth, result, schema))
    return result


def _fresh_item(
    inside: object,
    choice: SeededChoice,
    draw: _Draw,
    depth: int,
    before: Sequence[object],
    schema: Mapping[str, object],
) -> object:
    """An item that is not in the list yet, where the schema wants unique items."""
    item = _value(inside, choice, draw, depth + 1)
    without = _Draw(draw.root, Hints())
    for number in range(64 if schema.get("uniqueItems") is True else 0):
        if item not in before:
            break
        item = _value(inside, choice.branch("again", number), without, depth + 1)
    return item


def _string(schema: Mapping[str, object], choice: SeededChoice, hints: Hints) -> str:
    pattern = schema.get("pattern")
    named = _FORMATS.get(str(schema.get("format")))
    if isinstance(pattern, str):
        return _fitted_pattern(pattern, schema, choice)
    if named is not None:
        return named.format(d=choice.between(1, 9), w=choice.one_of(_WORDS))
    low, high = _count(schema, "minLength", 0), _count(schema, "maxLength", 10**6)
    fitting = [word for word in hints.words if low <= len(word) <= high]
    text = fitting[0] if fitting else choice.one_of(_WORDS)
    for number in range(max(low - len(text), 0)):
        text += " " if number % 7 == 0 and len(text) + 1 < low else chr(97 + choice.branch(number).below(26))
    return text[:high]


def _fitted_pattern(pattern: str, schema: Mapping[str, object], choice: SeededChoice) -> str:
    low, high = _count(schema, "minLength", 0), _count(schema, "maxLength", 10**6)
    for number in range(32):
        text = text_matching(pattern, choice.branch("pattern", number))
        if low <= len(text) <= high:
            return text
    raise UnsatisfiableSchema(f"no text of {low} to {high} characters matches {pattern}")


def _number(schema: Mapping[str, object], choice: SeededChoice, hints: Hints, *, whole: bool) -> float:
    low, high = _bound(schema, "minimum"), _bound(schema, "maximum")
    above, below = _bound(schema, "exclusiveMinimum"), _bound(schema, "exclusiveMaximum")
    for given in hints.numbers:
        if _within(given, low, high, above, below) and (given == int(given) or not whole):
            return _plain(given)
    step = _bound(schema, "multipleOf")
    if step or whole:
        lowest, highest = _step_range(step or 1, low, high, above, below)
        return _plain(choice.between(lowest, highest) * (step or 1))
    return _plain(_between(_most(low, above), _least(high, below), choice))


def _between(low: float | None, high: float | None, choice: SeededChoice) -> float:
    """An eighth of the way between the bounds, or two or seven; an open side is 50 away."""
    lowest = low if low is not None else min(0.0, (high if high is not None else 50.0) - 50)
    highest = high if high is not None else lowest + 50
    return lowest + (highest - lowest) * choice.between(1, 7) / 8


def _step_range(
    step: float, low: float | None, high: float | None, above: float | None, below: float | None
) -> tuple[int, int]:
    """The smallest and largest multiple of `step` that the bounds allow, at most 100 apart where one side is open."""
    lowest = None if low is None else math.ceil(low / step)
    highest = None if high is None else math.floor(high / step)
    if above is not None:
        lowest = max(math.floor(above / step) + 1, lowest if lowest is not None else -(10**30))
    if below is not None:
        highest = min(math.ceil(below / step) - 1, highest if highest is not None else 10**30)
    if lowest is None:
        lowest = 0 if highest is None or highest >= 0 else highest - 100
    highest = lowest + 100 if highest is None else highest
    if lowest > highest:
        raise UnsatisfiableSchema("no number lies between the bounds")
    return lowest, highest


def _most(*bounds: float | None) -> float | None:
    return max((bound for bound in bounds if bound is not None), default=None)


def _least(*bounds: float | None) -> float | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _within(
    value: float, low: float | None, high: float | None, above: float | None, below: float | None
) -> bool:
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _plain(value: float) -> float:
    """A whole float as an int, so that JSON prints `3`, not `3.0`."""
    return int(value) if value == int(value) else value


def _of_enum(options: Sequence[object], choice: SeededChoice, hints: Hints) -> object:
    """The value that the prompt names, else any."""
    text = hints.text.casefold()
    for option in options:
        if isinstance(option, str) and option and re.search(rf"\b{re.escape(option.casefold())}\b", text):
            return option
    if not options:
        raise UnsatisfiableSchema("an empty enum allows nothing")
    return choice.one_of(options)


def _bound(schema: Mapping[str, object], key: str) -> float | None:
    value = schema.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _count(schema: Mapping[str, object], key: str, otherwise: int) -> int:
    value = _bound(schema, key)
    return otherwise if value is None else int(value)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UnsatisfiableSchema(f"{value!r} is not an object")
    return value
