"""Models made from cloud models, which run on ollama.com and have no layers on the host; and stubs of such models
under names that were never meant to leave the host.

Servers since 0.18.0 make another stub, which cannot be shown where the cloud is switched off; servers before make an
empty model of it (0.12.0 to 0.17.7).
"""

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
    name,
)

from ollamaops.manifest.types import ModelSpec, Policy, Pull, Source
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


# stubs under local names

HAVE_STUBS = [
    version for version in VERSIONS if features_of(ServerVersion.parse(version)).renderer_and_parser
]


def become_a_stub(host: LiveHost, model: str) -> str:
    """Somebody puts a stub in the place of a model; its digest."""
    host.stranger.create(model, "gpt:120b", remote_host="https://ollama.com:443")
    return host.stranger.tags()[model]


@pytest.mark.parametrize("version", HAVE_STUBS)
@pytest.mark.parametrize("remembers", [True, False])
def test_a_stub_in_the_place_of_a_pulled_model_is_replaced_and_never_copied(
    host: LiveHost, remembers: bool
) -> None:
    models = [a_model(BASE), a_model("chat", a_copy(BASE)), a_model("bot", a_build(BASE, system="hi"))]
    assert_converged(host, host.apply(models))
    before = host.stranger.tags()
    stub = become_a_stub(host, BASE)
    if not remembers:
        host.forget()
    report = host.apply(models)
    assert_converged(host, report)
    assert stub not in host.stranger.tags().values()
    assert host.stranger.tags() == before
    assert host.plan(models).actions == ()


@pytest.mark.parametrize("version", [HAVE_STUBS[0], HAVE_STUBS[-1]])
@pytest.mark.parametrize(
    "made", [a_model("chat", a_copy(BASE)), a_model("bot", a_build(BASE, system="hi"))], ids=["copy", "from"]
)
@pytest.mark.parametrize("is_made", [True, False])
def test_nothing_is_made_from_a_stub_that_nobody_declares_and_its_place_is_left_alone(
    host: LiveHost, made: ModelSpec, is_made: bool
) -> None:
    host.policy = Policy(cloud=True)
    if is_made:
        assert_converged(host, host.apply([made]))
    else:
        host.stranger.pull(BASE)
    become_a_stub(host, BASE)
    before = host.stranger.tags()
    report = host.apply([made])
    assert [note.model for note in report.notes if note.unresolved or note.lasting] == [made.name]
    assert "which is a cloud stub for gpt:120b at https://ollama.com:443" in report.notes[0].message
    assert not report.verified
    assert host.stranger.tags() == before


@pytest.mark.parametrize("version", HAVE_STUBS[-1:])
@pytest.mark.parametrize("rest", [{}, {"ignore": ("weights",)}], ids=["", "ignored"])
@pytest.mark.parametrize(
    "source",
    [a_copy(BASE), a_build(BASE, system="hi"), Pull(ref=name("qwen3:0.6b"))],
    ids=["copy", "from", "pull"],
)
def test_a_model_that_became_a_stub_is_made_again_whatever_is_ignored(
    host: LiveHost, source: Source, rest: dict[str, Any]
) -> None:
    models = [a_model(BASE), a_model("bot", source, **rest)]
    assert_converged(host, host.apply(models))
    before = host.stranger.tags()
    become_a_stub(host, "bot:latest")
    assert_converged(host, host.apply(models))
    assert host.stranger.tags() == before


@pytest.mark.parametrize("version", HAVE_STUBS[-1:])
def test_a_stub_is_not_what_a_renamed_model_was_before(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    become_a_stub(host, BASE)
    models = [a_model("qwen3:0.6b", moved_from=name(BASE))]
    report = host.apply(models, [an_absence("nothing")])
    tags = host.stranger.tags()
    assert tags["qwen3:0.6b"] != tags[BASE]
    assert report.remaining == ()


@pytest.mark.parametrize("version", HAVE_STUBS[-1:])
def test_a_pull_that_brings_a_stub_under_a_local_name_fails_and_nothing_is_made_from_it(
    host: LiveHost,
) -> None:
    assert_converged(host, host.apply([a_model(BASE), a_model("chat", a_copy(BASE))]))
    before = host.stranger.tags()["chat:latest"]
    host.stranger.delete(BASE)
    host.proxy.edit = lambda request, body: (
        body.replace(f'"name":"{BASE}"'.encode(), f'"remote_host":"https://x","name":"{BASE}"'.encode())
        if request.path == "/api/tags"
        else body
    )
    report = host.apply([a_model(BASE), a_model("chat", a_copy(BASE))])
    assert not report.verified
    assert host.stranger.tags()["chat:latest"] == before
    assert "cloud stub" in str(report.results[0].outcome)
