"""What is declared in `expect:` as values, and the verdict over what was seen, with numbers."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.plan.expectations import (
    Evidence,
    Expectation,
    Failure,
    cosine,
    judge,
    read_expectations,
    without_thinking,
)

SCHEMA = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}


def read(**declared: object) -> Expectation:
    [expectation] = read_expectations([declared])
    return expectation


def said(expectation: Expectation, **seen: object) -> list[str]:
    """Every failure in words."""
    return [str(failure) for failure in judge(expectation, Evidence(**seen))]  # type: ignore[arg-type]  # by name


class TestReading:
    def test_every_key_of_the_manifest_is_read(self) -> None:
        declared = {
            "capabilities": ["completion", "tools"],
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
            "matches": "(?i)pong",
            "contains": ["a", "b"],
            "json": True,
            "json_schema": SCHEMA,
            "tools": ["get_weather"],
            "length": 384,
            "closer": ["cat", "kitten", "tax law"],
            "max_load": "1m30s",
            "min_tokens_per_s": 20,
            "context_length": 4096,
            "think": "low",
            "options": {"num_ctx": 4096, "stop": ["x"], "top_k": None},
        }
        assert read(**declared) == Expectation(
            capabilities=("completion", "tools"),
            messages=(("system", "Be kind."), ("user", "hi")),
            matches="(?i)pong",
            contains=("a", "b"),
            is_json=True,
            json_schema=json.dumps(SCHEMA, sort_keys=True),
            tools=("get_weather",),
            length=384,
            closer=("cat", "kitten", "tax law"),
            max_load_s=90.0,
            min_tokens_per_s=20.0,
            context_length=4096,
            think="low",
            options={"num_ctx": 4096, "stop": ("x",), "top_k": None},
        )

    def test_what_is_not_declared_asks_nothing(self) -> None:
        assert read_expectations([]) == ()
        assert read(prompt="hi", contains="pong") == Expectation(prompt="hi", contains=("pong",))
        assert read(max_load=90, json=False) == Expectation(max_load_s=90.0)
        assert [read(prompt="x", **think).think for think in ({}, {"think": False})] == [None, False]

    def test_a_prompt_is_a_conversation_of_one_and_both_kinds_of_texts_are_embedded(self) -> None:
        assert read(prompt="hi").conversation == (("user", "hi"),)
        assert read(capabilities=["completion"]).conversation == ()
        asked = read(prompt="hi", closer=["a", "b", "c"])
        assert asked.texts == ("hi", "a", "b", "c")
        assert asked.is_embedding
        assert read(prompt="hi", length=3).is_embedding
        assert not read(prompt="hi").is_embedding


@pytest.mark.parametrize(
    ("declared", "seen", "words"),
    [
        ({"matches": "(?i)pong"}, {"text": "Pong!"}, []),
        (
            {"matches": "pong"},
            {"text": "I am a\nteapot."},
            ["matches: no match of 'pong' in an answer of 14 characters: 'I am a teapot.'"],
        ),
        (
            {"matches": "pong"},
            {"text": "zz", "is_cut": True, "tokens": 2048},
            ["matches: no match of 'pong' in an answer of 2 characters, cut off after 2048 tokens: 'zz'"],
        ),
        (
            {"matches": "pong"},
            {"text": "", "has_thought": True, "is_cut": True, "tokens": 2048},
            ["matches: no match of 'pong' in an answer of thoughts alone, cut off after 2048 tokens"],
        ),
        (
            {"contains": "pong", "json": True, "tools": ["f"]},
            {"text": "", "has_thought": True},
            [
                "contains: no 'pong' in an answer of thoughts alone",
                "json: no JSON in an answer of thoughts alone",
                "tools: no call of f; called: none, but an answer of thoughts alone",
            ],
        ),
        (
            {"matches": "pong"},
            {"text": "no", "has_thought": True},
            ["matches: no match of 'pong' in an answer of 2 characters: 'no'"],
        ),
        ({"matches": "x"}, {"vectors": ((1.0,),)}, ["matches: no match of 'x' in an embedding"]),
        ({"matches": "x"}, {}, ["matches: no match of 'x' in nothing: there is no answer"]),
        ({"contains": ["a", "b"]}, {"text": "ab"}, []),
        (
            {"contains": ["a", "c"]},
            {"text": "ab"},
            ["contains: no 'c' in an answer of 2 characters: 'ab'"],
        ),
        ({"json": True}, {"text": ' {"a": [1]}\n'}, []),
        ({"json": True}, {"text": "{"}, ["json: no JSON in an answer of 1 characters: '{'"]),
        ({"json": True}, {}, ["json: no JSON in nothing: there is no answer"]),
        ({"json": True}, {"text": "[" * 100_000}, None),
        ({"json_schema": SCHEMA}, {"text": '{"name": "Ada", "age": 36}'}, []),
        (
            {"json_schema": SCHEMA},
            {"text": "no"},
            ["json_schema: no JSON in an answer of 2 characters: 'no'"],
        ),
        (
            {"json_schema": SCHEMA},
            {"text": '{"age": "old"}'},
            [
                "json_schema: age: 'old' is not of type 'integer'",
                "json_schema: 'name' is a required property",
            ],
        ),
        (
            {"json_schema": {"$ref": "https://example.com/schema"}},
            {"text": "1"},
            ["json_schema: the schema refers to 'https://example.com/schema', which is not in it"],
        ),
        (
            {
                "json_schema": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "items": [{"type": "null"}],
                }
            },
            {"text": "[1]"},
            ["json_schema: [0]: 1 is not of type 'null'"],
        ),
        ({"tools": ["f", "g"]}, {"tool_calls": ("g", "f")}, []),
        (
            {"tools": ["f", "g"]},
            {"tool_calls": ("g",), "text": ""},
            ["tools: no call of f; called: g"],
        ),
        (
            {"tools": ["f"]},
            {"text": "No."},
            ["tools: no call of f; called: none, but an answer of 3 characters: 'No.'"],
        ),
        ({"length": 2}, {"vectors": ((1.0, 2.0),)}, []),
        ({"length": 3}, {"vectors": ((1.0, 2.0),)}, ["length: an embedding of 2 numbers, 3 expected"]),
        ({"length": 3}, {"text": "x"}, ["length: an embedding of no numbers, 3 expected"]),
        (
            {"length": 3},
            {"vectors": ((1.0, 2.0), (1.0, 2.0, 3.0))},
            ["length: an embedding of 2 and 3 numbers, 3 expected"],
        ),
        ({"closer": ["q", "n", "f"]}, {"vectors": ((9.0, 9.0), (1.0, 0.0), (1.0, 0.1), (0.0, 1.0))}, []),
        (
            {"closer": ["q", "n", "f"]},
            {"vectors": ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))},
            ["closer: 'q' is 0.000 near 'n' and 0.707 near 'f'"],
        ),
        (
            {"closer": ["q", "n", "f"]},
            {"vectors": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))},
            ["closer: 'q' is 0.000 near 'n' and 0.000 near 'f'"],
        ),
        (
            {"closer": ["q", "n", "f"]},
            {"vectors": ((1.0,),)},
            ["closer: 1 embeddings for 3 texts, or of unlike length"],
        ),
        (
            {"closer": ["q", "n", "f"]},
            {"vectors": ((1.0,), (1.0,), (1.0, 2.0))},
            ["closer: 3 embeddings for 3 texts, or of unlike length"],
        ),
        ({"max_load": 90}, {"load_s": 90.0}, []),
        ({"max_load": 90}, {"load_s": 95.2}, ["max_load: loading took 1m35s, 1m30s allowed"]),
        ({"min_tokens_per_s": 20}, {"tokens": 5, "tokens_per_s": 20.0}, []),
        ({"min_tokens_per_s": 20}, {"tokens": 5, "tokens_per_s": None}, []),
        (
            {"min_tokens_per_s": 20},
            {"tokens": 5, "tokens_per_s": 12.34},
            ["min_tokens_per_s: 12.3 tokens a second, 20 expected"],
        ),
        ({"min_tokens_per_s": 0.5}, {}, ["min_tokens_per_s: no tokens came, 0.5 a second expected"]),
        ({"context_length": 4096}, {"context_length": 4096}, []),
        (
            {"context_length": 4096},
            {"context_length": 2048},
            ["context_length: loaded with 2048 tokens, 4096 expected"],
        ),
        (
            {"context_length": 4096},
            {},
            ["context_length: loaded with a length that is not known, 4096 expected"],
        ),
        ({"capabilities": ["tools"]}, {"capabilities": ("completion", "tools")}, []),
        (
            {"capabilities": ["tools", "vision", "completion"]},
            {"capabilities": ("completion",)},
            ["capabilities: no tools, no vision; it has completion"],
        ),
        ({"capabilities": ["tools"]}, {}, ["capabilities: no tools; it has none"]),
    ],
)
def test_a_verdict_says_what_was_found_and_what_was_expected(
    declared: dict[str, object], seen: dict[str, object], words: list[str] | None
) -> None:
    found = said(read(**declared), **seen)
    if words is None:  # whatever the words for absurd depth are: it fails, and is no crash
        assert len(found) == 1
    else:
        assert found == words


def test_a_refusal_is_the_servers_words_and_hides_no_missing_capability() -> None:
    expectation = read(capabilities=["tools"], prompt="hi", matches="x", max_load=1)
    assert said(
        expectation, error="unable to load model: /x\n", capabilities=("completion",), load_s=9.0
    ) == [
        "capabilities: no tools; it has completion",
        "answer: unable to load model: /x",
    ]
    assert len(judge(expectation, Evidence(error="x" * 999))[-1].message) == 256


def test_a_short_context_comes_with_the_way_out() -> None:
    [failure] = judge(read(context_length=9), Evidence(context_length=8))
    assert failure == Failure(
        "context_length",
        "loaded with 8 tokens, 9 expected",
        "set parameters.num_ctx of the model, if its weights can do more",
    )
    [failure] = judge(read(context_length=9), Evidence())
    assert (
        failure.hint == "set parameters.num_ctx of the model: servers before 0.10.0 do not tell their default"
    )


@pytest.mark.parametrize(
    "declared", [{"matches": "x"}, {"contains": "x"}, {"json": True}, {"json_schema": {}}, {"tools": ["x"]}]
)
def test_thoughts_that_used_up_the_tokens_come_with_the_way_out(declared: dict[str, object]) -> None:
    [failure] = judge(read(**declared), Evidence(text="", has_thought=True, is_cut=True, tokens=9))
    assert failure.hint == "give it more room: options.num_predict"
    [failure] = judge(read(**declared), Evidence(text="", has_thought=True))
    assert failure.hint is None


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("<think>pong?</think>\n\nno", "no"),
        ("  <think>a\nb</think>yes <think>c</think>", "yes <think>c</think>"),
        ("<think>never ends", ""),
        ("The user wants pong.\n</think>\n\nno", "no"),
        ("</think>no </think> more", "no </think> more"),
        ("<think></think>", ""),
        ("no <think>x</think>", "no <think>x</think>"),
        ("plain", "plain"),
    ],
)
def test_thoughts_before_an_answer_are_no_answer(text: str, spoken: str) -> None:
    assert without_thinking(text) == spoken


VECTORS = st.integers(1, 8).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-1e3, 1e3), min_size=size, max_size=size).map(tuple)] * 2)
)


@given(VECTORS)
def test_a_cosine_is_between_minus_one_and_one_and_symmetric(
    pair: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    one, other = pair
    assert -1 - 1e-9 <= cosine(one, other) <= 1 + 1e-9
    assert cosine(one, other) == cosine(other, one)
    if math.hypot(*one) > 1e-100:
        assert cosine(one, one) == pytest.approx(1)
