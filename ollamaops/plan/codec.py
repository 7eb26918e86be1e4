"""A plan as JSON and back, and its fingerprint.

Values become JSON by walking the fields of actions.py, so a new field travels by itself. The fingerprint inside
the document shows when its writer knew a field that the reader does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeAlias, Union, cast, get_args, get_origin

from msgspec import Struct
from msgspec.structs import asdict, fields

from ollamaops.errors import InvalidName, InvalidValue, UsageError
from ollamaops.names import DEFAULT_SCHEME, Digest, ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    HostPlan,
    LoadModel,
    Plan,
    PullModel,
    PushModel,
    Refusal,
    UnloadModel,
    UnreachedHost,
    UploadBlob,
    VerifyModel,
    id_of,
    verb_of,
)
from ollamaops.state.records import Fingerprint

FORMAT = "ollamaops-plan"
VERSION = 2

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

ACTION_TYPES: Mapping[str, type[Action]] = {
    "pull": PullModel,
    "upload": UploadBlob,
    "create": CreateModel,
    "copy": CopyModel,
    "delete": DeleteModel,
    "push": PushModel,
    "verify": VerifyModel,
    "load": LoadModel,
    "unload": UnloadModel,
}
_ACTIONS = tuple(ACTION_TYPES.values())
_SCALARS = (NoneType, bool, int, float, str)

# What makes no difference between two plans, by type of value: what is said for people.
_PROSE: Mapping[type, frozenset[str]] = {
    **dict.fromkeys(_ACTIONS, frozenset({"because"})),
    PullModel: frozenset({"because", "template_change"}),
    HostPlan: frozenset({"notes", "leftovers", "templates"}),
    Refusal: frozenset({"message", "hint"}),
    UnreachedHost: frozenset({"error", "hint"}),
    Plan: frozenset({"kind"}),  # how the same plan is carried out
}
# Tuples whose order says nothing; all others (stop words, messages, licenses) mean what they say in order.
_UNORDERED: Mapping[type, frozenset[str]] = {
    **dict.fromkeys(_ACTIONS, frozenset({"needs", "expects", "current", "pin"})),
    HostPlan: frozenset({"actions", "unchanged", "unmanaged", "rolled_back", "refusals"}),
    Plan: frozenset({"hosts", "unreached"}),
}
_NEW_PLAN = "make a new one with: ollamaops plan --out FILE"


def plan_to_json(plan: Plan) -> dict[str, Json]:
    """The document of a saved plan: `format`, `version`, `fingerprint`, then the fields of Plan.

    Each action has, beside its own fields, `action` (its verb) and `id`. Everything in it is plain JSON.
    """
    head: dict[str, Json] = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint(plan)}
    return head | {name: value_to_json(value) for name, value in _parts(plan).items()}


def plan_from_json(document: object) -> Plan:
    """The plan in a document that plan_to_json made (and json read); the same value again.

    UsageError if it is not such a document, was changed by hand, or comes from a newer ollamaops.
    """
    body = _check_head(document)
    plan = cast(Plan, _decode(Plan, body, ""))
    if fingerprint(plan) != body.get("fingerprint"):
        raise UsageError(
            "the saved plan was changed after it was written: its fingerprint differs", hint=_NEW_PLAN
        )
    return plan


def fingerprint(plan: Plan) -> str:
    """64 hex digits that are equal for equal plans, whatever the order of hosts, models and actions.

    Prose (`because`, notes, messages, hints) has no part in it; facts, costs and `made_from` have.
    """
    text = json.dumps(_essence(plan), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def value_to_json(value: object) -> Json:
    """Any value of plan/, and what is built of such values, as plain JSON; TypeError for anything else."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case ModelName():
            return _render_name(value)
        case Digest() | Fingerprint():
            return str(value)
        case Mapping():
            return {str(key): value_to_json(item) for key, item in value.items()}
        case tuple():
            return [value_to_json(item) for item in value]
        case _:
            body = {name: value_to_json(item) for name, item in _parts(value).items()}
    if isinstance(value, _ACTIONS):
        return {"action": verb_of(value), "id": id_of(value), **body}
    return body


def _parts(value: object) -> Mapping[str, object]:
    """The fields of a value by name."""
    if not isinstance(value, Struct):
        raise TypeError(f"{type(value).__name__} is not a value of a plan")
    return asdict(value)


def _render_name(name: ModelName) -> str:
    """Text that parses to the same name; the scheme is written only where it says something."""
    return name.display if name.scheme == DEFAULT_SCHEME else f"{name.scheme}://{name.full}"


def _essence(value: object) -> Json:
    """As value_to_json, without prose, in an order of its own, and equal for values that compare equal."""
    match value:
        case ModelName():
            return value.key
        case float() if value.is_integer():
            return int(value)
        case None | bool() | int() | float() | str() | Digest() | Fingerprint():
            return value_to_json(value)
        case Mapping():
            return {str(key): _essence(item) for key, item in value.items()}
        case tuple():
            return [_essence(item) for item in value]
        case _:
            return _essence_of_fields(value)


