"""Answers of registries for a whole run: asked once, never in vain twice, safe from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_host import NoWaitToken, name
from patience import PATIENCE_S
from registry_fixture import Reply, Request, RunningServer, run_server

from ollamaops.errors import Cancelled, NotFound, ServerFault
from ollamaops.lockfile.build import Unanswered
from ollamaops.names import Digest, ModelName
from ollamaops.observe.registries import RegistryCache
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import Layer

WEIGHTS, CONFIG = b"weights", b"{}"
RAW = (
    '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
    f'"config":{{"mediaType":"c","digest":"{Digest.of(CONFIG)}","size":{len(CONFIG)}}},'
    f'"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"{Digest.of(WEIGHTS)}",'
    f'"size":{len(WEIGHTS)}}}]}}'
).encode()
LAYER = Layer("application/vnd.ollama.image.model", Digest.of(WEIGHTS), len(WEIGHTS))


class Script:
    """What the registry answers: `replies` first, one each, then the usual."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def answer(self, request: Request) -> Reply:
        if self.replies:
            return self.replies.pop(0)
        if "/manifests/" in request.path:
            return Reply(404) if "missing" in request.path else Reply(200, {}, RAW)
        return Reply(200, {}, WEIGHTS) if str(LAYER.digest) in request.path else Reply(404)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def registry(script: Script) -> Iterator[RunningServer]:
    with run_server(script.answer) as running:
        yield running


@pytest.fixture
def registries() -> Iterator[RegistryCache]:
    found = RegistryCache(lambda: RegistryClient(timeout_s=2), NoWaitToken())
    yield found
    found.close()


def model(registry: RunningServer, text: str = "me/bot:v1") -> ModelName:
    return name(f"{registry.host}/{text}")


def test_what_a_registry_has_is_told_with_its_sizes(
    registry: RunningServer, registries: RegistryCache
) -> None:
    ref = model(registry)
    found = registries.ask({ref: True})[ref]
    assert (found.error, found.answered, found.registry_digest) == ("", True, Digest.of(RAW).hex)
    assert found.registry_digest in found.digests
    assert dict(found.layers) == {LAYER.digest: len(WEIGHTS), Digest.of(CONFIG): len(CONFIG)}
    assert found.total_bytes == len(WEIGHTS) + len(CONFIG)


def test_each_name_is_asked_for_once_in_a_run(registry: RunningServer, registries: RegistryCache) -> None:
    names = [model(registry), model(registry, "me/bot:v2"), model(registry, "me/missing:v1")]
    start = threading.Barrier(4, timeout=PATIENCE_S)

    def ask() -> dict[ModelName, object]:
        start.wait()
        return dict(registries.ask(dict.fromkeys(names, True)))

    with ThreadPoolExecutor(4) as pool:
        answers = [each.result() for each in [pool.submit(ask) for _ in range(4)]]
    assert all(answer == answers[0] for answer in answers)
    asked = [request.path for request in registry.requests]
    assert sorted(set(asked)) == [f"/v2/me/bot/manifests/{tag}" for tag in ("v1", "v2")] + [
        "/v2/me/missing/manifests/v1",
        "/v2/me/missing/tags/list",
    ]
    assert asked.count("/v2/me/bot/manifests/v1") == asked.count("/v2/me/bot/manifests/v2") == 1


def test_a_registry_that_says_no_has_answered_and_is_asked_for_other_names(
    registry: RunningServer, registries: RegistryCache
) -> None:
    missing, there = model(registry, "me/missing:v1"), model(registry)
    found = registries.ask({missing: True, there: True})
    assert (found[missing].answered, found[missing].hint) == (True, "check the name and the tag")
    assert "404" in found[missing].error
    assert found[there].error == ""


def test_a_dead_registry_is_tried_once_and_holds_up_nobody_else(
    registry: RunningServer, registries: RegistryCache
) -> None:
    with run_server(lambda _: Reply(200)) as dead:
        pass
    first, second, there = name(f"{dead.host}/a/a"), name(f"{dead.host}/b/b"), model(registry)
    found = registries.ask({first: True, second: True, there: True})
    assert not found[first].answered
    assert found[second] == found[first]
    assert found[there].error == ""


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_is_busy_is_asked_again(
    registry: RunningServer, script: Script, registries: RegistryCache, status: int
) -> None:
    script.replies = [Reply(status)] * 2
    ref = model(registry)
    assert registries.ask({ref: True})[ref].error == ""
    assert len(registry.requests) == 3


def test_a_registry_that_stays_broken_is_an_answer_in_its_words(
    registry: RunningServer, script: Script, registries: RegistryCache
) -> None:
    script.replies = [Reply(500)] * 9
    answer = registries.manifest(model(registry), insecure=True)
    assert isinstance(answer, Unanswered)
    assert answer.cause == "refused"
    assert len(registry.requests) == 3


def test_bytes_that_are_not_what_the_registry_says_are_named_as_tampered(
    registry: RunningServer, script: Script, registries: RegistryCache
) -> None:
    script.replies = [Reply(200, {"Docker-Content-Digest": str(Digest.of(b"other"))}, RAW)]
    answer = registries.manifest(model(registry), insecure=True)
    assert isinstance(answer, Unanswered)
    assert answer.cause == "tampered"


def test_what_was_pushed_since_is_asked_for_anew(registry: RunningServer, registries: RegistryCache) -> None:
    ref = model(registry)
    for _ in range(2):
        registries.ask({ref: True})
        registries.forget(ref, insecure=True)
    assert len(registry.requests) == 2


def test_a_small_layer_is_read_once_and_a_missing_one_is_not_found(
    registry: RunningServer, registries: RegistryCache
) -> None:
    ref = model(registry)
    assert [registries.blob(ref, LAYER, insecure=True) for _ in range(2)] == [WEIGHTS] * 2
    assert len(registry.requests) == 1
    assert registries.has_blob(ref, LAYER, insecure=True)
    other = Layer("x", Digest.of(b"other"), 5)
    assert not registries.has_blob(ref, other, insecure=True)
    with pytest.raises(NotFound):
        registries.blob(ref, other, insecure=True)


def test_a_failing_layer_is_tried_again_and_then_an_error(
    registry: RunningServer, script: Script, registries: RegistryCache
) -> None:
    script.replies = [Reply(503)] * 9
    with pytest.raises(ServerFault):
        registries.blob(model(registry), LAYER, insecure=True)
    assert len(registry.requests) == 3


def test_a_wish_to_stop_ends_the_asking(registry: RunningServer, script: Script) -> None:
    script.replies = [Reply(503)] * 9
    token = NoWaitToken()
    registries = RegistryCache(lambda: RegistryClient(timeout_s=2), token)
    token.cancel()
    with pytest.raises(Cancelled):
        registries.ask({model(registry): True})
    registries.close()


def test_closing_what_was_never_asked_opens_nothing(tmp_path: Path) -> None:
    def fail() -> RegistryClient:
        raise AssertionError("opened")

    RegistryCache(fail).close()
