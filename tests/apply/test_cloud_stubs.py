"""Models made from cloud models, which run on ollama.com and have no layers on the host.

Servers since 0.18.0 make another stub, which cannot be shown where the cloud is switched off; servers before make an
empty model of it (0.12.0 to 0.17.7).
"""

from __future__ import annotations

import pytest
from live_host import BASE, VERSIONS, LiveHost, a_build, a_host, a_model, assert_converged, name

from ollamaops.manifest.types import Policy
from ollamaops.ollama.features import ServerVersion, features_of

CLOUD = "gpt:120b-cloud"
BOT = [a_model("bot", a_build(CLOUD, system="Be kind."))]


def remember_stub(host: LiveHost) -> None:
    host.stranger.create(CLOUD, "gpt:120b", remote_host="https://ollama.com:443")


def routes_to_the_cloud(version: str) -> bool:
    return features_of(ServerVersion.parse(version)).suffix_routing


@pytest.mark.parametrize("version", [version for version in VERSIONS if routes_to_the_cloud(version)])
def test_a_stub_made_from_a_cloud_model_is_done_although_nobody_can_look_into_it(host: LiveHost) -> None:
    host.policy = Policy(cloud=True)
    remember_stub(host)
    assert_converged(host, host.apply(BOT))
    made = host.stranger.tags()["bot:latest"]
    assert host.plan(BOT).actions == ()
    assert_converged(host, host.apply([a_model("bot", a_build(CLOUD, system="Be brief."))]))
    assert host.stranger.tags()["bot:latest"] != made


def test_a_server_that_would_make_an_empty_model_is_not_asked_to() -> None:
    with a_host("0.12.11") as host:
        host.policy = Policy(cloud=True)
        remember_stub(host)
        host.stranger.pull(BASE)
        host.stranger.copy(BASE, "bot")
        before = host.stranger.tags()
        (note,) = [note for note in host.plan(BOT).notes if note.model == name("bot")]
        assert f"it would make an empty model from '{CLOUD}', which runs on ollama.com" in note.message
        host.apply(BOT)
        assert host.stranger.tags() == before