def _essence_of_fields(value: object) -> Json:
    essence: dict[str, Json] = {"type": type(value).__name__}
    prose, unordered = _PROSE.get(type(value), ()), _UNORDERED.get(type(value), ())
    for name, item in _parts(value).items():
        if name not in prose:
            essence[name] = _sorted(item) if name in unordered else _essence(item)
    return essence


def _sorted(items: object) -> Json:
    return sorted((_essence(item) for item in cast("tuple[object, ...]", items)), key=_order)


def _order(item: Json) -> str:
    return json.dumps(item, sort_keys=True)


def _check_head(document: object) -> Mapping[str, object]:
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise UsageError(f"not a saved plan: it does not begin with format '{FORMAT}'", hint=_NEW_PLAN)
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise UsageError(
            f"not a saved plan: version {_found(version)} is not a number from 1 up", hint=_NEW_PLAN
        )
    if version < VERSION:
        raise UsageError(f"the saved plan has version {version}: an older ollamaops made it", hint=_NEW_PLAN)
    if version > VERSION:
        raise UsageError(
            f"the saved plan has version {version}: this ollamaops reads up to {VERSION}",
            hint="upgrade ollamaops, or make a new plan with this one",
        )
    return document


def _decode(kind: object, value: object, place: str) -> object:
    """`value` as a value of the type `kind`; UsageError with its place in the document if it is none."""
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode(_pick(arms, value, place), value, place)
    if origin is Literal:
        return value if value in arms else _wrong(place, value, _one_of(map(str, arms)))
    if origin is tuple:
        return _decode_tuple(arms, value, place)
    if origin is not None:  # Mapping[str, X]
        items = _of_type(dict, value, place).items()
        return {key: _decode(arms[1], item, f"{place}.{key}") for key, item in items}
    if kind in _SCALARS:
        return _of_type(cast(type, kind), value, place)
    if kind is ModelName or kind is Digest or kind is Fingerprint:
        return _decode_text(kind, _of_type(str, value, place), place)
    return _decode_fields(kind, _of_type(dict, value, place), place)


def _pick(arms: tuple[object, ...], value: object, place: str) -> object:
    """Which member of a union the value is written as."""
    if set(arms) == set(_ACTIONS):
        verb = _of_type(dict, value, place).get("action")
        known = isinstance(verb, str) and verb in ACTION_TYPES
        return ACTION_TYPES[verb] if known else _wrong(f"{place}.action", verb, _one_of(ACTION_TYPES))
    for arm in arms:
        if type(value) is _json_type(arm):
            return arm
    return _wrong(place, value, " or ".join(_json_type(arm).__name__ for arm in arms))


def _json_type(kind: object) -> type:
    """What a value of this type is in JSON."""
    if kind in _SCALARS:
        return cast(type, kind)
    return list if get_origin(kind) is tuple else str


def _decode_tuple(arms: tuple[object, ...], value: object, place: str) -> tuple[object, ...]:
    items = _of_type(list, value, place)
    kinds = [arms[0]] * len(items) if arms[-1] is Ellipsis else list(arms)
    if len(kinds) != len(items):
        _wrong(place, value, f"a list of {len(kinds)}")
    return tuple(
        _decode(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _decode_text(
    kind: type[ModelName | Digest | Fingerprint], text: str, place: str
) -> ModelName | Digest | Fingerprint:
    try:
        return kind.parse(text)
    except (InvalidName, InvalidValue) as error:
        raise UsageError(f"the saved plan cannot be read: {place}: {error}", hint=_NEW_PLAN) from error


def _decode_fields(kind: object, value: Mapping[str, object], place: str) -> object:
    """A value out of a JSON object; a field that is not there takes its default."""
    build, given = cast("type[Any]", kind), {}
    for name, (hint, is_needed) in _signature(kind).items():
        path = f"{place}.{name}".lstrip(".")
        if name in value:
            given[name] = _decode(hint, value[name], path)
        elif is_needed:
            _wrong(path, None, "a value")
    return build(**given)


@cache
def _signature(kind: object) -> Mapping[str, tuple[object, bool]]:
    """The fields of a value: name → its type, and whether it has no default."""
    return {field.name: (field.type, field.required) for field in fields(cast("type[Struct]", kind))}


def _of_type(kind: type[Any], value: object, place: str) -> Any:
    return value if type(value) is kind else _wrong(place, value, kind.__name__)


def _wrong(place: str, value: object, wanted: str) -> NoReturn:
    raise UsageError(
        f"the saved plan cannot be read: {place}: {_found(value)} is not {wanted}", hint=_NEW_PLAN
    )


def _one_of(words: Iterable[str]) -> str:
    return "one of " + ", ".join(words)


def _found(value: object) -> str:
    return type(value).__name__ if isinstance(value, dict | list) else json.dumps(value)[:64]
