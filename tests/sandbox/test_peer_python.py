"""The official `ollama` package for Python runs its usual session against the sandbox, as against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest
from jsonschema import Draft202012Validator
from registry_fixture import RunningRegistry, run_registry

from ollamaops.sandbox.server import Sandbox

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
VERSIONS = ("0.12.11", "0.33.0-rc2")
CHAT = "llama3.2:1b"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather_in",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ollama.Client]:
    with (
        Sandbox(tmp_path / "models", as_version=request.param) as sandbox,
        ollama.Client(host=sandbox.url) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


def names(client: ollama.Client) -> set[str | None]:
    return {model.model for model in client.list().models}


def a_model_from_weights(client: ollama.Client, name: str = "mine") -> str:
    digest = client.create_blob(WEIGHTS / "tiny-ascii-f16.gguf")
    created = client.create(model=name, files={"tiny.gguf": digest}, system="Be brief.")
    assert created.status == "success"
    return name


# --- managing models ------------------------------------------------------------------------------------------------


def test_a_model_is_made_from_weights_listed_shown_copied_and_deleted(client: ollama.Client) -> None:
    name = a_model_from_weights(client)
    shown = client.show(name)
    assert shown.details is not None
    assert (shown.details.format, shown.details.family) == ("gguf", "llama")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion"]
    assert "SYSTEM Be brief." in (shown.modelfile or "")
    assert client.copy(name, "other").status == "success"
    listed = {model.model: model for model in client.list().models}
    assert listed.keys() == {"mine:latest", "other:latest"}
    assert listed["mine:latest"].digest == listed["other:latest"].digest
    assert listed["mine:latest"].modified_at is not None
    assert listed["mine:latest"].size is not None
    assert client.delete(name).status == "success"
    assert names(client) == {"other:latest"}


def test_a_model_is_made_from_another_one_with_every_field(client: ollama.Client) -> None:
    client.pull(CHAT)
    lines = list(
        client.create(
            model="bot",
            from_=CHAT,
            system="You are a bot.",
            template="{{ .System }} {{ .Prompt }}",
            license=["MIT"],
            parameters={"temperature": 0.5, "stop": ["<|end|>", "!"]},
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            stream=True,
        )
    )
    assert lines[-1].status == "success"
    shown = client.show("bot")
    assert shown.template == "{{ .System }} {{ .Prompt }}"
    assert "MIT" in (shown.license or "")
    parameters = [line.split() for line in (shown.parameters or "").splitlines()]
    assert sorted(parameters) == [["stop", '"!"'], ["stop", '"<|end|>"'], ["temperature", "0.5"]]
    assert client.create(model="again", from_="bot").status == "success"


def test_a_pull_reports_progress_layer_by_layer(client: ollama.Client) -> None:
    lines = list(client.pull(CHAT, stream=True))
    assert (lines[0].status, lines[-1].status) == ("pulling manifest", "success")
    assert all(line.total is None or (line.completed or 0) <= line.total for line in lines)
    assert names(client) == {CHAT}


@pytest.mark.registry
def test_a_model_goes_to_a_registry_and_comes_back(
    client: ollama.Client, registry: RunningRegistry, request: pytest.FixtureRequest
) -> None:
    name = f"{registry.host}/peers/python:v{request.node.callspec.id.replace('-', '')}"
    client.copy(a_model_from_weights(client), name)
    before = client.show(name)
    assert [line.status for line in client.push(name, insecure=True, stream=True)][-1] == "success"
    client.delete(name)
    client.delete("mine")
    assert names(client) == set()
    assert client.pull(name, insecure=True).status == "success"
    assert (client.show(name).template, client.show(name).parameters) == (before.template, before.parameters)


def test_a_missing_model_is_the_packages_error_with_its_status(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as shown:
        client.show("nobody")
    with pytest.raises(ollama.ResponseError, match="not found") as deleted:
        client.delete("nobody")
    with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
        client.pull("nobody")
    assert (shown.value.status_code, deleted.value.status_code) == (404, 404)


# --- using models ---------------------------------------------------------------------------------------------------


def test_models_are_loaded_listed_as_loaded_and_unloaded(client: ollama.Client) -> None:
    client.pull(CHAT)
    assert client.generate(CHAT, keep_alive="10m").done_reason == "load"
    loaded = client.ps().models
    assert [model.model for model in loaded] == [CHAT]
    assert loaded[0].expires_at is not None
    assert client.generate(CHAT, keep_alive=0).done_reason == "unload"
    assert list(client.ps().models) == []


def test_generate_answers_whole_and_in_pieces_and_the_same_for_the_same_seed(client: ollama.Client) -> None:
    client.pull(CHAT)
    whole = client.generate(CHAT, "Why is the sky blue?", options={"seed": 7})
    assert whole.done
    assert whole.response
    assert whole.context
    assert (whole.eval_count or 0) > 0
    assert (whole.total_duration or 0) >= (whole.load_duration or 0) >= 0
    pieces = list(client.generate(CHAT, "Why is the sky blue?", options={"seed": 7}, stream=True))
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.response or "" for piece in pieces) == whole.response


def test_generate_obeys_a_format(client: ollama.Client) -> None:
    client.pull(CHAT)
    free = client.generate(CHAT, "a person as JSON", format="json")
    assert isinstance(json.loads(free.response or ""), dict)
    bound = client.generate(CHAT, "a person as JSON", format=SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads(bound.response or ""))


def test_chat_answers_whole_and_in_pieces(client: ollama.Client) -> None:
    client.pull(CHAT)
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "Who am I?"},
    ]
    whole = client.chat(CHAT, history, options={"seed": 1})
    assert whole.message.role == "assistant"
    assert whole.message.content
    pieces = list(client.chat(CHAT, history, options={"seed": 1}, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done_reason == "stop"


def test_the_asynchronous_client_manages_and_chats(tmp_path: Path) -> None:
    async def session(url: str) -> str:
        async with ollama.AsyncClient(host=url) as client:
            assert [line.status async for line in await client.pull(CHAT, stream=True)][-1] == "success"
            assert [model.model for model in (await client.list()).models] == [CHAT]
            question = [{"role": "user", "content": "hello"}]
            pieces = [piece async for piece in await client.chat(CHAT, question, stream=True)]
            return "".join(piece.message.content or "" for piece in pieces)

    with Sandbox(tmp_path / "models") as sandbox:
        assert asyncio.run(session(sandbox.url))


def test_chat_obeys_a_schema(client: ollama.Client) -> None:
    client.pull(CHAT)
    answer = client.chat(CHAT, [{"role": "user", "content": "a person"}], format=SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads(answer.message.content or ""))


def test_chat_calls_a_tool_and_continues_with_its_result(client: ollama.Client) -> None:
    client.pull(CHAT)
    question = {"role": "user", "content": "What is the weather in Paris?"}
    asked = client.chat(CHAT, [question], tools=[TOOL])
    assert asked.message.tool_calls
    call = asked.message.tool_calls[0].function
    assert call.name == "weather_in"
    assert isinstance(call.arguments["city"], str)
    given = {"role": "tool", "content": "sunny", "tool_name": "weather_in"}
    answer = client.chat(CHAT, [question, asked.message, given], tools=[TOOL])
    assert answer.message.content


def test_embed_gives_one_vector_per_text(client: ollama.Client) -> None:
    client.pull("all-minilm")
    one = client.embed("all-minilm", "hello")
    many = client.embed("all-minilm", ["hello", "world"], truncate=True)
    assert len(one.embeddings) == 1
    assert [len(vector) for vector in many.embeddings] == [384, 384]
    assert list(many.embeddings[0]) == pytest.approx(list(one.embeddings[0]))
    short = client.embed("all-minilm", "hello", dimensions=16)
    assert len(short.embeddings[0]) == 16
    with pytest.raises(ollama.ResponseError, match="does not support generate"):
        client.generate("all-minilm", "hello")
