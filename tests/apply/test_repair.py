"""`apply --repair`: what is broken on a host is deleted with all that shares it, made again, and loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from breadth import in_turn
from damaged_store import blob_of, cut
from live_host import BASE, VERSIONS, LiveHost, a_build, a_copy, a_host, a_model, assert_converged, name
from msgspec.structs import replace

from ollamaops.engine import plan_tasks
from ollamaops.events import Failed
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import id_of
from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("host")
REPAIR = RunOptions(repair=True)
OTHER = "qwen3:0.6b"


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        yield running


@pytest.fixture
def newest() -> Iterator[LiveHost]:
    """With a registry that can be asked."""
    with a_host() as running, Sandbox(registry=True) as registry:
        running.registries = {"registry.ollama.ai": registry.url}
        yield running


def family() -> list[ModelSpec]:
    """A base, what is made from it, and an alias, which share their weights; beside them other weights and a file."""
    return [
        a_model(BASE),
        a_model("bot", a_build(BASE, system="be kind")),
        a_model("chat", a_copy("bot")),
        a_model(OTHER),
        a_model("legal", a_build(None, "tiny-a.gguf", system="be exact")),
    ]


def lose_the_tail(path: Path) -> None:
    cut(path, keep=-1)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def deletions(host: LiveHost, models: list[ModelSpec]) -> list[str]:
    return [id_of(action) for action in host.plan(models).actions if "/delete/" in id_of(action)]


@pytest.mark.parametrize("damage", [cut, lose_the_tail, zero])
@pytest.mark.parametrize(
    ("broken", "shared"), [(BASE, ["bot:latest", "chat:latest", BASE]), ("legal", ["legal:latest"])]
)
def test_what_is_broken_goes_with_all_that_shares_it_and_comes_back_working(
    host: LiveHost, broken: str, shared: list[str], damage: Callable[[Path], None]
) -> None:
    with Sandbox(registry=True) as registry:
        host.registries = {"registry.ollama.ai": registry.url}
        models = family()
        assert_converged(host, host.apply(models))
        before = host.stranger.tags()
        damage(blob_of(host.sandbox, broken))
        host.sandbox.restart()

        host.options = REPAIR
        assert deletions(host, models) == [f"gpu-1/delete/{each}" for each in shared]
        assert_converged(host, host.apply(models))
        assert host.stranger.tags() == before
        assert deletions(host, models) == []
        assert host.plan(models).actions == ()


def test_where_nothing_is_broken_nothing_is_done(newest: LiveHost) -> None:
    assert_converged(newest, newest.apply(family()))
    newest.options = REPAIR
    assert newest.plan(family()).actions == ()


def test_weights_that_are_gone_come_back_without_a_deletion(newest: LiveHost) -> None:
    assert_converged(newest, newest.apply(family()))
    blob_of(newest.sandbox, BASE).unlink()
    newest.options = REPAIR
    assert deletions(newest, family()) == []
    assert_converged(newest, newest.apply(family()))


@pytest.mark.parametrize("kind", ["system", "params", "template"])
def test_a_small_file_that_is_gone_comes_back_although_what_was_made_is_remembered(
    host: LiveHost, kind: str
) -> None:
    made = a_build(None, "tiny-a.gguf", system="be exact", template="{{ .Prompt }}", parameters={"top_k": 3})
    models = [a_model("legal", made), a_model(OTHER)]
    assert_converged(host, host.apply(models))
    before = host.stranger.tags()
    blob_of(host.sandbox, "legal", kind).unlink()
    host.options = REPAIR
    assert id_of(host.plan(models).actions[-1]) == "gpu-1/create/legal:latest"
    assert deletions(host, models) == []
    assert_converged(host, host.apply(models))
    assert blob_of(host.sandbox, "legal", kind).exists()
    assert host.stranger.tags() == before


def break_it(host: LiveHost) -> None:
    """The family's base, as a file that lacks its end."""
    lose_the_tail(blob_of(host.sandbox, BASE))
    host.sandbox.restart()
    host.options = REPAIR


