"""A JSON value that satisfies a JSON Schema: how the pretend model obeys `format` and the parameters of a tool.

A value is drawn along the schema and then checked with the jsonschema package; a draw that fails is thrown
again. So `oneOf`, `not` and other keywords that are not drawn along work where a few draws are enough. Every
property that the schema names is given, except deep inside a recursion.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from rstr import Rstr

from ollamaops.sandbox.seeded_choice import SeededChoice

ATTEMPTS = 24
_PATTERN_ATTEMPTS = 40
_DEEPEST = 4
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "juniper", "maple", "opal")
_FORMATS = {
    "date": "2024-0{d}-1{d}",
    "date-time": "2024-0{d}-1{d}T0{d}:3{d}:00Z",
    "time": "0{d}:3{d}:00Z",
    "email": "{w}{d}@example.com",
    "hostname": "{w}{d}.example.com",
    "uri": "https://example.com/{w}/{d}",
    "uuid": "0000000{d}-000{d}-4000-8000-00000000000{d}",
    "ipv4": "192.0.2.{d}",
    "ipv6": "2001:db8::{d}",
}
_TYPE_OF_KEYWORD = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "minProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
Schema = Mapping[str, Any]


class UnsatisfiableSchema(ValueError):
    """No value was found: the schema contradicts itself, or asks for more than can be drawn."""


def build_instance(schema: Schema, choice: SeededChoice) -> object:
    """A value valid under `schema` (draft 2020-12, local `$ref` only). UnsatisfiableSchema.

    Equal schema and choice give an equal value.
    """
    validator = Draft202012Validator(schema)
    for attempt in range(ATTEMPTS):
        try:
            value = _value(schema, schema, choice.branch(attempt), 0)
            if validator.is_valid(value):
                return value
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, re.error):
            continue  # the schema is wrong, or this draw led into a contradiction
    raise UnsatisfiableSchema("no value satisfies the schema")


def _value(schema: object, root: Schema, choice: SeededChoice, depth: int) -> object:
    if not isinstance(schema, Mapping):
        if schema is False:
            raise UnsatisfiableSchema("false allows nothing")
        return choice.one_of(_WORDS)
    flat = _flattened(schema, root, choice)
    if "const" in flat:
        return flat["const"]
    if "enum" in flat:
        return choice.one_of(flat["enum"])
    match _type_of(flat, choice, depth):
        case "object":
            return _object(flat, root, choice, depth)
        case "array":
            return _array(flat, root, choice, depth)
        case "string":
            return _string(flat, choice)
        case "integer":
            return _number(flat, choice, step=flat.get("multipleOf", 1))
        case "number":
            return _number(flat, choice, step=flat.get("multipleOf"))
        case "boolean":
            return choice.below(2) == 0
        case "null":
            return None
        case unknown:
            raise UnsatisfiableSchema(f"type {unknown} is not known")


def _flattened(schema: Schema, root: Schema, choice: SeededChoice) -> dict[str, Any]:
    """The schema with `$ref`, `allOf` and one branch each of `anyOf` and `oneOf` merged in."""
    flat = {key: value for key, value in schema.items() if key not in {"$ref", "allOf", "anyOf", "oneOf"}}
    parts = [_resolved(schema["$ref"], root)] if "$ref" in schema else []
    parts += schema.get("allOf", [])
    parts += [choice.branch(key).one_of(schema[key]) for key in ("anyOf", "oneOf") if key in schema]
    for number, part in enumerate(parts):
        if part is False:
            raise UnsatisfiableSchema("false allows nothing")
        if isinstance(part, Mapping):
            for key, value in _flattened(part, root, choice.branch("part", number)).items():
                flat[key] = _both(key, flat[key], value) if key in flat else value
    return flat


def _resolved(reference: str, root: Schema) -> object:
    if not reference.startswith("#"):
        raise UnsatisfiableSchema(f"reference {reference} is not local")
    place: Any = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        place = place[int(key)] if isinstance(place, list) else place[key]
    return place


def _both(key: str, left: Any, right: Any) -> object:
    """One keyword that satisfies both of its values, where that is easy to say."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return {
            **left,
            **right,
            **{name: {"allOf": [left[name], right[name]]} for name in left.keys() & right},
        }
    if isinstance(left, list) and isinstance(right, list):
        return list(dict.fromkeys([*left, *right])) if key == "required" else [i for i in left if i in right]
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return max(left, right) if key.lower().startswith(("min", "exclusivemin")) else min(left, right)
    return right


def _type_of(schema: Schema, choice: SeededChoice, depth: int) -> str:
    """The type to draw; of several `null` only to end a recursion."""
    named = schema.get("type")
    if isinstance(named, list):
        useful = [kind for kind in named if kind != "null"]
        named = choice.branch("type").one_of(useful) if useful and depth < _DEEPEST else named[-1]
    found = (_TYPE_OF_KEYWORD[key] for key in schema if key in _TYPE_OF_KEYWORD)
    return str(named or next(found, "string"))


def _object(schema: Schema, root: Schema, choice: SeededChoice, depth: int) -> dict[str, object]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    others = schema.get("additionalProperties", True)
    names = [name for name in properties if depth < _DEEPEST or name in required]
    names += [name for name in required if name not in properties]
    names += [f"extra{number}" for number in range(schema.get("minProperties", 0) - len(names))]
    return {
        name: _value(properties.get(name, others), root, choice.branch("property", name), depth + 1)
        for name in names
        if properties.get(name) is not False
    }


def _array(schema: Schema, root: Schema, choice: SeededChoice, depth: int) -> list[object]:
    first, others = schema.get("prefixItems", []), schema.get("items", True)
    fewest = max(schema.get("minItems", 0), len(first))
    most = schema.get("maxItems", fewest if others is False else fewest + 2)
    count = min(fewest, most) if depth >= _DEEPEST else choice.between(min(max(fewest, 1), most), most)
    found: list[object] = []
    for number in range(count):
        inside = first[number] if number < len(first) else others
        for again in range(64):
            item = _value(inside, root, choice.branch("item", number, again), depth + 1)
            if not schema.get("uniqueItems") or item not in found:
                found.append(item)
                break
    return found


class _StableRandom(random.Random):
    """rstr chooses characters from sets, whose order differs from process to process."""

    def choice(self, seq: Any) -> Any:
        return super().choice(sorted(seq) if isinstance(seq[0], str) else seq)


def _string(schema: Schema, choice: SeededChoice) -> str:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if "pattern" in schema:
        sample = Rstr(_StableRandom(choice.key))
        texts = (sample.xeger(schema["pattern"]) for _ in range(_PATTERN_ATTEMPTS))
        return next((text for text in texts if low <= len(text) <= high), "")
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]].format(d=choice.between(1, 9), w=choice.one_of(_WORDS))
    text = choice.one_of(_WORDS)
    while len(text) < low:
        text += f" {choice.branch(len(text)).one_of(_WORDS)}"
    return text[: min(len(text), max(low, 12), high)]


def _number(schema: Schema, choice: SeededChoice, step: float | None) -> float:
    """A multiple of `step` between the bounds, else any number between them; an open side is 50 away."""
    lows = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    highs = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    low = max(lows) if lows else min(0, min(highs, default=50) - 50)
    high = min(highs) if highs else low + 50
    if step:
        first, last = math.ceil(low / step), math.floor(high / step)
        first += first * step == schema.get("exclusiveMinimum")
        last -= last * step == schema.get("exclusiveMaximum")
        number = choice.between(first, last) * step
    else:
        number = low + (high - low) * choice.between(1, 7) / 8
    return int(number) if number == int(number) else number
