"""The published JSON Schema: valid, documented to the last key, and in step with what is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_strategies import JSON_VALUES
from jsonschema import Draft202012Validator
from manifest_folder import EVERYTHING_ELSE, LONG_FORM
from referencing import Registry, Resource

from ollamaops.manifest.document import parse_document, to_plain
from ollamaops.manifest.schema import Flaw, manifest_schema, schema_flaws

Schema = Mapping[str, object]


def flaws(text: str) -> tuple[Flaw, ...]:
    document = parse_document(text.encode(), "m.yaml")
    assert document.problems == ()
    assert document.root is not None
    return schema_flaws(document.root)


def subschemas(schema: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Every schema inside `schema`; examples and the names of properties are none."""
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from subschemas(item, (*path, str(index)))
    elif isinstance(schema, dict):
        yield path, schema
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                for name, inner in value.items():
                    yield from subschemas(inner, (*path, key, name))
            elif key not in ("examples", "enum", "required", "dependentRequired", "default"):
                yield from subschemas(value, (*path, key))


SUBSCHEMAS = tuple(subschemas(manifest_schema()))
PROPERTIES = [(path, schema) for path, schema in SUBSCHEMAS if path[-2:-1] == ("properties",)]


def test_the_schema_is_a_valid_schema_with_an_id_and_a_title() -> None:
    Draft202012Validator.check_schema(manifest_schema())
    assert manifest_schema()["$id"] == "urn:ollamaops:manifest:1"
    assert manifest_schema()["title"]


@pytest.mark.parametrize("text", [LONG_FORM, EVERYTHING_ELSE, "models: [llama3.2:3b]"])
def test_manifests_that_are_right_meet_the_schema(text: str) -> None:
    assert flaws(text) == ()


def test_the_examples_together_use_every_key() -> None:
    used = LONG_FORM + EVERYTHING_ELSE
    assert [path[-1] for path, _ in PROPERTIES if f"{path[-1]}:" not in used] == []


def test_every_object_says_which_keys_it_takes() -> None:
    objects = [
        path
        for path, schema in SUBSCHEMAS
        if schema.get("type") == "object"
        and "additionalProperties" not in schema
        and path[-1] != "json_schema"
    ]
    assert objects == []


@pytest.mark.parametrize(("path", "schema"), PROPERTIES, ids=[".".join(path) for path, _ in PROPERTIES])
def test_every_key_has_a_title_or_is_described_where_it_refers_to(
    path: tuple[str, ...], schema: Schema
) -> None:
    assert "title" in schema or "$ref" in schema, path


SHOWN = [(path, schema) for path, schema in SUBSCHEMAS if "examples" in schema or "default" in schema]
REGISTRY: Registry[bool | Mapping[str, Any]] = Registry().with_resource(
    "urn:ollamaops:manifest:1", Resource.from_contents(manifest_schema())
)


@pytest.mark.parametrize(("path", "schema"), SHOWN, ids=["/".join(path) for path, _ in SHOWN])
def test_every_example_and_default_meets_its_own_schema(path: tuple[str, ...], schema: Schema) -> None:
    pointer = "/".join(["", *path])
    validator = Draft202012Validator({"$ref": f"urn:ollamaops:manifest:1#{pointer}"}, registry=REGISTRY)
    examples = cast("list[object]", schema.get("examples", []))
    defaults = [schema["default"]] if "default" in schema else []
    for value in (*examples, *defaults):
        assert [error.message for error in validator.iter_errors(value)] == []


def test_a_flaw_has_the_path_of_the_part_to_blame() -> None:
    found = flaws("models:\n- {name: a, form: b}\nhosts: {x: {url: 3}}\nzzz: 1\n")
    assert {flaw.path for flaw in found} == {("models", 0, "form"), ("hosts", "x", "url"), ("zzz",)}


@given(JSON_VALUES | st.dictionaries(st.sampled_from([path[-1] for path, _ in PROPERTIES]), JSON_VALUES))
def test_every_value_that_the_schema_refuses_has_a_flaw_in_words(value: object) -> None:
    root = parse_document(json.dumps(value).encode(), "m.json").root
    if root is None:
        return
    is_valid = Draft202012Validator(manifest_schema()).is_valid(to_plain(root))
    assert is_valid == (schema_flaws(root) == ())
