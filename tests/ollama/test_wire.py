"""What goes over the wire: recorded answers are read, odd ones refused by name, requests are written as asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import ProtocolError
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.fields import Fields
from ollamaops.ollama.inference import (
    ChatAnswer,
    ChatRequest,
    EmbedAnswer,
    EmbedRequest,
    GenerateAnswer,
    GenerateRequest,
    Timings,
)
from ollamaops.ollama.messages import Message, ToolCall, render_keep_alive
from ollamaops.ollama.shown_modelfile import read_go_value, read_parameters
from ollamaops.ollama.wire import CreateRequest, LoadedModel, Progress, ShownModel, TaggedModel

CONTRACT = Path(__file__).parents[1] / "contract"
HEX = "0123456789abcdef" * 4
BOT = ModelName.parse("bot")


class Step(NamedTuple):
    """One recorded request and its answer."""

    version: str
    scenario: str
    request: dict[str, Any]
    response: dict[str, Any]


def steps(path: str) -> Iterator[Step]:
    """Every recorded request to `path` that was answered with 200."""
    for file in sorted(CONTRACT.glob("ollama-*.json")):
        for name, scenario in json.loads(file.read_text())["scenarios"].items():
            for step in scenario:
                if step["request"].get("path") == path and step["response"]["status"] == 200:
                    yield Step(file.stem.removeprefix("ollama-"), name, step["request"], step["response"])


def fields(value: object) -> Fields:
    return Fields(value, "gpu-1: ask: the answer", "gpu-1")


def a_tag(**changes: object) -> dict[str, object]:
    return {"name": "bot:latest", "digest": HEX, "size": 3, "details": {}} | changes


# reading


def test_every_recorded_tags_answer_is_read() -> None:
    seen = 0
    for step in steps("/api/tags"):
        if step.request["method"] == "HEAD":
            continue
        models = fields(step.response["json"]).objects("models", TaggedModel.read)
        for model, raw in zip(models, step.response["json"]["models"], strict=True):
            seen += 1
            assert (model.name, model.digest.hex, model.size_bytes) == (
                raw["name"],
                raw["digest"],
                raw["size"],
            )
            assert model.format == raw["details"]["format"]
            assert model.families == tuple(raw["details"]["families"] or ())
            assert model.parent_model == raw["details"].get("parent_model", "")
            lists = ServerVersion.parse(step.version).is_at_least((0, 30, 0))
            assert (model.capabilities is not None) == lists
            assert (model.context_length > 0) == lists
    assert seen > 100


def test_every_recorded_show_answer_is_read() -> None:
    seen = 0
    for step in steps("/api/show"):
        seen += 1
        raw = step.response["json"]
        shown = ShownModel.read(fields(raw))
        assert shown.template == raw["template"]
        assert shown.system == raw.get("system", "")
        assert shown.licenses == raw.get("license", "")
        assert [(m.role, m.content) for m in shown.messages] == [
            (m["role"], m["content"]) for m in raw.get("messages", [])
        ]
        assert shown.details.family == raw["details"]["family"]
        version = ServerVersion.parse(step.version)
        assert (shown.capabilities is not None) == version.is_at_least((0, 6, 4))
        assert not shown.tensors or version.is_at_least((0, 6, 1))
    assert seen > 50


def test_parameters_come_back_as_they_were_given() -> None:
    """What `create` was asked for and `show` printed, on all six servers, numbers beyond 1e6 and quotes included."""
    for step in steps("/api/show"):
        if step.scenario == "big-numbers":
            assert ShownModel.read(fields(step.response["json"])).parameter_values == {
                "num_ctx": 1048576,
                "seed": 1000000,
                "temperature": 1e-05,
                "top_p": 0.95,
                "repeat_penalty": 1,
            }
        if step.scenario == "create-with-overrides":
            assert ShownModel.read(fields(step.response["json"])).parameter_values == {
                "num_ctx": 4096,
                "temperature": 0.25,
                "top_k": 40,
                "stop": ("<|user|>", 'END "quoted"'),
            }


def test_every_recorded_ps_answer_is_read() -> None:
    loaded = []
    for step in steps("/api/ps"):
        loaded += list(fields(step.response["json"]).objects("models", LoadedModel.read))
    assert {model.name for model in loaded} == {"talker:latest", "minilm:latest", "one:latest"}
    assert {model.context_length for model in loaded} == {0, 512, 4096}
    assert all(model.size_bytes > 0 and model.vram_bytes == 0 for model in loaded)


def test_every_recorded_progress_line_is_read() -> None:
    totals = set()
    for path in ("/api/create", "/api/pull", "/api/push"):
        for step in steps(path):
            for line in step.response.get("ndjson", []):
                if "error" in line:
                    continue
                progress = Progress.read(fields(line))
                assert progress.status
                totals.add(progress.total_bytes > 0)
                assert progress.completed_bytes <= progress.total_bytes
    assert totals == {True, False}


def test_an_answer_from_the_future_is_read_all_the_same() -> None:
    tag = a_tag(
        model="bot:latest", novelty={"x": 1}, details={"families": None, "more": []}, capabilities=None
    )
    model = TaggedModel.read(fields(tag))
    assert (model.families, model.capabilities, model.is_cloud_stub) == ((), None, False)


def test_a_cloud_stub_is_told_from_a_model() -> None:
    stub = TaggedModel.read(fields(a_tag(remote_model="x", remote_host="https://ollama.com:443")))
    assert stub.is_cloud_stub


def test_an_entry_with_the_old_key_alone_is_read() -> None:
    tag = a_tag(model="old:latest")
    del tag["name"]
    assert TaggedModel.read(fields(tag)).name == "old:latest"


WRONG: list[tuple[Callable[[Fields], object], object, str]] = [
    (TaggedModel.read, [], "gpu-1: ask: the answer is a list, not an object"),
    (TaggedModel.read, None, "gpu-1: ask: the answer is missing, not an object"),
    (TaggedModel.read, a_tag(size="3"), "gpu-1: ask: the answer: size is a string, not an integer"),
    (TaggedModel.read, a_tag(size=True), "gpu-1: ask: the answer: size is true or false, not an integer"),
    (TaggedModel.read, a_tag(size=0.5), "gpu-1: ask: the answer: size is a number, not an integer"),
    (TaggedModel.read, a_tag(digest="abc"), "gpu-1: ask: the answer: digest is a string, not a digest"),
    (TaggedModel.read, a_tag(digest=None), "gpu-1: ask: the answer: digest is a string, not a digest"),
    (TaggedModel.read, a_tag(name=7), "gpu-1: ask: the answer: name is a number, not a string"),
    (TaggedModel.read, a_tag(name=""), "gpu-1: ask: the answer: name is missing, not a string"),
    (TaggedModel.read, a_tag(details=[]), "gpu-1: ask: the answer: details is a list, not an object"),
    (
        TaggedModel.read,
        a_tag(details={"families": ["a", 1]}),
        "gpu-1: ask: the answer: details: families[1] is a number, not a string",
    ),
    (
        TaggedModel.read,
        a_tag(capabilities={}),
        "gpu-1: ask: the answer: capabilities is an object, not a list",
    ),
    (
        ShownModel.read,
        {"messages": ["hi"]},
        "gpu-1: ask: the answer: messages[0] is a string, not an object",
    ),
    (
        ShownModel.read,
        {"tensors": [{"shape": ["x"]}]},
        "gpu-1: ask: the answer: tensors[0]: shape is a list, not a list of integers",
    ),
    (
        GenerateAnswer.read,
        {"done": "yes"},
        "gpu-1: ask: the answer: done is a string, not true or false",
    ),
    (
        EmbedAnswer.read,
        {"embeddings": [[1, "2"]]},
        "gpu-1: ask: the answer: embeddings is a list, not a list of lists of numbers",
    ),
    (Progress.read, {"total": {}}, "gpu-1: ask: the answer: total is an object, not an integer"),
]


@pytest.mark.parametrize(("read", "value", "message"), WRONG)
def test_a_wrong_type_is_named(read: Callable[[Fields], object], value: object, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(fields(value))
    assert str(caught.value) == message
    assert caught.value.host == "gpu-1"


def test_a_whole_number_with_a_point_is_an_integer() -> None:
    assert fields({"size": 3.0}).count("size") == 3


# parameters of show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e+06", 1000000),
        ("1.048576e+06", 1048576),
        ("1e-05", 1e-05),
        ("0.95", 0.95),
        ("1", 1),
        ("-1", -1),
        ("true", True),
        ("false", False),
        ("<nil>", None),
        ('"<|eot_id|>"', "<|eot_id|>"),
        (r'"a\nb\t\"c\"\\ \x00 \u200d \U0001f600"', 'a\nb\t"c"\\ \x00 \u200d \U0001f600'),
        ('""', ""),
        ('"1e+06"', "1e+06"),
        ('"', '"'),
        ("+Inf", "+Inf"),
        ('map[string]interface {}{"a":1}', 'map[string]interface {}{"a":1}'),
        ("9" * 5000, float("inf")),
        (r'"\UFFFFFFFF"', "\ufffd"),
        (r'"\q"', "q"),
    ],
)
def test_a_go_value_is_read(text: str, value: object) -> None:
    read = read_go_value(text)
    assert read == value
    assert type(read) is type(value)


def go_quoted(text: str) -> str:
    """As strconv.Quote of Go prints it: escapes for what is not printable ASCII or beyond."""
    named = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
    named |= {"\\": r"\\", '"': r"\""}

    def one(char: str) -> str:
        if char in named:
            return named[char]
        code = ord(char)
        if code < 0x20 or code == 0x7F:
            return f"\\x{code:02x}"
        if char.isprintable():
            return char
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(one, text)) + '"'


@given(st.text())
def test_every_quoted_text_comes_back(text: str) -> None:
    assert read_go_value(go_quoted(text)) == text


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=40)


@given(st.lists(st.tuples(NAMES, st.text() | st.booleans() | st.integers(-(10**15), 10**15)), max_size=8))
def test_every_parameters_text_comes_back_sorted(pairs: list[tuple[str, str | bool | int]]) -> None:
    def printed(value: str | bool | int) -> str:
        return go_quoted(value) if isinstance(value, str) else str(value).lower()

    text = "\n".join(f"{name:<30} {printed(value)}" for name, value in pairs)
    assert read_parameters(text) == tuple(sorted(pairs, key=lambda pair: pair[0]))


def test_a_name_longer_than_its_column_is_read() -> None:
    name = "a_name_of_more_than_thirty_characters"
    assert read_parameters(f"{name} 7\nodd key                        true") == ((name, 7), ("odd key", True))


def test_stop_is_a_list_even_alone_and_unset_is_none() -> None:
    one = ShownModel.read(fields({"parameters": 'stop                           "a"'}))
    unset = ShownModel.read(fields({"parameters": "stop                           <nil>"}))
    assert one.parameter_values == {"stop": ("a",)}
    assert unset.parameter_values == {"stop": None}


def test_the_context_length_is_found_in_the_weights_or_the_details() -> None:
    info = {"general.architecture": "llama", "llama.context_length": 512}
    assert ShownModel.read(fields({"model_info": info})).context_length == 512
    assert ShownModel.read(fields({"details": {"context_length": 7}})).context_length == 7
    assert ShownModel.read(fields({})).context_length == 0


# writing


def test_a_create_request_says_what_is_given_and_nothing_else() -> None:
    digest = Digest.parse(HEX)
    request = CreateRequest(
        model=ModelName.parse("me/bot:v1"),
        from_=ModelName.parse("Llama3"),
        adapters={"lora.gguf": digest},
        template="{{ .Prompt }}",
        system="Be kind.",
        licenses=("MIT", "BSD"),
        parameters={"temperature": 0.0, "stop": ("a", "b"), "num_ctx": None, "use_mmap": False},
        messages=(("user", "hi"), ("assistant", "")),
        quantize="q8_0",
        renderer="r",
        parser="p",
        requires="0.14.0",
    )
    assert request.to_json() == {
        "model": "me/bot:v1",
        "from": "Llama3:latest",
        "adapters": {"lora.gguf": f"sha256:{HEX}"},
        "template": "{{ .Prompt }}",
        "system": "Be kind.",
        "license": ["MIT", "BSD"],
        "parameters": {"temperature": 0.0, "stop": ["a", "b"], "num_ctx": None, "use_mmap": False},
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}],
        "quantize": "q8_0",
        "renderer": "r",
        "parser": "p",
        "requires": "0.14.0",
    }


def test_clearing_the_inherited_stops_is_sent_as_an_empty_list() -> None:
    assert CreateRequest(model=BOT, parameters={"stop": ()}).to_json()["parameters"] == {"stop": []}


def test_files_and_drafts_are_sent_by_digest() -> None:
    digest = Digest.parse(HEX)
    request = CreateRequest(
        model=BOT, files={"w.gguf": digest}, drafts={"d.gguf": digest}, draft_quantize="Q8_0", system=""
    )
    assert request.to_json() == {
        "model": "bot:latest",
        "files": {"w.gguf": f"sha256:{HEX}"},
        "draft_files": {"d.gguf": f"sha256:{HEX}"},
        "draft_quantize": "Q8_0",
    }


@pytest.mark.parametrize(
    ("request_", "before", "since", "names"),
    [
        (CreateRequest(model=BOT, renderer="r", parser="p"), "0.11.11", "0.12.0", ["renderer", "parser"]),
        (CreateRequest(model=BOT, requires="1.0.0"), "0.13.5", "0.14.0", ["requires"]),
        (CreateRequest(model=BOT, draft_quantize="F16"), "0.24.0", "0.30.0", ["draft_quantize"]),
        (CreateRequest(model=BOT, drafts={"d": Digest.parse(HEX)}), "0.24.0", "0.30.0", ["drafts"]),
    ],
)
def test_fields_that_an_old_server_would_pass_over_are_known(
    request_: CreateRequest, before: str, since: str, names: list[str]
) -> None:
    old, new = (features_of(ServerVersion.parse(version)) for version in (before, since))
    assert [name for name, _ in request_.unknown_fields(old)] == names
    assert request_.unknown_fields(new) == ()


def test_a_generate_request_says_what_is_given() -> None:
    request = GenerateRequest(
        model=BOT,
        prompt="p",
        suffix="s",
        system="sys",
        template="t",
        images=(b"abc",),
        format={"type": "object"},
        options={"seed": 0, "stop": ("x",)},
        context=(1, 2),
        raw=True,
        think=False,
        keep_alive_s=0,
    )
    assert request.to_json() == {
        "model": "bot:latest",
        "prompt": "p",
        "suffix": "s",
        "system": "sys",
        "template": "t",
        "images": [base64.b64encode(b"abc").decode()],
        "format": {"type": "object"},
        "options": {"seed": 0, "stop": ["x"]},
        "context": [1, 2],
        "raw": True,
        "think": False,
        "keep_alive": 0,
    }
    assert GenerateRequest(model=BOT).to_json() == {"model": "bot:latest"}


def test_a_chat_request_carries_its_history() -> None:
    call = ToolCall(name="f", arguments={"a": 1}, id="call_1")
    messages = (
        Message("user", "what?", images=(b"x",)),
        Message("assistant", thinking="hm", tool_calls=(call, ToolCall(name="g"))),
        Message("tool", "42", tool_name="f"),
    )
    body = ChatRequest(model=BOT, messages=messages, tools=({"type": "function"},), format="json").to_json()
    assert body == {
        "model": "bot:latest",
        "messages": [
            {"role": "user", "content": "what?", "images": ["eA=="]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"function": {"name": "f", "arguments": {"a": 1}}, "id": "call_1"},
                    {"function": {"name": "g", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "42", "tool_name": "f"},
        ],
        "tools": [{"type": "function"}],
        "format": "json",
    }


def test_an_embed_request_says_what_is_given() -> None:
    request = EmbedRequest(model=BOT, inputs=("a", "b"), truncate=False, dimensions=8, keep_alive_s=-1)
    assert request.to_json() == {
        "model": "bot:latest",
        "input": ["a", "b"],
        "truncate": False,
        "dimensions": 8,
        "keep_alive": -1,
    }


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, 0),
        (300, 300),
        (-1, -1),
        (-0.5, -1),
        (float("inf"), -1),
        (1.5, "1500ms"),
        (0.0001, "1ms"),
        (2.0, 2),
    ],
)
def test_keep_alive_is_written_as_every_version_takes_it(seconds: float, written: int | str) -> None:
    assert render_keep_alive(seconds) == written


# answers of models


def test_durations_are_seconds_and_rates_are_theirs() -> None:
    answer = GenerateAnswer.read(
        fields(
            {
                "response": "hi",
                "done": True,
                "done_reason": "stop",
                "context": [1, 2],
                "total_duration": 5_000_000_000,
                "load_duration": 1_000_000_000,
                "prompt_eval_count": 7,
                "prompt_eval_duration": 500_000_000,
                "eval_count": 10,
                "eval_duration": 2_000_000_000,
            }
        )
    )
    assert answer.timings == Timings(total_s=5, load_s=1, prompt_tokens=7, tokens=10, generate_s=2)
    assert answer.timings.tokens_per_s == 5
    assert Timings().tokens_per_s == 0
    assert answer.context == (1, 2)


def test_tool_calls_of_an_answer_are_read() -> None:
    call = {"function": {"name": "f", "arguments": {"a": [1]}}}
    answer = ChatAnswer.read(fields({"message": {"role": "assistant", "content": "", "tool_calls": [call]}}))
    assert answer.message.tool_calls == (ToolCall(name="f", arguments={"a": [1]}),)


def test_embeddings_are_vectors() -> None:
    answer = EmbedAnswer.read(
        fields({"model": "e", "embeddings": [[0, 0.5], [1, 2]], "prompt_eval_count": 4})
    )
    assert answer.embeddings == ((0.0, 0.5), (1.0, 2.0))
    assert answer.timings.prompt_tokens == 4
