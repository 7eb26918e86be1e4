"""Nothing is made from what somebody put in the place of a base, unless something says that it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    ids,
    name,
    others,
    reasons,
)

from ollamaops.manifest.types import ModelSpec
from ollamaops.names import Digest
from ollamaops.observe.run import RunOptions

pytestmark = in_turn("host")
OTHER = "qwen3:0.6b"


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        running.options = RunOptions(costs=False, ask_registry=False)
        yield running


def declared(*, digest: Digest | None = None, **rest: Any) -> list[ModelSpec]:
    return [
        a_model(BASE, digest=digest, **rest),
        a_model("bot", a_build(BASE, system="s")),
        a_model("chat", a_copy(BASE)),
    ]


def replaced(host: LiveHost) -> dict[str, str]:
    """The host after somebody has put another model in the place of the base."""
    assert_converged(host, host.apply(declared()))
    host.stranger.pull(OTHER)
    host.stranger.copy(BASE, "what-it-was")
    host.stranger.copy(OTHER, BASE)
    return host.stranger.tags()


def test_nothing_is_made_from_what_replaced_a_declared_base(host: LiveHost) -> None:
    before = replaced(host)
    for models in (
        declared(),
        [*declared()[:1], a_model("bot", a_build(BASE, system="changed")), declared()[2]],
    ):
        plan = host.plan(models)
        assert plan.actions == ()
        told = {note.model: (bool(note.lasting), note.message) for note in plan.notes}
        assert told.keys() == {name(BASE), name("bot"), name("chat")}
        assert all("somebody replaced it" in message for _, message in told.values())
        assert [is_drift for is_drift, _ in told.values()] == [False, True, True]
        report = host.apply(models)
        assert not report.is_as_declared
        assert host.stranger.tags() == before

    host.stranger.copy("what-it-was", BASE)
    assert (host.plan(declared()).actions, host.plan(declared()).notes) == ((), ())


def test_the_ways_out_of_a_replaced_base_lead_out(host: LiveHost) -> None:
    before = replaced(host)
    kept = declared(digest=Digest(before[BASE]))
    assert {*reasons(host.plan(kept))} == {"create/bot:latest", "copy/chat:latest"}
    assert_converged(host, host.apply(kept))
    assert others(before, "bot:latest", "chat:latest").items() <= host.stranger.tags().items()

    host.stranger.delete(BASE)
    assert_converged(host, host.apply(declared()))
    assert host.stranger.tags()[BASE] == before["what-it-was:latest"]
    assert ids(host.plan(declared()).actions) == []


def test_any_content_of_a_base_can_be_tolerated(host: LiveHost) -> None:
    replaced(host)
    assert {*reasons(host.plan(declared(ignore=("digest",))))} == {"create/bot:latest", "copy/chat:latest"}
