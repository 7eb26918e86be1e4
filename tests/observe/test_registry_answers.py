"""Asking registries once: what is remembered, what is asked again, what each refusal means."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from patience import PATIENCE_S
from registry_fixture import MANIFEST_TYPE, Reply, Request, RunningServer, run_server

from ollamaops.errors import Cancelled, DigestMismatch, NotFound
from ollamaops.http.cancel import CancelToken
from ollamaops.lockfile.build import Unanswered
from ollamaops.names import Digest, ModelName
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import FetchedManifest, Layer

CONFIG = {
    "mediaType": "application/vnd.docker.container.image.v1+json",
    "digest": str(Digest.of(b"{}")),
    "size": 2,
}
RAW = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": CONFIG, "layers": []}).encode()
GOOD = Reply(200, {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": str(Digest.of(RAW))}, RAW)
Answer = Callable[[Request], Reply]


def scripted(*replies: Reply) -> Answer:
    """These answers one after the other, then the last one for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def asking(
    answer: Answer, cancel: CancelToken | None = None
) -> Iterator[tuple[RegistryCache, RunningServer]]:
    with run_server(answer) as server:
        registries = RegistryCache(lambda: RegistryClient(timeout_s=PATIENCE_S), cancel)
        try:
            yield registries, server
        finally:
            registries.close()


def a_name(server: RunningServer, path: str = "team/mario:v1") -> ModelName:
    return ModelName.parse(f"{server.host}/{path}")


def test_a_name_is_asked_for_once_however_many_want_to_know() -> None:
    with asking(scripted(GOOD)) as (registries, server):
        name = a_name(server)
        threads = [
            threading.Thread(target=lambda: registries.manifest(name, insecure=True)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert isinstance(registries.manifest(name, insecure=True), FetchedManifest)
        assert registries.ask({name: True})[name].registry_digest == Digest.of(RAW).hex
        assert len(server.requests) == 1


def test_what_a_push_has_changed_is_asked_for_again() -> None:
    with asking(scripted(GOOD)) as (registries, server):
        registries.manifest(a_name(server), insecure=True)
        registries.forget(a_name(server), insecure=True)
        registries.manifest(a_name(server), insecure=True)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "cause", "requests"),
    [
        (Reply(404), "gone", 3),  # asked again with all media types, then for the tags there are
        (Reply(403), "refused", 1),
        (Reply(200, {}, b"<html>"), "refused", 1),
        (Reply(200, {"Docker-Content-Digest": str(Digest.of(b"other"))}, RAW), "tampered", 1),
        (Reply(429, {"Retry-After": "3600"}), "refused", 1),
    ],
    ids=["404", "403", "no manifest", "other bytes", "429 for an hour"],
)
def test_a_refusal_is_remembered_with_its_cause(reply: Reply, cause: str, requests: int) -> None:
    with asking(scripted(reply)) as (registries, server):
        for _ in range(2):
            answer = registries.manifest(a_name(server), insecure=True)
            assert isinstance(answer, Unanswered)
            assert answer.cause == cause
        assert len(server.requests) == requests
        assert registries.ask({a_name(server): True})[a_name(server)].answered


@pytest.mark.parametrize(
    ("listed", "hint"),
    [
        (["a", "b", "c", "d", "v10", "e"], "check the tag: team/mario has v10, a, b, c, d and 1 more"),
        (["x", "y"], "check the tag: team/mario has x, y"),
        ([], "check the name and the tag"),
        ("no list", "check the name and the tag"),
    ],
)
def test_of_a_tag_that_is_not_there_those_that_are_near_are_named(listed: object, hint: str) -> None:
    tags = Reply(200, {}, json.dumps({"name": "team/mario", "tags": listed}).encode())

    def answer(request: Request) -> Reply:
        return tags if request.path.endswith("/v2/team/mario/tags/list") else Reply(404)

    with asking(answer) as (registries, server):
        found = registries.manifest(a_name(server), insecure=True)
    assert isinstance(found, Unanswered)
    assert (found.cause, found.hint) == ("gone", hint)


def test_one_model_that_is_refused_does_not_speak_for_its_registry() -> None:
    with asking(scripted(Reply(403), GOOD)) as (registries, server):
        assert isinstance(registries.manifest(a_name(server), insecure=True), Unanswered)
        assert isinstance(registries.manifest(a_name(server, "team/luigi"), insecure=True), FetchedManifest)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "passing", [Reply(503), Reply(429, {"Retry-After": "0"}), Reply(200, {}, RAW, cut_at=5)]
)
def test_what_may_pass_is_asked_again(passing: Reply) -> None:
    with asking(scripted(passing, GOOD)) as (registries, server):
        assert isinstance(registries.manifest(a_name(server), insecure=True), FetchedManifest)


