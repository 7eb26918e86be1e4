"""What is replaced takes no space: no way of changing a model leaves a blob behind that belongs to nothing.

A copy over an existing name removes nothing on any server (0.3 to 0.33), and no request can remove such a blob
afterwards. On all six versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    name,
)
from msgspec.structs import replace
from session_actions import at, copy

from ollamaops import exits
from ollamaops.events import Succeeded
from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.observe.run import RunOptions
from ollamaops.plan.versions import previous_of
from ollamaops.state.records import NO_FINGERPRINT

pytestmark = in_turn("host")

OTHER = "qwen2.5:0.5b"
FAILS = {"prompt": "Reply with the word pong.", "matches": "^pang$"}


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param, options=RunOptions(costs=False, ask_registry=False)) as running:
        running.stranger.pull(BASE)
        yield running
        assert running.unused_blobs == set()


def a_bot(color: str, **rest: object) -> list[ModelSpec]:
    """A bot that says a color, and is expected to, and an alias of it."""
    bot = a_model("bot", a_build(BASE, system=f"Say {color}."), **rest)
    return [a_model(BASE), bot, a_model("chat", a_copy("bot"))]


def test_a_switch_and_an_alias_leave_nothing(host: LiveHost) -> None:
    for color in ("red", "blue"):
        expect = ({"prompt": "Which color?", "contains": color},)
        assert_converged(host, host.apply(a_bot(color, expect=expect)))
        assert host.unused_blobs == set()
    assert host.stranger.tags().keys() == {BASE, "bot:latest", "chat:latest"}


def test_versions_that_are_not_kept_any_more_leave_nothing(host: LiveHost) -> None:
    for kept, color in ((1, "red"), (1, "blue"), (1, "green"), (2, "white"), (2, "black"), (2, "red")):
        assert_converged(host, host.apply(a_bot(color, keep_previous=kept)))
        assert host.unused_blobs == set()


def outdated(host: LiveHost, *models: str) -> None:
    """These have content of their own, of which the registry knows nothing."""
    for number, model in enumerate(models):
        if model in host.stranger.tags():
            host.stranger.delete(model)
        host.stranger.pull(OTHER)
        host.stranger.create(model, OTHER, system=f"Old {number}.")
    host.stranger.delete(OTHER)


def test_a_pull_under_another_name_leaves_nothing(host: LiveHost) -> None:
    mirror = ModelSpec(name=name("mirror"), source=Pull(ref=name(BASE)), update="latest")
    outdated(host, BASE, "mirror")
    assert_converged(host, host.apply([mirror]))
    assert host.stranger.tags()["mirror:latest"] == host.stranger.tags()[BASE]


def test_a_pull_that_is_undone_leaves_nothing(host: LiveHost) -> None:
    outdated(host, BASE)
    before = host.stranger.tags()
    report = host.run([a_model(BASE, update="latest", expect=(FAILS,))])
    assert report.exit_code == exits.UNEXPECTED
    assert host.stranger.tags() == before


def test_a_pull_whose_previous_versions_are_kept_leaves_nothing(host: LiveHost) -> None:
    outdated(host, BASE)
    model = a_model(BASE, update="latest", keep_previous=1)
    assert_converged(host, host.apply([model]))
    before = host.stranger.tags()
    host.stranger.create(BASE, BASE, system="Changed.")
    assert_converged(host, host.apply([model]))
    assert host.stranger.tags().keys() == before.keys()
    assert host.stranger.tags() != before


def test_the_alias_of_a_push_leaves_nothing_and_keeps_what_is_somebody_elses(
    host: LiveHost, tmp_path: Path
) -> None:
    stranger = host.stranger
    stranger.create("bot", BASE, system="new")
    stranger.create("me/bot", BASE, system="old")
    stranger.copy("me/bot", "me/bot:latest-ollamaops-previous-1")
    stranger.create("me/bot", BASE, system="old as well")
    with at(host.sandbox.url, tmp_path) as session:
        assert isinstance(session.do(replace(copy("bot", "me/bot"), fingerprint=NO_FINGERPRINT)), Succeeded)
    assert stranger.tags()["me/bot:latest"] == stranger.tags()["bot:latest"]
    assert stranger.tags().keys() == {
        BASE,
        "bot:latest",
        "me/bot:latest",
        "me/bot:latest-ollamaops-previous-1",
    }


def test_a_copy_after_one_that_was_cut_off_leaves_nothing(host: LiveHost, tmp_path: Path) -> None:
    """What waits aside is older than what was copied there last, and is not lost for it."""
    stranger = host.stranger
    for model in ("bot", "chat", previous_of(name("chat")).display):
        stranger.create(model, BASE, system=f"I am {model}.")
    old = stranger.tags()[previous_of(name("chat")).display]
    with at(host.sandbox.url, tmp_path) as session:
        assert isinstance(session.do(replace(copy("bot", "chat"), keep=1)), Succeeded)
    tags = stranger.tags()
    assert tags.keys() == {BASE, "bot:latest", "chat:latest", "chat:latest-ollamaops-previous-1"}
    assert (tags["chat:latest"], tags["chat:latest-ollamaops-previous-1"]) == (tags["bot:latest"], old)
