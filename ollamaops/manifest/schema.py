"""What schema.json has against a tree, in words for people and with places.

In schema.json a `title` that begins with a small letter or `{` is what follows "expected …" (`a duration like 30s`);
one that begins with a capital is a heading for editors.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from msgspec import Struct

from ollamaops.errors import Problem, did_you_mean
from ollamaops.manifest.document import Items, Node, Scalar, Table, to_plain
from ollamaops.manifest.problems import problem_at

NodePath = tuple[str | int, ...]
Schema = Mapping[str, object]


class Flaw(Struct, frozen=True):
    """A problem and the path of the part that is to blame; without that part the tree is as the schema wants it."""

    path: NodePath
    problem: Problem


@cache
def manifest_schema() -> dict[str, object]:
    """The published JSON Schema (draft 2020-12) of a manifest file."""
    data = pkgutil.get_data("ollamaops.manifest", "schema.json")
    assert data is not None, "schema.json is part of the package"
    return cast("dict[str, object]", json.loads(data))


def model_keys() -> frozenset[str]:
    """The keys of a model's entry."""
    return frozenset(_referred("#/$defs/model/properties"))


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(manifest_schema())


def schema_flaws(root: Node) -> tuple[Flaw, ...]:
    """Everything that schema.json has against the tree, one flaw per mistake, in no particular order."""
    errors = _validator().iter_errors(to_plain(root))
    # jsonschema reports each missing key in an error that names it in its message alone, so each error gives all
    return tuple(dict.fromkeys(flaw for error in errors for flaw in _flaws(error, root)))


def _flaws(error: ValidationError, root: Node) -> Iterator[Flaw]:
    if error.validator == "anyOf":
        yield from _flaws_of_choice(error, root)
    else:
        yield from _WORDS[str(error.validator)](_Context(error, root))


def _flaws_of_choice(error: ValidationError, root: Node) -> Iterator[Flaw]:
    """The errors of the one form that has the value's type; if no form has it, one error about the type."""
    at_top = {cause.schema_path[0] for cause in error.context or () if _is_other_form(cause, error)}
    causes = [cause for cause in error.context or () if cause.schema_path[0] not in at_top]
    if causes:
        for cause in causes:
            yield from _flaws(cause, root)
        return
    yield from _type(_Context(error, root))


def _is_other_form(cause: ValidationError, choice: ValidationError) -> bool:
    return cause.validator in ("type", "enum") and len(cause.absolute_path) == len(choice.absolute_path)


_OPEN_HOST_KEYS = ("labels", "timeout", "stall", "parallel", "disk", "verify")


class _Context:
    """One schema error beside the node it is about."""

    def __init__(self, error: ValidationError, root: Node) -> None:
        self.error = error
        self.path: NodePath = tuple(error.absolute_path)
        self.node = _node_at(root, self.path)
        self.schema = cast("Schema", error.schema)
        self.wanted: object = error.validator_value

    @property
    def is_secret(self) -> bool:
        """Whether the value may be a secret, so that no message shows it."""
        in_host = any(part in ("hosts", "host") for part in self.path)
        return in_host and not any(part in _OPEN_HOST_KEYS for part in self.path)

    @property
    def has_secret_keys(self) -> bool:
        """Whether even a key may be a secret, written in the wrong place."""
        return "auth" in self.path or "headers" in self.path

    @property
    def subject(self) -> str:
        """What the message is about: `update`, `an item of files`, `the manifest`."""
        keys = [part for part in self.path if isinstance(part, str)]
        if not keys:
            return "the manifest"
        return keys[-1] if isinstance(self.path[-1], str) else f"an item of {keys[-1]}"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the mapping that the error is about."""
        return tuple(cast("Table", self.node).nodes)

    @property
    def known_keys(self) -> tuple[str, ...]:
        return tuple(cast("Schema", self.schema.get("properties", {})))

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        return tuple(key for key in self.keys if key not in self.known_keys)

    @property
    def example(self) -> str | None:
        examples = self.schema.get("examples")
        text = _as_yaml(examples[0]) if isinstance(examples, list) else ""
        return f"for example {text}" if 0 < len(text) <= 80 else None

    def here(self, message: str, hint: str | None = None) -> list[Flaw]:
        """The one flaw of the node."""
        text = f"{self.subject}: {message}"
        return [Flaw(self.path, problem_at(self.node, text, hint or self.example))]

    def at_key(self, key: str, message: str, hint: str | None) -> Flaw:
        """A flaw of one key of the mapping."""
        return Flaw((*self.path, key), problem_at(cast("Table", self.node).keys[key], message, hint))

    def got(self) -> str:
        """The value in words; never a secret."""
        if not isinstance(self.node, Scalar):
            return "a mapping" if isinstance(self.node, Table) else "a list"
        if self.node.value is None:
            return "nothing"
        kind = "text" if isinstance(self.node.value, str) else "number"
        if self.is_secret:
            return "something else"
        return self.node.shown if isinstance(self.node.value, bool) else f"the {kind} '{self.node.shown}'"

    def type_hint(self) -> str | None:
        if not isinstance(self.node, Scalar):
            return None
        forms = _form(self.schema)
        if self.node.plain and not isinstance(self.node.value, str) and "text" in forms:
            return (
                f'quote it: "{self.node.shown}"'
                if self.node.value is not None and not self.is_secret
                else None
            )
        if self.node.text.lower() in ("yes", "no", "on", "off") and "true or false" in forms:
            return "write true or false"
        return None


def _node_at(root: Node, path: NodePath) -> Node:
    node = root
    for part in path:
        assert not isinstance(node, Scalar), "the path of an error leads through lists and mappings"
        node = node.nodes[part]  # type: ignore[index]  # a path has the right kind of part
    return node


_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def _form(schema: Schema) -> str:
    """What the schema takes, for "expected …"."""
    title = str(schema.get("title", ""))
    if title and not title[0].isupper():
        return title
    if "$ref" in schema:
        return _form(_referred(str(schema["$ref"])))
    if "anyOf" in schema:
        return _joined([_form(branch) for branch in cast("list[Schema]", schema["anyOf"])])
    types = schema["type"]
    return _joined(
        [_TYPE_WORDS[kind] for kind in ([types] if isinstance(types, str) else cast("list[str]", types))]
    )


def _referred(reference: str) -> Schema:
    found: object = manifest_schema()
    for part in reference.removeprefix("#/").split("/"):
        found = found[int(part)] if isinstance(found, list) else cast("Schema", found)[part]
    return cast("Schema", found)


def _joined(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_NEEDS_QUOTES = re.compile(r"^[#'\"|>*&!%@`?:-]|[\[\]{},\n]|: ")


def _as_yaml(value: object) -> str:
    """A value as one would write it in a manifest, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_as_yaml(item) for item in value) + "]"
    if not isinstance(value, str) or _NEEDS_QUOTES.search(value):
        return json.dumps(value, ensure_ascii=False)
    return value


