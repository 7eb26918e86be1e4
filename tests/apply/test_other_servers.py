"""Servers that are announced or only compatible with Ollama: what is plain is understood, the rest named."""

from __future__ import annotations

from typing import Any

import pytest
from live_host import (
    BASE,
    VERSIONS,
    LiveHost,
    a_build,
    a_copy,
    a_host,
    a_model,
    an_absence,
    assert_converged,
    failures,
    ids,
    name,
)

from ollamaops.names import Digest
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import PullModel

MADE = [
    a_model("bot", a_build(BASE, system="s")),
    a_model("chat", a_copy(BASE)),
    a_model("legal", a_build(None, "tiny-a.gguf")),
]


def left(host: LiveHost, models: list[Any]) -> dict[str, str]:
    """What is said of models that no plan makes as declared."""
    notes = host.plan(models).notes
    return {str(note.model): note.message for note in notes if note.unresolved or note.lasting}


@pytest.mark.parametrize("variant", ["minimal", "minimal-501"])
@pytest.mark.parametrize("version", [VERSIONS[0], "0.6.8", VERSIONS[-1]])
class TestAServerThatMakesNothing:
    def test_pulls_deletes_and_loads_and_the_rest_is_refused_when_planning(
        self, version: str, variant: str
    ) -> None:
        with a_host(version, variant=variant) as host:
            host.stranger.pull("qwen3:0.6b")
            models = [a_model(BASE, resident=True), a_model("nomic-embed-text", update="latest"), *MADE]
            plan = host.plan(models, [an_absence("qwen3:*")])
            assert ids(plan.actions) == [
                f"pull/{BASE}",
                "pull/nomic-embed-text:latest",
                f"load/{BASE}",
                "delete/qwen3:0.6b",
            ]
            said = {str(note.model): note.message for note in plan.notes}
            assert "no /api/create" in said["bot:latest"]
            assert "no /api/copy" in said["chat:latest"]
            assert "no /api/create" in said["legal:latest"]
            report = host.apply(models, [an_absence("qwen3:*")])
            assert failures(report) == {}
            assert not report.verified
            assert host.stranger.tags().keys() == {BASE, "nomic-embed-text:latest"}
            assert_converged(host, host.apply(models[:2]))

    def test_a_content_that_could_not_be_brought_back_is_not_replaced(
        self, version: str, variant: str
    ) -> None:
        with a_host(version, variant=variant) as host:
            host.stranger.pull(BASE)
            [pinned] = [a_model(BASE, digest=Digest("0" * 64), update="locked")]
            host.options = RunOptions(costs=False, ask_registry=False)
            assert "no /api/copy" in left(host, [pinned])[BASE]


@pytest.mark.parametrize("version", VERSIONS)
def test_one_of_ollamas_own_servers_is_asked_without_writing_and_has_everything(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.proxy.seen.clear()
    plan = host.plan(MADE)
    assert {"create/bot:latest", "copy/chat:latest", "create/legal:latest"} <= set(ids(plan.actions))
    changing = [line for line in host.proxy.lines() if not line.startswith(("GET", "HEAD", "POST /api/show"))]
    assert changing == []


def test_tomorrows_server_is_understood_where_the_meaning_is_plain() -> None:
    with a_host(variant="tomorrow") as host:
        host.options = RunOptions()
        models = [a_model(BASE), a_model("chat", a_copy(BASE))]
        pull = next(action for action in host.plan(models).actions if isinstance(action, PullModel))
        assert (
            pull.cost.download_bytes is None
        )  # which of the listed manifests a host takes is its own choice
        report = host.apply([models[0]])
        assert_converged(host, report)
        assert host.plan([models[0]]).unchanged == (name(BASE),)


def test_what_tomorrows_server_says_in_an_unclear_way_is_named_and_left_alone() -> None:
    with a_host(variant="tomorrow") as host:
        models = [
            a_model(BASE),
            a_model("qwen3:0.6b", update="latest"),
            a_model("bot", a_build(BASE, system="s")),
        ]
        assert not host.apply(models).verified
        before = host.stranger.tags()
        said = left(host, models)
        assert "not all of which are in its registry" in said["qwen3:0.6b"]
        assert "only one of them can be shown" in said["bot:latest"]
        assert host.plan(models).actions == ()
        host.apply(models)
        assert host.stranger.tags() == before


def test_a_server_that_refuses_to_quantize_is_not_asked_again_and_again() -> None:
    with a_host(variant="tomorrow") as host:
        report = host.apply([a_model("small", a_build(None, "tiny-f16.gguf", quantize="q8_0"))])
        assert "no longer supported" in failures(report)["create/small:latest"]
        assert "leave out quantize" in failures(report)["create/small:latest"]
        assert host.proxy.lines().count("POST /api/create") == 1
