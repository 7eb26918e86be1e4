"""What a declared expectation asks of a model.

Pure: reads the declaration; observe/verify.py asks, verdicts.py judges what it saw. The fact a reader would miss: an
expectation without a prompt still has the model loaded, because servers create, list and show models that they
cannot run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from ollamaops.units import parse_duration

Option = int | float | bool | str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """One declared expectation; everything that is given in it must hold. The key of the manifest is the field's name
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
        """What is asked as (role, content) pairs, be it a prompt or messages; nothing when it is only loaded."""
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
