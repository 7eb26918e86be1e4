"""What the pretend model promises: answers of the recorded shapes, and scripted words to rely upon."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ollamaops.sandbox.behavior import NEWEST_RULES, RECORDED, InferenceRules
from ollamaops.sandbox.inference import Answer, ModelFacts, chat, embed, embeddings, generate
from ollamaops.sandbox.inference_requests import (
    FOREVER_S,
    ChatMessage,
    InvalidKeepAlive,
    is_unload,
    parse_keep_alive,
    read_chat,
    read_embed,
    read_embeddings,
    read_generate,
)
from ollamaops.sandbox.replies import scripted_reply
from ollamaops.sandbox.responses import Refusal
from ollamaops.sandbox.schema_instance import UnsatisfiableSchema, build_instance
from ollamaops.sandbox.seeded_choice import SeededChoice
from ollamaops.sandbox.tokens import detokenize, embed_text, split_tokens, tokenize

CONTRACT = Path(__file__).parents[1] / "contract"
NOW = "2026-08-21T10:00:00.000000001Z"
OLDEST_RULES = RECORDED["0.3.4"].inference
Body = Mapping[str, object]


def a_model(*capabilities: str, **changes: object) -> ModelFacts:
    given = frozenset(capabilities or ("completion",))
    plain = ModelFacts(full_name="registry.ollama.ai/library/talker:latest", capabilities=given)
    return replace(plain, **changes)  # type: ignore[arg-type]  # factories take any field


def answer(path: str, body: Body, model: ModelFacts, rules: InferenceRules = NEWEST_RULES) -> Answer:
    match path.removeprefix("/api/"):
        case "generate":
            return generate(read_generate(body, rules), model, created_at=NOW, rules=rules)
        case "chat":
            return chat(read_chat(body, rules), model, created_at=NOW, rules=rules)
        case "embed":
            return embed(read_embed(body, rules), model, rules=rules)
        case _:
            return embeddings(read_embeddings(body, rules), model, rules=rules)


def generated(prompt: str, model: ModelFacts | None = None, **further: object) -> Body:
    body = {"model": "talker", "prompt": prompt, "stream": False, **further}
    return answer("/api/generate", body, model or a_model()).chunks[0]


def said(prompt: str, model: ModelFacts | None = None, **further: object) -> str:
    return str(generated(prompt, model, **further)["response"])


def chatted(*turns: tuple[str, str], model: ModelFacts | None = None, **further: object) -> Body:
    messages = [{"role": role, "content": content} for role, content in turns]
    body = {"model": "talker", "messages": messages, "stream": False, **further}
    return cast(Body, answer("/api/chat", body, model or a_model()).chunks[0]["message"])


def refusal(
    path: str, body: Body, model: ModelFacts, rules: InferenceRules = NEWEST_RULES
) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        answer(path, body, model, rules)
    return caught.value.status, caught.value.text


# --- recorded servers -----------------------------------------------------------------------------------------------


def recorded() -> Iterator[tuple[str, str, Body, Body, Mapping[str, object]]]:
    """(version, path, body, response, parameters of the model) of every recorded call of a model that is there."""
    for version in RECORDED:
        scenarios = json.loads((CONTRACT / f"ollama-{version}.json").read_text())["scenarios"]
        for name in ("generate-and-chat", "load-and-unload", "embed"):
            for exchange in scenarios[name]:
                request = exchange["request"]
                if request.get("path") in ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings"):
                    talks = name == "generate-and-chat"
                    yield (
                        version,
                        request["path"],
                        request["json"],
                        exchange["response"],
                        ({"num_ctx": 512, "temperature": 0, "num_predict": 4, "seed": 1} if talks else {}),
                    )


def shape(document: Body) -> object:
    """The document without its numbers and words: keys, and values that are not generated."""
    kept = ("model", "done", "done_reason", "error")
    message = document.get("message")
    return {
        **{key: document[key] if key in kept else None for key in document},
        "message": sorted(message) if isinstance(message, Mapping) else None,
    }


@pytest.mark.parametrize(("version", "path", "body", "response", "parameters"), list(recorded()))
def test_a_recorded_call_gets_an_answer_of_the_recorded_shape(
    version: str, path: str, body: Body, response: Body, parameters: Mapping[str, object]
) -> None:
    capability = "embedding" if body["model"] == "minilm" else "completion"
    full_name = f"registry.ollama.ai/library/{body['model']}:latest"
    model = a_model(capability, full_name=full_name, parameters=parameters)
    try:
        result = answer(path, body, model, RECORDED[version].inference)
        status, documents, streamed = 200, list(result.chunks), result.streamed
    except Refusal as error:
        status, documents, streamed = error.status, [{"error": error.text}], False
    assert (status, streamed) == (response["status"], "ndjson" in response)
    expected = cast("list[Body]", response["ndjson"] if streamed else [response["json"]])
    assert [shape(document) for document in documents] == [shape(document) for document in expected]


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Reply with the word pong.", "pong"),
        ("Reply with only the word 'pong'", "pong"),
        ("Say hello", "hello"),
        ("Reply with exactly one word: pong", "pong"),
        ("Answer only with OK", "OK"),
        ("Respond with one word, pong.", "pong"),
        ("Please respond with exactly: pong", "pong"),
        ("Ping? Answer pong.", "pong"),
        ("Answer with yes or no.", "yes"),
        ("Reply with pong and nothing else.", "pong"),
        ("Repeat after me: hello world", "hello world"),
        ("Respond with the text `ok-42`.", "ok-42"),
        ('say "hi there" please', "hi there"),
        ("Return the word pong.", "pong"),
        ("Reply in JSON", None),
        ("Reply with a joke.", None),
        ("Write a poem about the sea", None),
        ("Why is the sky blue?", None),
    ],
)
def test_a_prompt_that_spells_out_its_reply_gets_it(prompt: str, words: str | None) -> None:
    assert scripted_reply(prompt) == words
    assert words is None or said(prompt) == words == chatted(("user", prompt))["content"]


def test_a_reply_spelled_out_by_the_system_prompt_yields_to_the_users() -> None:
    model = a_model(system="Always reply with the word aye.")
    assert said("What about it?", model) == "aye"
    assert said("Reply with the word nay.", model) == "nay"
    assert said("What about it?", model, system="Always reply with the word no.") == "no"
    assert chatted(("user", "What about it?"), model=model)["content"] == "aye"
    assert chatted(("system", "Always say hm."), ("user", "What about it?"), model=model)["content"] == "hm"


def test_what_was_said_before_reaches_the_model() -> None:
    question = ("user", "Who am I?")
    assert chatted(("user", "I am Ada."), question) != chatted(("user", "I am Bob."), question)
    stored = a_model(messages=(ChatMessage(role="user", content="I am Ada."),))
    assert said("Who am I?", stored) != said("Who am I?")


def test_context_continues_a_conversation() -> None:
    first = generated("I am Ada.")
    assert said("Who am I?", context=first["context"]) != said("Who am I?")
    assert len(cast("list[int]", first["context"])) > 4


def test_the_same_seed_gives_the_same_answer_and_another_seed_another() -> None:
    answers = [said("Tell me something.", options={"seed": seed}) for seed in (7, 7, 8, 9)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


def test_at_temperature_0_the_seed_does_not_matter() -> None:
    cold = [said("Tell me something.", options={"seed": seed, "temperature": 0}) for seed in (7, 8)]
    assert cold[0] == cold[1]


def test_a_copy_says_the_same_and_a_changed_model_something_else() -> None:
    model = a_model(weights="sha256:1")
    question = "Tell me something."
    assert said(question, model) == said(question, replace(model, full_name="registry.ollama.ai/me/copy:1"))
    for changed in (
        replace(model, weights="sha256:2"),
        replace(model, system="Be terse."),
        replace(model, template="{{ .Prompt }}"),
    ):
        assert said(question, model) != said(question, changed)


def test_num_predict_cuts_the_answer_and_says_so() -> None:
    whole = generated("Tell me something.")
    cut = generated("Tell me something.", options={"num_predict": 3})
    assert (whole["done_reason"], cut["done_reason"], cut["eval_count"]) == ("stop", "length", 3)
    assert str(whole["response"]).startswith(str(cut["response"]))
    assert generated("Reply with the word ok.", options={"num_predict": -1})["done_reason"] == "stop"


def test_a_stop_sequence_ends_the_answer_before_it() -> None:
    whole = said("Say 'one, two, three'")
    assert said("Say 'one, two, three'", options={"stop": [", t", "three"]}) == "one"
    assert whole == "one, two, three"
    assert said("Say 'one, two, three'", a_model(parameters={"stop": [" two"]})) == "one,"


def test_a_stream_and_one_document_say_the_same() -> None:
    body = {"model": "talker", "prompt": "Tell me something."}
    stream = answer("/api/generate", body, a_model())
    assert stream.streamed
    assert "".join(str(chunk["response"]) for chunk in stream.chunks) == said("Tell me something.")
    assert [chunk["done"] for chunk in stream.chunks].count(True) == 1
    assert stream.chunks[-1]["eval_count"] == len(stream.chunks) - 1


def test_durations_add_up() -> None:
    document = cast("Mapping[str, int]", generated("Tell me something."))
    parts = document["load_duration"] + document["prompt_eval_duration"] + document["eval_duration"]
    assert document["total_duration"] == parts
    assert min(document["prompt_eval_count"], document["eval_count"], parts) > 0


def test_raw_mode_skips_the_system_prompt_and_has_no_context() -> None:
    model = a_model(system="Always reply with the word aye.")
    document = generated("Why?", model, raw=True)
    assert document["response"] != "aye"
    assert "context" not in document


def test_insert_fills_the_gap_for_models_that_can() -> None:
    assert said("def f(", a_model("completion", "insert"), suffix="return x")


def test_images_change_what_a_vision_model_says() -> None:
    image = base64.b64encode(b"picture").decode()
    model = a_model("completion", "vision")
    answers = [said("What is this?", model, images=images) for images in ([], [image], [image, image])]
    assert len(set(answers)) == 3


# --- formats --------------------------------------------------------------------------------------------------------


def test_format_json_is_valid_json_that_holds_the_answer() -> None:
    assert json.loads(said("Reply with the word pong.", format="json")) == {"answer": "pong"}
    assert json.loads(said("Anything.", format="json")).keys() == {"answer"}


words_of_prompts = st.sampled_from(
    [
        "say",
        "reply with",
        "answer",
        "the word",
        "only",
        '"',
        "'",
        "{",
        ":",
        "and",
        "or",
        "9" * 5000,
        "x",
        ".",
        "\n",
    ]
)


@given(st.one_of(st.text(), st.lists(words_of_prompts, max_size=12).map(" ".join)))
def test_any_prompt_gets_an_answer_and_valid_json_where_asked(prompt: str) -> None:
    assert chatted(("user", prompt))["role"] == "assistant"
    assert isinstance(json.loads(str(chatted(("user", prompt), format="json")["content"])), dict)
    Draft202012Validator(WEATHER).validate(
        json.loads(str(chatted(("user", prompt), format=WEATHER)["content"]))
    )
    assert (
        chatted(("user", prompt), model=a_model("completion", "tools"), tools=[TOOL])["role"] == "assistant"
    )


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def test_a_schema_as_format_is_satisfied() -> None:
    message = chatted(("user", "Anything."), format=WEATHER)
    Draft202012Validator(WEATHER).validate(json.loads(str(message["content"])))


SCHEMAS: dict[str, dict[str, object]] = {
    "nothing said": {},
    "nested": {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "number"}}}}
        },
        "required": ["a", "c"],
    },
    "references": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "null"}},
            }
        },
        "$ref": "#/$defs/node",
    },
    "recursive list": {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["children"],
    },
    "any of": {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 3}]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}, {"not": {"const": 3}}]},
    "both bounds": {
        "allOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"minimum": 8, "maximum": 12}]
    },
    "both types": {"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}]},
    "both contradict in words": {"allOf": [{"title": "a"}, {"title": "b"}, True]},
    "anything inside": {"type": "object", "properties": {"a": True}, "required": ["a"]},
    "items by number": {
        "type": "object",
        "properties": {
            "a": {"type": "array", "prefixItems": [{"const": 1}]},
            "b": {"$ref": "#/properties/a/prefixItems/0"},
        },
    },
    "close bounds": {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.2},
    "negative": {"type": "integer", "maximum": -10},
    "exclusive": {"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 6},
    "above": {"type": "integer", "exclusiveMinimum": 0},
    "steps": {"type": "number", "multipleOf": 0.25, "minimum": 1, "maximum": 2},
    "unique": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "uniqueItems": True},
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    "long text": {"type": "string", "minLength": 40, "maxLength": 41},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}(?:x|y)?$", "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "nullable": {"type": ["string", "null"], "minLength": 3},
    "constant": {"const": {"a": [1]}},
    "free keys": {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
    "only required": {"required": ["a"], "properties": {"a": {"minimum": 4}}},
    "list telltale": {"items": {"type": "boolean"}, "minItems": 2},
    "boolean": {"type": "boolean"},
    "overlap": {
        "allOf": [
            {"properties": {"a": {"minimum": 2}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 3}, "b": {"type": "string"}}, "required": ["b"]},
            {"enum": [{"a": 2, "b": "x"}, 1]},
            {"enum": [{"a": 2, "b": "x"}]},
        ]
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_drawn_value_satisfies_its_schema_and_is_drawn_again_alike(name: str) -> None:
    for seed in range(5):
        value = build_instance(SCHEMAS[name], SeededChoice(str(seed)))
        Draft202012Validator(SCHEMAS[name]).validate(value)
        assert value == build_instance(SCHEMAS[name], SeededChoice(str(seed)))


bounded = st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
leaves = st.one_of(
    bounded.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[1]}),
    bounded.map(lambda b: {"type": "number", "minimum": b[0] / 8, "maximum": b[1] / 8}),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
        lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]}
    ),
    st.lists(st.one_of(st.integers(), st.text(max_size=4)), min_size=1, max_size=3).map(
        lambda e: {"enum": e}
    ),
    st.just({"type": "boolean"}),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.dictionaries(st.text(max_size=3), inner, max_size=3), st.booleans()).map(
            lambda p: {
                "type": "object",
                "properties": p[0],
                "required": list(p[0]),
                "additionalProperties": p[1],
            }
        ),
        st.tuples(inner, st.integers(0, 3), st.integers(0, 2)).map(
            lambda p: {"type": "array", "items": p[0], "minItems": p[1], "maxItems": p[1] + p[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=6,
)


@given(schemas, st.integers(0, 99))
def test_any_schema_of_simple_parts_is_satisfied(schema: dict[str, object], seed: int) -> None:
    Draft202012Validator(schema).validate(build_instance(schema, SeededChoice(str(seed))))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "ghost"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/missing"},
        {"allOf": [False]},
        {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "prefixItems": [False], "minItems": 1},
        {"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]},
        {"type": "string", "pattern": "(?=x)y"},
        {"type": "string", "pattern": "^a+$", "maxLength": 0},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ],
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(UnsatisfiableSchema):
        build_instance(schema, SeededChoice("x"))
    body = {"model": "m", "prompt": "x", "format": schema}
    assert refusal("/api/generate", body, a_model()) == (500, "invalid JSON schema in format")


@pytest.mark.parametrize(
    "pattern",
    [
        "^abc$",
        "^(a|bc|)$",
        "[^a-z]+x",
        r"^\w{3}\s\S?$",
        r"^(?P<y>\d{4})-(?:0[1-9]|1[0-2])$",
        r"[\d\-.]*?\.",
        "x{2,}y??",
        "[]a]",
        r"(a|b)\1",
    ],
)
def test_a_text_matches_the_pattern_it_was_drawn_from(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    for seed in range(20):
        assert re.search(pattern, str(build_instance(schema, SeededChoice(str(seed)))))


def test_a_pattern_draws_the_same_text_in_every_process() -> None:
    """Python orders sets of characters anew in each process, and rstr draws from such sets."""
    code = (
        "from ollamaops.sandbox.schema_instance import build_instance as build, SeededChoice\n"
        "print(ascii([build({'type': 'string', 'pattern': '[^a-z]{9}'}, SeededChoice(s)) for s in 'abc']))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(texts) == 1


# --- tools and thinking ---------------------------------------------------------------------------------------------

TOOL_PARAMETERS = {**WEATHER, "required": ["city", "unit", "days"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the forecast for a city",
        "parameters": TOOL_PARAMETERS,
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "sendMail", "description": "Send a mail"}}


def test_a_model_calls_the_tool_that_the_prompt_names() -> None:
    model = a_model("completion", "tools")
    asked = ("user", "What is the weather in Paris for 2 days in celsius?")
    message = chatted(asked, model=model, tools=[OTHER_TOOL, TOOL])
    [call] = cast("list[dict[str, dict[str, object]]]", message["tool_calls"])
    assert message["content"] == ""
    assert call["function"]["name"] == "get_weather"
    Draft202012Validator(TOOL_PARAMETERS).validate(call["function"]["arguments"])
    [mail] = cast(
        "list[dict[str, dict[str, object]]]",
        chatted(("user", "send a mail"), model=model, tools=[OTHER_TOOL])["tool_calls"],
    )
    assert mail["function"]["name"] == "sendMail"


def test_a_tool_with_unsatisfiable_parameters_is_called_without_arguments() -> None:
    broken = {"function": {"name": "get_weather", "parameters": {"properties": {"a": {"type": "ghost"}}}}}
    message = chatted(("user", "the weather?"), model=a_model("completion", "tools"), tools=[broken])
    assert cast("list[dict[str, Body]]", message["tool_calls"])[0]["function"]["arguments"] == {}


def test_a_model_answers_in_words_when_the_prompt_names_no_tool() -> None:
    model = a_model("completion", "tools")
    assert chatted(("user", "Reply with the word pong."), model=model, tools=[TOOL])["content"] == "pong"


def test_the_result_of_a_tool_is_repeated() -> None:
    turns = ("user", "What is the weather in Paris?"), ("assistant", ""), ("tool", "11 degrees")
    message = chatted(*turns, model=a_model("completion", "tools"), tools=[TOOL])
    assert "11 degrees" in str(message["content"])
    assert "tool_calls" not in message


def test_a_streamed_tool_call_comes_whole_in_one_line() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "weather in Paris?"}], "tools": [TOOL]}
    for rules, keys in (
        (NEWEST_RULES, {"id", "function"}),
        (RECORDED["0.6.8"].inference, {"function"}),
    ):
        result = answer("/api/chat", body, a_model("completion", "tools"), rules)
        called = [
            cast(Body, chunk["message"])
            for chunk in result.chunks
            if "tool_calls" in cast(Body, chunk["message"])
        ]
        assert [set(cast("list[Body]", message["tool_calls"])[0]) for message in called] == [keys]
        assert result.chunks[-1]["done_reason"] == "stop"


def test_a_thinking_model_thinks_unless_told_not_to() -> None:
    model = a_model("completion", "thinking")
    for think in (None, True, "high"):
        document = generated("Reply with the word pong.", model, think=think)
        assert document["response"] == "pong"
        assert document["thinking"]
        assert chatted(("user", "Reply with the word pong."), model=model, think=think)["thinking"]
    assert "thinking" not in generated("Reply with the word pong.", model, think=False)


def test_thinking_comes_before_the_answer_in_a_stream() -> None:
    model = a_model("completion", "thinking")
    result = answer("/api/generate", {"model": "m", "prompt": "Reply with the word pong."}, model)
    kinds = ["thinking" in chunk for chunk in result.chunks]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {True, False}


@pytest.mark.parametrize(
    ("think", "refused"),
    [
        (True, '"m" does not support thinking'),
        ("low", '"m" does not support thinking'),
        ("deep", 'invalid think value: "deep" (must be "high", "medium", "low", true, or false)'),
        (3, 'think must be a boolean or string ("high", "medium", "low", true, or false)'),
    ],
)
def test_thinking_is_refused_for_models_that_cannot_think(think: object, refused: str) -> None:
    body = {"model": "m", "prompt": "x", "think": think}
    assert refusal("/api/generate", body, a_model()) == (400, refused)
    assert answer("/api/generate", body, a_model(), replace(NEWEST_RULES, thinking=False)).chunks


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "short"),
    [
        ("/api/generate", {"prompt": 5}, "number GenerateRequest.prompt of type string"),
        ("/api/generate", {"stream": "no"}, "string GenerateRequest.stream of type bool"),
        ("/api/generate", {"options": []}, "array GenerateRequest.options of type map[string]interface {}"),
        ("/api/generate", {"context": [1, "2"]}, "string GenerateRequest.context of type int"),
        ("/api/generate", {"context": {}}, "object GenerateRequest.context of type []int"),
        ("/api/generate", {"images": ["!!"]}, "illegal base64 data at input byte 0"),
        ("/api/generate", {"images": ["aGVsbG8"]}, "illegal base64 data at input byte 4"),
        ("/api/generate", {"images": "x"}, "string GenerateRequest.images of type []api.ImageData"),
        ("/api/generate", {"images": [1]}, "number GenerateRequest.images of type api.ImageData"),
        ("/api/generate", {"raw": True, "system": "y"}, "raw mode does not support template, system, or context"),
        ("/api/chat", {"messages": "x"}, "string ChatRequest.messages of type []api.Message"),
        ("/api/chat", {"messages": [1.5]}, "number ChatRequest.messages of type api.Message"),
        ("/api/embed", {"input": [1]}, "invalid input type"),
        ("/api/embed", {"dimensions": True}, "bool EmbedRequest.dimensions of type int"),
        ("/api/embeddings", {"prompt": []}, "array EmbeddingRequest.prompt of type string"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_refused_in_gos_words(path: str, body: Body, short: str) -> None:
    """`short` is the text, or `KIND FIELD of type TYPE` of what Go's decoder says."""
    whole = re.sub(r"^(.+) (\w+\.\w+ of type)", r"json: cannot unmarshal \1 into Go struct field \2", short)
    assert refusal(path, body, a_model()) == (400, whole)


