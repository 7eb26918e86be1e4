"""What the planner remembers and waits for, on hosts of every recorded version."""

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
    name,
    reasons,
)
from msgspec.structs import replace

from ollamaops.observe.run import RunOptions

pytestmark = in_turn("host", count=2)


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        yield running


def test_a_renamed_model_keeps_all_that_is_known_of_it(host: LiveHost) -> None:
    built = [
        a_model("small", a_build(None, "tiny-f16.gguf", quantize="Q8_0")),
        a_model("bot", a_build(BASE, system="s")),
    ]
    assert_converged(host, host.apply(built))

    renamed = [
        a_model("tiny", built[0].source, moved_from=name("small")),
        a_model("helper", built[1].source, moved_from=name("bot")),
    ]
    report = host.apply(renamed)
    assert_converged(host, report)
    assert {type(result.action).__name__ for result in report.results} == {"CopyModel", "DeleteModel"}

    again = host.plan(renamed)
    assert (again.actions, again.notes) == ((), ())
    assert host.requests_sent == 2


def test_a_rename_proves_nothing_that_was_not_proven_before(host: LiveHost) -> None:
    built = [a_model("small", a_build(None, "tiny-f16.gguf", quantize="Q8_0"))]
    host.apply(built)
    host.forget()
    host.plan(built)  # adopted, with a note

    renamed = [a_model("tiny", built[0].source, moved_from=name("small"))]
    assert_converged(host, host.apply(renamed))
    assert [note.model for note in host.plan(renamed).notes] == [name("tiny")]


def test_an_undeclared_base_may_go_while_we_remember_what_we_made_of_it(host: LiveHost) -> None:
    models = [a_model("bot", a_build(BASE, system="be kind")), a_model("chat", a_copy(BASE))]
    assert_converged(host, host.apply(models))
    host.stranger.delete(BASE)
    before = host.stranger.tags()

    assert (host.plan(models).actions, host.requests_sent) == ((), 2)

    host.forget()
    assert reasons(host.plan(models)) == {f"pull/{BASE}": ["missing"]}
    report = host.apply(models)
    assert_converged(host, report)
    assert before.items() <= host.stranger.tags().items()


def test_asking_the_server_for_the_latest_makes_nothing_again_that_has_not_changed(host: LiveHost) -> None:
    host.options = RunOptions(costs=False, ask_registry=False)
    models = [a_model(BASE, update="latest"), a_model("bot", a_build(BASE, system="be kind"))]
    assert_converged(host, host.apply(models))

    assert reasons(host.plan(models)) == {f"pull/{BASE}": ["unknown"]}
    report = host.apply(models)
    assert [type(result.action).__name__ for result in report.results] == ["PullModel"]
    assert report.verified


def test_a_doubt_about_what_was_made_is_none_about_its_weights(host: LiveHost) -> None:
    models = [a_model("small", a_build(None, "tiny-f16.gguf", quantize="Q8_0", system="s"))]
    assert_converged(host, host.apply(models))
    [(model, record)] = host.ledger.load("gpu-1").items()
    host.ledger.remember("gpu-1", {model: replace(record, status="doubted")})

    plan = host.plan(models)
    assert (plan.actions, plan.notes) == ((), ())
    assert host.requests_sent == 3  # it was looked into


def test_words_taken_out_of_the_manifest_leave_what_the_server_finds_by_itself(host: LiveHost) -> None:
    bare = a_build(None, "tiny-chatml.gguf")
    host.apply([a_model("found", bare)])
    worded = replace(bare, template="{{ .System }} {{ .Prompt }}", parameters={"stop": ("over",)})
    for words in (worded, replace(bare, parameters={"stop": ("over",)}), worded, bare):
        assert_converged(host, host.apply([a_model("found", bare), a_model("bot", words)]))
    shown, found = host.stranger.show("bot"), host.stranger.show("found")
    assert (shown["template"], shown.get("parameters")) == (found["template"], found.get("parameters"))
    assert host.plan([a_model("found", bare), a_model("bot", bare)]).actions == ()


@pytest.mark.parametrize("host", ["0.12.11", "0.33.0-rc2"], indirect=True)
def test_a_renderer_comes_from_the_base_and_goes_with_the_manifest(host: LiveHost) -> None:
    def renderers() -> list[bool]:
        return [f"RENDERER {word}" in host.stranger.show("bot")["modelfile"] for word in ("own", "published")]

    bot, own = a_model("bot", a_build("base")), a_model("bot", a_build("base", renderer="own"))
    base = a_model("base", a_build(BASE, system="s"))
    assert_converged(host, host.apply([base, own]))
    assert renderers() == [True, False]
    assert_converged(host, host.apply([base, bot]))
    assert renderers() == [False, False]

    host.stranger.create("base", BASE, system="s", renderer="published")
    host.forget()
    undeclared = [bot]  # the base is somebody else's now
    assert reasons(host.plan(undeclared)) == {"create/bot:latest": ["renderer"]}
    assert_converged(host, host.apply(undeclared))
    assert renderers() == [False, True]
    assert host.plan(undeclared).actions == ()
