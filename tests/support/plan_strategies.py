"""Hypothesis strategies for anything in plan/actions.py, read off the types of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from msgspec import Struct, structs

from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import Plan
from ollamaops.state.records import Fingerprint

WORDS = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,6}", fullmatch=True)
TEXTS = st.text(max_size=12)
HASHES = st.text("0123456789abcdef", max_size=12)  # what a fingerprint is made of


@st.composite
def model_names(draw: st.DrawFn) -> ModelName:
    """Short and full names, in any case, some of them on registries without TLS."""
    model, tag = draw(WORDS), draw(WORDS)
    if draw(st.booleans()):
        return ModelName.parse(f"{model}:{tag}")
    scheme = draw(st.sampled_from(("", "http://", "https://")))
    return ModelName.parse(f"{scheme}localhost:5000/ns/{model}:{tag}")


_LEAVES: dict[object, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(min_value=0, max_value=10**13),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXTS,
    ModelName: model_names(),
    Digest: st.binary(max_size=3).map(Digest.of),
    Fingerprint: st.builds(Fingerprint, HASHES, HASHES),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that the type allows, small."""
    origin, arms = get_origin(kind), get_args(kind)
    if kind in _LEAVES:
        return _LEAVES[kind]
    if origin is Literal:
        return st.sampled_from(arms)
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, arms))
    if origin is tuple and arms[-1] is Ellipsis:
        return st.lists(values_of(arms[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arms))
    if origin is Mapping:
        return st.dictionaries(TEXTS, values_of(arms[1]), max_size=2)
    assert issubclass(kind, Struct), kind
    return _values_with_fields_of(kind)


def _values_with_fields_of(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values_of(hints[field.name]) for field in structs.fields(kind)})


PLANS: st.SearchStrategy[Plan] = values_of(Plan)