def test_a_body_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(Refusal, match="array into Go value of type api"):
        read_generate([])


def test_keys_match_in_any_case_and_null_counts_as_absent() -> None:
    request = read_generate({"Model": "m", "PROMPT": "x", "system": None, "stream": None, "images": None})
    assert (request.model, request.prompt, request.system, request.stream) == ("m", "x", "", True)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"num_ctx": "many"}, 'option "num_ctx" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_an_option_of_a_wrong_type_fails_the_load(options: Body, refused: str) -> None:
    assert refusal("/api/generate", {"model": "m", "prompt": "x", "options": options}, a_model()) == (
        500,
        refused,
    )
    assert refusal("/api/chat", {"model": "m"}, a_model(parameters=options)) == (500, refused)


def test_unknown_and_null_options_are_ignored() -> None:
    assert said("Say hello", options={"bogus": "x", "seed": None}) == "hello"


def test_a_format_that_is_neither_json_nor_a_schema_is_refused() -> None:
    body = {"model": "m", "prompt": "x", "format": "yaml"}
    status, text = refusal("/api/generate", body, a_model())
    assert (status, text) == (
        500,
        'invalid format: "\\"yaml\\""; expected "json" or a valid JSON Schema object',
    )
    assert refusal("/api/generate", body, a_model(), OLDEST_RULES) == (400, 'format must be empty or "json"')
    assert said("Say hello", format="") == "hello"


