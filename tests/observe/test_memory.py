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
    every_source,
    name,
    reasons,
)
from msgspec.structs import replace

from ollamaops.manifest.types import ModelSpec
from ollamaops.observe.run import RunOptions

pytestmark = in_turn("host")


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


# what a verdict is believed for


def asked_for(host: LiveHost, *models: ModelSpec) -> dict[str, list[str]]:
    """What a plan wants and why, twice: a second look must not have forgotten what the first one saw."""
    first, second = (reasons(host.plan(models)) for _ in range(2))
    assert first == second
    return first


def test_what_was_tolerated_is_found_when_it_is_tolerated_no_more(host: LiveHost) -> None:
    def a_bot(system: str, *ignore: str) -> ModelSpec:
        return a_model("bot", a_build(BASE, system=system, parameters={"seed": 1}), ignore=ignore)

    assert_converged(host, host.apply([a_bot("a", "system")]))
    assert asked_for(host, a_bot("b", "system")) == {}
    assert asked_for(host, a_bot("b")) == {"create/bot:latest": ["system"]}
    assert_converged(host, host.apply([a_bot("b")]))

    host.stranger.create("bot", BASE, system="theirs", parameters={"seed": 1})
    assert asked_for(host, a_bot("b", "system")) == {}
    assert asked_for(host, a_bot("b", "parameters")) == {"create/bot:latest": ["system"]}


def test_weights_that_were_tolerated_are_compared_when_they_are_tolerated_no_more(host: LiveHost) -> None:
    def a_small(*ignore: str) -> ModelSpec:
        return a_model("small", a_build(None, "tiny-f16.gguf", system="s"), ignore=ignore)

    assert_converged(host, host.apply([a_small()]))
    host.stranger.create_from_file("other", "tiny-a.gguf")
    host.stranger.create("small", "other", system="s")
    assert asked_for(host, a_small("weights")) == {}
    assert asked_for(host, a_small()) == {"create/small:latest": ["weights"]}


def test_a_template_that_was_tolerated_is_not_taken_for_the_servers_own(host: LiveHost) -> None:
    """It is not declared in the end, and then nothing but memory tells it from one that the server has detected."""
    bare = a_build(None, "tiny-chatml.gguf")
    worded = replace(bare, template="{{ .System }} {{ .Prompt }}")
    assert_converged(host, host.apply([a_model("bot", worded)]))
    assert asked_for(host, a_model("bot", bare, ignore=("template", "parameters"))) == {}
    assert "template" in asked_for(host, a_model("bot", bare))["create/bot:latest"]


@pytest.mark.parametrize("host", ["0.33.0-rc2"], indirect=True)
@pytest.mark.parametrize("older", ["0.5.7", "0.12.11"])
def test_what_an_older_server_does_not_know_is_not_believed_to_be_there(host: LiveHost, older: str) -> None:
    lost = {"renderer": "qwen3-coder", "parser": "qwen3-coder", "requires": "0.14.0"}
    if older == "0.12.11":
        lost = {"requires": "0.14.0"}
    plain = [a_model(BASE), a_model("bot", a_build(BASE, system="s"))]
    models = [*plain, *(a_model(field, a_build(BASE, **{field: value})) for field, value in lost.items())]
    assert_converged(host, host.apply(models))
    host.sandbox.restart(older)
    plan = host.plan(models)
    assert {note.model for note in plan.notes if note.lasting} == {name(field) for field in lost}
    assert host.plan(plain).actions == ()
    assert host.requests_sent == 2  # looked into once
    host.sandbox.restart("0.33.0-rc2")
    assert host.plan(models).actions == ()


@pytest.mark.parametrize(
    ("host", "other"), [("0.12.11", "0.33.0-rc2"), ("0.33.0-rc2", "0.12.11")], indirect=["host"]
)
def test_another_version_of_the_server_makes_nothing_again(host: LiveHost, other: str) -> None:
    models = [model for model in every_source(host.version) if model.name != name("tuned")]
    assert_converged(host, host.apply(models))
    host.sandbox.restart(other)
    first, second = host.plan(models), host.plan(models)
    assert (first.actions, first.notes, second.actions) == ((), (), ())
    assert host.requests_sent == 2
