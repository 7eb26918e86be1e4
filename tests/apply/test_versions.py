"""The previous content of a model while a pinned pull replaces it: it comes back unless the pin is met."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_host import (
    BASE,
    LiveHost,
    name,
)
from recording_proxy import Request
from scripted_host import Asked, ScriptedHost, Wire
from session_actions import DIGEST, at, pull

from ollamaops.events import (
    Interrupted,
)
from ollamaops.names import ModelName
from ollamaops.plan.versions import previous_of


@pytest.mark.parametrize(
    "model", ["bot", "me/bot:v1", "hf.co/a/b:Q4_K_M", "x:" + "y" * 80, "x:local", "x:20b-cloud"]
)
def test_the_name_of_previous_content_is_valid_and_known_as_ours(model: str) -> None:
    aside = previous_of(name(model))
    assert ModelName.parse(aside.full) == aside
    assert aside.is_aside
    assert not name(model).is_aside
    assert aside.source_suffix == "none"
    assert (aside.host, aside.repository) == (name(model).host, name(model).repository)


@pytest.mark.parametrize("version", ["0.3.4", "0.12.11", "0.33.0-rc2"])
def test_a_pinned_pull_that_fails_leaves_what_was_there(host: LiveHost, tmp_path: Path) -> None:
    stranger = host.stranger
    stranger.pull("all-minilm")
    stranger.copy("all-minilm", "no-such-model")
    before = stranger.tags()
    with at(host.sandbox.url, tmp_path) as session:
        assert "the registry has no such model" in str(session.fail(pull("no-such-model", DIGEST)).hint)
    assert stranger.tags() == before


@pytest.mark.parametrize("version", ["0.3.4", "0.12.11", "0.33.0-rc2"])
def test_a_pinned_pull_that_is_stopped_leaves_what_was_there(host: LiveHost, tmp_path: Path) -> None:
    stranger = host.stranger
    stranger.pull("all-minilm")
    stranger.copy("all-minilm", BASE)
    before = stranger.tags()
    with at(host.sandbox.url, tmp_path) as session:

        def stop(request: Request) -> None:
            if request.path == "/api/pull":
                assert len(host.sandbox.store.names()) == 3  # the old content has a name of its own by now
                session.host.cancel.cancel()

        host.proxy.before = stop
        assert session.do(pull(BASE, DIGEST)) == Interrupted(started=True)
    assert stranger.tags() == before


def test_previous_content_of_an_earlier_run_is_older_than_what_is_there_and_wins(
    newest: LiveHost, tmp_path: Path
) -> None:
    """The earlier run was killed after its pull and before its verdict: what is there now was never proven."""
    stranger = newest.stranger
    stranger.pull("all-minilm")
    stranger.pull("smollm2:135m")
    stranger.copy("all-minilm", f"{BASE}-ollamaops-previous")
    stranger.copy("smollm2:135m", BASE)
    good = stranger.tags()["all-minilm:latest"]
    with at(newest.sandbox.url, tmp_path) as session:
        assert "is not the pinned content" in session.fail(pull(BASE, DIGEST)).error
    assert stranger.tags()[BASE] == good
    assert f"{BASE}-ollamaops-previous" not in stranger.tags()


def test_what_cannot_be_tidied_up_does_not_hide_why_the_pull_failed(tmp_path: Path) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.path == "/api/tags" and not any("pull" in path for path in server.paths()):
            wire.json({"models": [{"name": "bot:latest", "digest": DIGEST, "size": 1}]})
        elif asked.path == "/api/version":
            wire.json({"version": "0.33.0"})
        elif asked.path == "/api/copy":
            wire.answer(200)
        elif asked.path == "/api/pull":
            wire.json({"error": "pull model manifest: file does not exist"}, 500)
        else:
            wire.json({"error": "gone wrong"}, 400)

    with ScriptedHost(script) as server, at(server.url, tmp_path) as session:
        assert "file does not exist" in session.fail(pull("bot", DIGEST)).error