def _type(context: _Context) -> list[Flaw]:
    if context.schema.get("writeOnly") and isinstance(context.node, Scalar):
        return context.here("a literal secret is refused", f"write {context.schema['title']}")
    return context.here(f"expected {_form(context.schema)}, got {context.got()}", context.type_hint())


def _unknown_keys(context: _Context) -> list[Flaw]:
    return [context.at_key(key, *_unknown_key(key, context)) for key in context.unknown_keys]


def _unknown_key(key: str, context: _Context) -> tuple[str, str | None]:
    meant = did_you_mean(key, context.known_keys)
    hint = None if meant else f"keys here: {', '.join(context.known_keys)}"
    if context.has_secret_keys:
        return f"{context.subject}: unknown key{meant}", hint
    if context.path[-2:] == ("defaults", "model") and key in _referred("#/$defs/model/properties"):
        return f"'{key}' has no default", "write it at each model"
    if (start := key.partition(":")[0]) in context.known_keys:
        return f"unknown key '{key[:60]}'", f"put a space after the colon: '{start}: …'"
    return f"unknown key '{key[:60]}'{meant}", hint


def _missing_keys(context: _Context) -> list[Flaw]:
    """The keys that are missing; a misspelt one is only reported as that."""
    return [
        flaw
        for lacking in cast("list[str]", context.wanted)
        if lacking not in context.keys
        and not any(did_you_mean(key, [lacking]) for key in context.unknown_keys)
        for flaw in context.here(f"{lacking} is missing")
    ]


def _not_allowed(context: _Context) -> list[Flaw]:
    values = cast("list[object]", context.wanted)
    words = [_as_yaml(value) for value in values]
    meant = did_you_mean(str(context.error.instance), words)
    return context.here(f"expected one of {', '.join(words)}, got {context.got()}{meant}")


def _pattern(context: _Context) -> list[Flaw]:
    if isinstance(context.node, Table):  # from propertyNames, which is about a key
        return _bad_key(context)
    return context.here(
        f"'{cast('Scalar', context.node).shown}' is not valid: {context.schema['description']}"
    )


def _bad_key(context: _Context) -> list[Flaw]:
    key = str(context.error.instance)
    shown = context.subject if context.has_secret_keys else f"'{key[:60]}'"
    return [context.at_key(key, f"{shown} is not valid: {context.schema['description']}", None)]


def _too_small(context: _Context) -> list[Flaw]:
    return context.here(f"expected at least {context.wanted}, got {context.got()}")


def _not_above(context: _Context) -> list[Flaw]:
    return context.here(f"expected more than {context.wanted}, got {context.got()}")


def _too_big(context: _Context) -> list[Flaw]:
    return context.here(f"expected at most {context.wanted}, got {context.got()}")


def _empty(context: _Context) -> list[Flaw]:
    return context.here("is empty")


def _wrong_count(context: _Context) -> list[Flaw]:
    return context.here(f"expected {context.wanted} items, got {len(cast('Items', context.node).nodes)}")


def _few_items(context: _Context) -> list[Flaw]:
    return _wrong_count(context) if context.error.instance else _empty(context)


def _one_of_the_keys(context: _Context) -> list[Flaw]:
    given = [key for key in context.keys if key in context.known_keys]
    if context.unknown_keys and len(given) < 2:
        return []  # an unknown key is the mistake, and reported as such
    known = ", ".join(context.known_keys)
    return context.here(f"expected one of the keys {known}, got {', '.join(given) or 'none'}")


def _key_needs_key(context: _Context) -> list[Flaw]:
    pairs = cast("Mapping[str, list[str]]", context.wanted)
    key, needed = next((key, needed) for key, needed in pairs.items() if key in context.keys)
    return context.here(f"{key} also needs {', '.join(needed)}")


_WORDS: Mapping[str, Callable[[_Context], list[Flaw]]] = {
    "type": _type,
    "additionalProperties": _unknown_keys,
    "required": _missing_keys,
    "enum": _not_allowed,
    "pattern": _pattern,
    "minimum": _too_small,
    "exclusiveMinimum": _not_above,
    "maximum": _too_big,
    "minLength": _empty,
    "minItems": _few_items,
    "maxItems": _wrong_count,
    "minProperties": _one_of_the_keys,
    "maxProperties": _one_of_the_keys,
    "dependentRequired": _key_needs_key,
}
