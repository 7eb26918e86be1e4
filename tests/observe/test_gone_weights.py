"""Weights that somebody removed from a server's store: every look sees it, and apply brings them back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    VERSIONS,
    LiveHost,
    a_build,
    a_copy,
    a_host,
    a_model,
    assert_converged,
    failures,
    name,
    reasons,
)
from msgspec.structs import replace

from ollamaops.events import Failed
from ollamaops.manifest.types import ModelSpec, Pull, Update
from ollamaops.names import Digest
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import id_of
from ollamaops.sandbox.server import Sandbox

MANY = 12

pytestmark = in_turn("host")


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        yield running


@pytest.fixture
def newest() -> Iterator[LiveHost]:
    with a_host() as running:
        yield running


def weights_of(host: LiveHost, model: str) -> str:
    """The file name of the model layer."""
    first = next(
        line for line in host.stranger.show(model)["modelfile"].splitlines() if line.startswith("FROM ")
    )
    return str(first.rpartition("/")[2])


def remove(host: LiveHost, blob: str) -> None:
    (host.sandbox.store.blobs / blob).unlink()


def every_source() -> list[ModelSpec]:
    return [
        a_model("pulled", Pull(ref=name("qwen3:0.6b"))),
        a_model(BASE),
        a_model("bot", a_build(BASE, system="be kind")),
        a_model("legal", a_build(None, "tiny-a.gguf", system="be exact")),
        a_model("chat", a_copy("legal")),
    ]


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("model", ["pulled", BASE, "legal"])
def test_weights_that_are_gone_are_seen_and_brought_back(host: LiveHost, model: str, remembers: bool) -> None:
    models = every_source()
    assert_converged(host, host.apply(models))
    before, blob = host.stranger.tags(), weights_of(host, model)
    remove(host, blob)
    if not remembers:
        host.forget()

    plan = host.plan(models)
    assert plan.actions
    assert name(model) not in plan.unchanged
    report = host.apply(models)
    assert_converged(host, report)
    assert (host.sandbox.store.blobs / blob).exists()
    assert before == host.stranger.tags()
    assert host.plan(models).actions == ()


@pytest.mark.parametrize("update", ["missing", "latest", "locked"])
def test_no_way_of_updating_takes_a_model_without_weights_for_current(
    newest: LiveHost, update: Update
) -> None:
    models = [a_model(BASE, update=update)]
    with Sandbox(registry=True) as registry:
        newest.registries = {"registry.ollama.ai": registry.url}
        assert_converged(newest, newest.apply(models))
        remove(newest, weights_of(newest, BASE))
        assert reasons(newest.plan(models)) == {f"pull/{BASE}": ["damaged"]}
        assert_converged(newest, newest.apply(models))


def test_a_model_that_is_never_updated_is_told_to_be_broken(newest: LiveHost) -> None:
    newest.stranger.pull(BASE)
    models = [a_model(BASE, update="never"), a_model("bot", a_build(BASE, system="s"), update="never")]
    newest.apply([models[0], replace(models[1], update="missing")])
    remove(newest, weights_of(newest, BASE))
    plan = newest.plan(models)
    assert plan.actions == ()
    assert [(note.model, note.lasting[0].kind) for note in plan.notes] == [
        (name(BASE), "damaged"),
        (name("bot"), "damaged"),
    ]


def test_tolerated_weights_have_to_be_there_all_the_same(newest: LiveHost) -> None:
    models = [a_model(BASE, ignore=("weights",))]
    newest.apply(models)
    remove(newest, weights_of(newest, BASE))
    assert reasons(newest.plan(models)) == {f"pull/{BASE}": ["damaged"]}


def test_a_base_that_nobody_declares_is_pulled_again_for_what_is_made_from_it(host: LiveHost) -> None:
    models = [a_model("bot", a_build(BASE, system="s")), a_model("alias", a_copy(BASE))]
    assert_converged(host, host.apply(models))
    before = host.stranger.tags()
    remove(host, weights_of(host, BASE))
    assert reasons(host.plan(models)) == {f"pull/{BASE}": ["damaged"]}
    report = host.apply(models)
    assert_converged(host, report)
    assert host.stranger.tags() == before


def test_an_adapter_that_is_gone_is_uploaded_again(newest: LiveHost) -> None:
    models = [a_model("tuned", a_build(BASE, system="s"))]
    source = models[0].source
    assert not isinstance(source, Pull)
    with_adapter = [a_model("tuned", replace(source, adapters=a_build(None, "tiny-lora.gguf").files))]
    assert_converged(newest, newest.apply(with_adapter))
    adapter = next(
        line for line in newest.stranger.show("tuned")["modelfile"].splitlines() if line.startswith("ADAPTER")
    ).rpartition("/")[2]
    remove(newest, adapter)
    assert reasons(newest.plan(with_adapter)) == {"create/tuned:latest": ["damaged"]}
    assert_converged(newest, newest.apply(with_adapter))
    assert (newest.sandbox.store.blobs / adapter).exists()


def test_a_previous_version_without_weights_is_not_taken_for_the_declared_one(newest: LiveHost) -> None:
    models = [a_model("bot", a_build(None, "tiny-a.gguf", system="s"), moved_from=name("old"))]
    newest.apply([a_model("old", models[0].source)])
    remove(newest, weights_of(newest, "old"))
    assert reasons(newest.plan(models))["create/bot:latest"] == ["damaged"]
    assert failures(newest.apply(models)) == {}
    assert list(newest.stranger.tags()) == ["bot:latest"]


def test_a_steady_host_costs_two_requests_and_one_for_each_weights_layer(newest: LiveHost) -> None:
    models = [
        a_model(BASE),
        *(a_model(f"bot-{number}", a_build(BASE, system=f"s{number}")) for number in range(MANY - 1)),
    ]
    assert_converged(newest, newest.apply(models))
    assert (newest.plan(models).actions, newest.requests_sent, newest.layers_asked) == ((), 2, 1)

    newest.forget()
    assert newest.plan(models).actions == ()
    assert (newest.plan(models).actions, newest.requests_sent, newest.layers_asked) == ((), 2, 1)

    newest.apply([*models, a_model("legal", a_build(None, "tiny-a.gguf"))])
    assert newest.plan([*models, a_model("legal", a_build(None, "tiny-a.gguf"))]).actions == ()
    assert (newest.requests_sent, newest.layers_asked) == (2, 2)


def test_pulled_models_are_looked_into_once(newest: LiveHost) -> None:
    newest.options = RunOptions(costs=False, ask_registry=False)
    newest.stranger.pull(BASE)
    newest.plan([a_model(BASE)])
    assert newest.requests_sent == 3
    newest.plan([a_model(BASE)])
    assert (newest.requests_sent, newest.layers_asked) == (2, 1)


def test_layers_are_known_by_digest(newest: LiveHost) -> None:
    newest.stranger.pull(BASE)
    newest.plan([a_model(BASE)])
    [(digest, layers)] = newest.ledger.load_layers("gpu-1").items()
    assert digest == newest.stranger.tags()[BASE]
    assert [Digest.parse(layer).hex for layer in layers] == [weights_of(newest, BASE).partition("-")[2]]


def test_a_create_from_a_broken_file_says_what_to_do(newest: LiveHost) -> None:
    newest.apply([a_model("legal", a_build(None, "tiny-a.gguf"))])
    for blob in newest.sandbox.store.blobs.iterdir():
        if blob.read_bytes()[:4] == b"GGUF":
            blob.write_bytes(blob.read_bytes()[:40])
    report = newest.apply([a_model("other", a_build(None, "tiny-a.gguf", system="s"))])
    [result] = [each for each in report.results if id_of(each.action).endswith("create/other:latest")]
    assert isinstance(result.outcome, Failed)
    assert "damaged" in result.outcome.error
    assert "delete" in str(result.outcome.hint)
