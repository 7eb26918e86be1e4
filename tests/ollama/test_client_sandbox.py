"""The client against the pretend server of each version: what an apply does, from blobs to deletes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ollamaops.errors import InvalidRequest, NotFound, RegistryRefused, RemoteError
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.inference import ChatRequest, EmbedRequest, GenerateRequest
from ollamaops.ollama.messages import Message
from ollamaops.ollama.upload import upload_blob
from ollamaops.ollama.wire import CreateRequest, Progress
from ollamaops.sandbox.server import Sandbox

VERSIONS = ["0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2"]
WEIGHTS = Path(__file__).parents[1] / "contract" / "weights" / "tiny-a.gguf"
DIGEST = Digest.of(WEIGHTS.read_bytes())
BASE, BOT = ModelName.parse("base"), ModelName.parse("me/Bot:v1")


class Host(NamedTuple):
    """A running sandbox and a client for it."""

    sandbox: Sandbox
    client: OllamaClient

    def make(self, name: ModelName, from_: ModelName | None = None) -> None:
        """A model from a base, or from the tiny weights, the way this version wants it."""
        if not self.client.features().structured_create:
            self.client.create_from_modelfile(name, f"FROM {from_ or f'@{DIGEST}'}\n")
        elif from_ is not None:
            self.client.create(CreateRequest(model=name, from_=from_))
        else:
            self.client.create(CreateRequest(model=name, files={"tiny-a.gguf": DIGEST}))

    def make_base(self) -> None:
        upload_blob(self.client, DIGEST, WEIGHTS, WEIGHTS.stat().st_size)
        self.make(BASE)

    def make_bot(self) -> None:
        if self.client.features().structured_create:
            parameters: dict[str, int | float | tuple[str, ...]]
            parameters = {"temperature": 0.25, "num_ctx": 1048576, "stop": ("<|x|>", 'a "q"')}
            request = CreateRequest(
                model=BOT,
                from_=ModelName.parse("BASE"),
                system="You are kind.",
                parameters=parameters,
                messages=(("user", "hi"), ("assistant", "hello")),
                licenses=("MIT",),
            )
            self.client.create(request)
        else:
            text = (
                'FROM base\nSYSTEM """You are kind."""\nPARAMETER temperature 0.25\nPARAMETER num_ctx 1048576\n'
                'PARAMETER stop """<|x|>"""\nPARAMETER stop """a "q""""\nLICENSE """MIT"""\n'
                "MESSAGE user hi\nMESSAGE assistant hello\n"
            )
            self.client.create_from_modelfile(BOT, text)


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    with (
        Sandbox(store=tmp_path, as_version=request.param) as sandbox,
        OllamaClient.connect(sandbox.url, host_name="gpu-1") as client,
    ):
        yield Host(sandbox, client)


def test_the_version_is_what_was_asked_for(host: Host) -> None:
    assert str(host.client.version()) == host.sandbox.version


def test_a_blob_is_sent_once(host: Host) -> None:
    assert not host.client.has_blob(DIGEST)
    assert upload_blob(host.client, DIGEST, WEIGHTS, WEIGHTS.stat().st_size)
    assert host.client.has_blob(DIGEST)
    assert not upload_blob(host.client, DIGEST, WEIGHTS, WEIGHTS.stat().st_size)


def test_a_model_is_made_from_weights_and_another_from_it(host: Host) -> None:
    host.make_base()
    host.make_bot()
    models = {model.name: model for model in host.client.tags()}
    assert set(models) == {"base:latest", "me/Bot:v1"}
    shown = host.client.show(BOT)
    assert shown.system == "You are kind."
    assert shown.parameter_values == {
        "temperature": 0.25,
        "num_ctx": 1048576,
        "stop": ("<|x|>", 'a "q"'),
    }
    assert [(message.role, message.content) for message in shown.messages] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert shown.licenses == "MIT"
    assert shown.details.parent_model == "base:latest"
    has = host.client.features()
    assert bool(shown.tensors) == has.version.is_at_least((0, 6, 1))
    assert (shown.capabilities is not None) == has.version.is_at_least((0, 6, 4))
    assert (models["base:latest"].capabilities is not None) == has.version.is_at_least((0, 30, 0))
    assert str(DIGEST.hex) in host.client.show(BASE).modelfile or has.gguf_rewritten


def test_a_missing_base_leaves_the_model_as_it_was(host: Host) -> None:
    host.make_base()
    host.make_bot()
    before = host.client.tags()
    with pytest.raises(RemoteError):
        host.make(BOT, from_=ModelName.parse("127.0.0.1:9/x/nope"))
    assert {model.digest for model in host.client.tags()} == {model.digest for model in before}


def test_a_blob_that_is_missing_at_create_is_named_so(host: Host) -> None:
    with pytest.raises(NotFound) as caught:
        host.make(BOT)
    assert "upload it again" in (caught.value.hint or "")


def test_copies_are_equal_and_deletes_say_whether_it_was_there(host: Host) -> None:
    host.make_base()
    copy = ModelName.parse("copy:v2")
    host.client.copy(BASE, copy)
    assert len({model.digest for model in host.client.tags()}) == 1
    assert host.client.delete(copy) is True
    assert host.client.delete(copy) is False
    with pytest.raises(NotFound):
        host.client.copy(copy, BASE)
    with pytest.raises(NotFound):
        host.client.show(copy)
    assert [model.name for model in host.client.tags()] == ["base:latest"]


def test_a_local_suffix_never_reaches_the_wrong_model(host: Host) -> None:
    host.make_base()
    local = ModelName.parse("base:local")
    host.client.copy(BASE, local)
    if host.client.features().suffix_routing:
        with pytest.raises(InvalidRequest):
            host.client.delete(local)
        assert len(host.client.tags()) == 2
    else:
        assert host.client.delete(local)
        assert [model.name for model in host.client.tags()] == ["base:latest"]


def test_a_pretend_model_is_pulled_with_progress(host: Host) -> None:
    seen: list[Progress] = []
    model = ModelName.parse("llama3.2:3b")
    host.client.pull(model, on_progress=seen.append)
    assert [tagged.name for tagged in host.client.tags()] == ["llama3.2:3b"]
    assert seen[0].status == "pulling manifest"
    assert seen[-1].status == "success"
    assert any(progress.total_bytes for progress in seen)
    host.client.pull(model)


def test_a_model_that_no_registry_has_is_refused_for_good(host: Host) -> None:
    with pytest.raises(RegistryRefused):
        host.client.pull(ModelName.parse("no-such-model-at-all"))


def test_a_push_of_what_is_not_there_is_not_found(host: Host) -> None:
    with pytest.raises(NotFound):
        host.client.push(ModelName.parse("127.0.0.1:9/me/nope:v1"), insecure=True)


def test_a_model_is_loaded_used_and_unloaded(host: Host) -> None:
    model = ModelName.parse("llama3.2:3b")
    host.client.pull(model)
    host.client.load(model, keep_alive_s=-1)
    assert [loaded.name for loaded in host.client.ps()] == ["llama3.2:3b"]
    assert host.client.ps()[0].digest == host.client.tags()[0].digest
    asked = GenerateRequest(model=model, prompt="Say hello.", options={"seed": 1, "num_predict": 8})
    whole = host.client.generate(asked)
    pieces = list(host.client.generate_stream(asked))
    assert whole.response
    assert whole.response == "".join(piece.response for piece in pieces)
    assert whole.timings.tokens == pieces[-1].timings.tokens > 0
    talk = ChatRequest(model=model, messages=(Message("user", "hi"),), options={"seed": 1, "num_predict": 8})
    spoken = "".join(piece.message.content for piece in host.client.chat_stream(talk))
    assert host.client.chat(talk).message.content == spoken
    host.client.unload(model)


def test_an_embedding_model_is_loaded_and_gives_vectors(host: Host) -> None:
    model = ModelName.parse("nomic-embed-text")
    host.client.pull(model)
    host.client.load(model)
    assert [loaded.name for loaded in host.client.ps()] == ["nomic-embed-text:latest"]
    answer = host.client.embed(EmbedRequest(model=model, inputs=("a", "b")))
    assert len(answer.embeddings) == 2
    assert len(answer.embeddings[0]) == len(answer.embeddings[1]) > 0
    host.client.unload(model)