# --- keep_alive, load, unload ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (10, 10),
        (1.5, 1.5),
        (-1, FOREVER_S),
        (-0.5, FOREVER_S),
        ("0", 0),
        ("0s", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+2s", 2),
        ("-1m", FOREVER_S),
        ("1h0m0.25s", 3600.25),
        ("2µs", 2e-6),
    ],
)
def test_keep_alive_is_read_in_every_spelling(value: object, seconds: float | None) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("10", 'time: missing unit in duration "10"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("soon", 'time: invalid duration "soon"'),
        (".s", 'time: invalid duration ".s"'),
        ('5"', 'time: unknown unit "\\"" in duration "5\\""'),
        ("5é", 'time: unknown unit "\\xc3\\xa9" in duration "5\\xc3\\xa9"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_a_bad_keep_alive_is_refused_in_the_servers_words(value: object, refused: str) -> None:
    with pytest.raises(InvalidKeepAlive) as caught:
        parse_keep_alive(value)
    assert str(caught.value) == refused
    assert refusal("/api/chat", {"keep_alive": value}, a_model()) == (400, refused)


def test_before_0_11_8_fractions_are_cut_and_less_than_a_second_unloads() -> None:
    assert (parse_keep_alive(1.9, fractions=False), parse_keep_alive(1.9)) == (1, 1.9)
    assert (is_unload(0.3, fractions=False), is_unload(0.3)) == (True, False)
    assert not is_unload(None)
    assert not is_unload(math.inf)


@pytest.mark.parametrize(("path", "spoken"), [("/api/generate", "response"), ("/api/chat", "message")])
def test_an_empty_request_loads_and_with_keep_alive_0_unloads(path: str, spoken: str) -> None:
    loaded = answer(path, {"model": "m", "keep_alive": "10m"}, a_model())
    assert (loaded.runner, loaded.keep_alive_s, loaded.streamed) == ("load", 600, False)
    assert (loaded.chunks[0]["done_reason"], spoken in loaded.chunks[0]) == ("load", True)
    unloaded = answer(path, {"model": "m", "keep_alive": 0}, a_model("embedding"))
    assert (unloaded.runner, unloaded.chunks[0]["done_reason"]) == ("unload", "unload")
    older = answer(path, {"model": "m", "keep_alive": 0}, a_model(), OLDEST_RULES)
    assert (older.runner, older.keep_alive_s, older.chunks[0]["done_reason"]) == ("load", 0, "load")


# --- embeddings -----------------------------------------------------------------------------------------------------


def embedded(**body: object) -> list[list[float]]:
    result = answer("/api/embed", {"model": "m", **body}, a_model("embedding"))
    return cast("list[list[float]]", result.chunks[0]["embeddings"])


def nearness(left: list[float], right: list[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


@given(st.text(), st.sampled_from([1, 7, 384]))
def test_every_embedding_has_length_1_and_is_repeated_alike(text: str, length: int) -> None:
    vector = embed_text(text, length)
    assert len(vector) == length
    assert math.isclose(nearness(vector, vector), 1, abs_tol=1e-5)
    assert vector == embed_text(text, length)


def test_similar_texts_lie_closer_than_unrelated_ones() -> None:
    query, near, far = embedded(
        input=["why is the sky blue?", "the sky looks blue today", "invoices are due monthly"]
    )
    assert nearness(query, near) > 0.3 > nearness(query, far)
    one, many, other = embedded(input=["cat", "cats", "motorway"])
    assert nearness(one, many) > nearness(one, other)


def test_one_input_is_a_list_of_one() -> None:
    assert embedded(input="a b") == embedded(input=["a b"])
    assert embedded(input="") == embedded(input=[]) == embedded() == []


def test_dimensions_cut_and_scale_again() -> None:
    [full], [cut] = embedded(input="some text"), embedded(input="some text", dimensions=16)
    assert (len(full), len(cut)) == (384, 16)
    assert math.isclose(nearness(cut, cut), 1, abs_tol=1e-5)
    assert nearness(cut, full[:16]) > 0.99 * math.sqrt(nearness(full[:16], full[:16]))
    assert embedded(input="some text", dimensions=9999) == [full]
    older = answer("/api/embed", {"input": "x", "dimensions": 4}, a_model("embedding"), OLDEST_RULES)
    assert len(cast("list[list[float]]", older.chunks[0]["embeddings"])[0]) == 384


def test_a_long_text_is_truncated_or_refused() -> None:
    model = a_model("embedding", context_length=4)
    body = {"model": "m", "input": "one two three four five six"}
    result = answer("/api/embed", body, model)
    assert result.chunks[0]["prompt_eval_count"] == 4
    status, text = refusal("/api/embed", {**body, "truncate": False}, model)
    assert (status, text) == (400, "input length exceeds maximum context length")


def test_a_chat_model_embeds_on_old_servers_only() -> None:
    body = {"model": "m", "input": "x", "prompt": "x"}
    assert refusal("/api/embed", body, a_model())[0] == 501
    assert refusal("/api/embeddings", body, a_model())[0] == 500
    assert answer("/api/embeddings", body, a_model(), OLDEST_RULES).chunks[0]["embedding"]


def test_embedding_nothing_loads_since_0_3_6() -> None:
    model = a_model("embedding")
    assert answer("/api/embed", {"model": "m", "keep_alive": -1}, model).runner == "load"
    assert answer("/api/embed", {"model": "m", "input": []}, model, OLDEST_RULES).runner == "untouched"
    nothing = answer("/api/embeddings", {"model": "m"}, model)
    assert (nothing.runner, nothing.chunks[0]) == ("load", {"embedding": []})


# --- tokens ---------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_tokens_fit_into_javascript_numbers_and_read_back_as_the_text(text: str) -> None:
    assert detokenize(tokenize(text)) == text == "".join(split_tokens(text))
    assert all(0 < token < 2**53 for token in tokenize(text))


def test_unknown_token_numbers_become_replacement_characters() -> None:
    assert detokenize([-5, 0, 354, 10**30]) == "\ufffd\ufffdb\ufffd"