def assert_left_alone(host: LiveHost, models: list[ModelSpec], *said: str) -> None:
    """Nothing is deleted, and it is said of every declared model why, and what to do."""
    before = host.stranger.tags()
    plan = host.plan(models)
    assert [action for action in plan.actions if "/delete/" in id_of(action)] == []
    notes = {note.model: f"{note.message}; {note.hint}" for note in plan.notes if note.lasting}
    assert {name(BASE), name("bot"), name("chat")} <= notes.keys()
    for words in said:
        assert all(words in note for note in notes.values())
    report = host.apply(models)
    assert not report.verified or report.results == ()
    assert host.stranger.tags() == before


def test_a_model_that_nobody_declares_is_not_deleted_for_it(newest: LiveHost) -> None:
    assert_converged(newest, newest.apply(family()))
    newest.stranger.copy("bot", "theirs")
    break_it(newest)
    assert_left_alone(
        newest, family(), "'theirs:latest' shares the broken file and is not declared", "declare it"
    )


def test_a_version_that_is_kept_is_not_deleted_for_it(newest: LiveHost) -> None:
    models = family()
    models[1] = replace(models[1], keep_previous=1)
    assert_converged(newest, newest.apply(models))
    models[1] = a_model("bot", a_build(BASE, system="be kinder"))
    models[1] = replace(models[1], keep_previous=1)
    assert_converged(newest, newest.apply(models))
    break_it(newest)
    assert_left_alone(newest, models, "kept version", "keep_previous")


@pytest.mark.parametrize(
    ("asks", "said"), [(True, "its registry"), (False, "no registry is asked whether it still has it")]
)
def test_what_may_not_be_had_again_is_not_deleted(newest: LiveHost, asks: bool, said: str) -> None:
    assert_converged(newest, newest.apply(family()))
    break_it(newest)
    newest.options = replace(REPAIR, ask_registry=asks)
    newest.registries = {"registry.ollama.ai": "http://127.0.0.1:9"}
    assert_left_alone(newest, family(), said)


def test_a_protected_model_refuses_the_repair(newest: LiveHost) -> None:
    assert_converged(newest, newest.apply(family()))
    break_it(newest)
    newest.policy = replace(newest.policy, protect=(NamePattern.parse("bot"),))
    plan = newest.plan(family())
    assert [refusal.rule for refusal in plan.refusals] == ["protect"]


def test_without_it_the_way_out_is_named(newest: LiveHost) -> None:
    models = family()
    assert_converged(newest, newest.apply(models[:1]))
    cut(blob_of(newest.sandbox, BASE))
    newest.sandbox.restart()
    outcomes = [result.outcome for result in newest.apply(models[:2]).results]
    hints = [outcome.hint or "" for outcome in outcomes if isinstance(outcome, Failed)]
    assert all("ollamaops apply --repair" in hint for hint in hints)


def test_what_may_not_be_replaced_is_not_deleted(newest: LiveHost) -> None:
    models = family()
    assert_converged(newest, newest.apply(models))
    break_it(newest)
    models[0] = a_model(BASE, update="never")
    assert_left_alone(newest, models, "update: never forbids pulling it")


def test_what_is_not_broken_is_done_beside_it(newest: LiveHost) -> None:
    models = family()
    assert_converged(newest, newest.apply(models[:3]))
    break_it(newest)
    assert_converged(newest, newest.apply(models))


def test_what_would_be_made_from_something_broken_waits(newest: LiveHost) -> None:
    models = family()
    assert_converged(newest, newest.apply(models))
    newest.stranger.copy("bot", "theirs")
    break_it(newest)
    models[1] = a_model("bot", a_build(BASE, system="be kinder"))
    plan = newest.plan([*models, a_model("later", a_copy("bot"))])
    assert plan.actions == ()


def test_a_server_that_can_load_nothing_is_ill_itself(newest: LiveHost) -> None:
    models = family()
    assert_converged(newest, newest.apply(models))
    for model in (BASE, OTHER, "legal"):
        lose_the_tail(blob_of(newest.sandbox, model))
    newest.sandbox.restart()
    newest.options = REPAIR
    with newest.opened() as run:
        [unreached] = plan_tasks(newest.tasks(models), run).unreached
    assert "none of its models can be loaded" in unreached.error