def test_a_dead_address_is_tried_once_for_all_its_names_but_http_is_not_https() -> None:
    with asking(scripted(GOOD)) as (registries, server):
        over_tls = registries.manifest(a_name(server))
        assert isinstance(over_tls, Unanswered)
        assert over_tls.cause == "unreached"
        assert over_tls.error.startswith(f"{server.host}: ")
        assert "mario" not in over_tls.error
        assert registries.manifest(a_name(server, "team/luigi")) is over_tls
        assert not registries.ask({a_name(server): False})[a_name(server)].answered
        assert isinstance(registries.manifest(a_name(server), insecure=True), FetchedManifest)


def test_somebody_who_asked_to_stop_is_not_kept_waiting() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with asking(scripted(Reply(503)), cancel) as (registries, server), pytest.raises(Cancelled):
        registries.manifest(a_name(server), insecure=True)


class TestStopping:
    """A registry that makes the wish to stop come while it is being asked; `reply` is what it answers then."""

    @pytest.mark.parametrize("reply", [GOOD, Reply(404), Reply(503)], ids=["found", "404", "503"])
    def test_once_asked_to_stop_nothing_more_is_asked_and_no_answer_counts(self, reply: Reply) -> None:
        cancel, closed = CancelToken(), threading.Event()

        def answer(_: Request) -> Reply:
            cancel.cancel()
            closed.wait(PATIENCE_S)
            return reply

        with asking(answer, cancel) as (registries, server):
            for path in ("team/mario:v1", "team/luigi:v1"):
                with pytest.raises(Cancelled):
                    registries.manifest(a_name(server, path), insecure=True)
            registries.close()
            closed.set()
            for thread in [each for each in threading.enumerate() if each.name == "registry question"]:
                thread.join(PATIENCE_S)
            assert len(server.requests) == 1

    def test_who_waits_for_the_same_registry_does_not_ask_it_either(self) -> None:
        cancel, done = CancelToken(), threading.Event()
        ended: list[type[BaseException]] = []

        def answer(_: Request) -> Reply:
            cancel.cancel()
            done.wait(PATIENCE_S)
            return GOOD

        with asking(answer, cancel) as (registries, server):

            def ask(name: ModelName) -> None:
                with pytest.raises(Cancelled) as caught:
                    registries.manifest(name, insecure=True)
                ended.append(caught.type)

            names = [a_name(server, f"team/mario:v{number}") for number in range(6)]
            threads = [threading.Thread(target=ask, args=(name,)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            done.set()
            assert (ended, len(server.requests)) == ([Cancelled] * 6, 1)

    @pytest.mark.parametrize("question", ["blob", "has_blob"])
    def test_a_question_about_a_layer_is_not_waited_for(self, question: str) -> None:
        cancel, done = CancelToken(), threading.Event()
        layer = Layer("text", Digest.of(b"text"), 4)

        def answer(_: Request) -> Reply:
            cancel.cancel()
            done.wait(PATIENCE_S)
            return Reply(200, {}, b"text")

        with asking(answer, cancel) as (registries, server):
            with pytest.raises(Cancelled):
                getattr(registries, question)(a_name(server), layer, insecure=True)
            done.set()


class TestBlobs:
    @pytest.mark.parametrize(("data", "requests"), [(b"small", 1), (b"x" * (MAX_KEPT_BYTES + 1), 2)])
    def test_small_ones_are_kept(self, data: bytes, requests: int) -> None:
        layer = Layer("text", Digest.of(data), len(data))
        with asking(scripted(Reply(200, {}, data))) as (registries, server):
            for _ in range(2):
                assert registries.blob(a_name(server), layer, insecure=True) == data
            assert len(server.requests) == requests

    def test_other_bytes_and_none_are_errors(self) -> None:
        layer = Layer("text", Digest.of(b"text"), 4)
        with asking(scripted(Reply(200, {}, b"evil"), Reply(404))) as (registries, server):
            with pytest.raises(DigestMismatch):
                registries.blob(a_name(server), layer, insecure=True)
            with pytest.raises(NotFound):
                registries.blob(a_name(server), layer, insecure=True)
            assert not registries.has_blob(a_name(server), layer, insecure=True)


def test_closing_what_was_never_opened_is_nothing() -> None:
    RegistryCache(lambda: RegistryClient()).close()
