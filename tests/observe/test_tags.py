"""Entries of `/api/tags` that cannot be understood, and names that are listed several times."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from live_host import BASE, VERSIONS, LiveHost, a_build, a_copy, a_model, an_absence, assert_converged, name
from recording_proxy import Request

from ollamaops.manifest.types import ModelSpec, Policy
from ollamaops.names import NamePattern
from ollamaops.plan.actions import HostPlan

Entry = dict[str, Any]


def edit_tags(host: LiveHost, change: Callable[[list[Any]], None]) -> None:
    """From now on the host's list of models is what `change` makes of it."""

    def edit(request: Request, body: bytes) -> bytes:
        if request.path != "/api/tags":
            return body
        tree = json.loads(body)
        change(tree["models"])
        return json.dumps(tree).encode()

    host.proxy.edit = edit


def spoil(host: LiveHost, model: str, **fields: object) -> None:
    """These fields of the entry of `model` become something else."""

    def change(entries: list[Any]) -> None:
        for entry in entries:
            if entry["name"] == model:
                entry.update(fields)

    edit_tags(host, change)


def unresolved(plan: HostPlan) -> dict[str, str]:
    return {str(note.model): note.message for note in plan.notes if note.unresolved}


SPOILED = [
    {"digest": "none"},
    {"digest": ""},
    {"digest": None},
    {"digest": 5},
    {"digest": ["a" * 64]},
    {"size": "big"},
    {"size": {}},
    {"details": []},
    {"remote_host": 1},
    {"modified_at": 3},
    {"details": {"families": "llama"}},
]


@pytest.mark.parametrize(
    ("version", "fields"),
    [*((version, SPOILED[0]) for version in VERSIONS), *((VERSIONS[-1], fields) for fields in SPOILED[1:])],
    ids=str,
)
def test_an_entry_that_cannot_be_read_makes_its_own_model_unknown_and_no_other(
    host: LiveHost, fields: Entry
) -> None:
    models = [a_model(BASE), a_model("bot", a_build(BASE, system="a")), a_model("chat", a_copy("bot"))]
    assert_converged(host, host.apply(models))
    spoil(host, "bot:latest", **fields)
    before = host.stranger.tags()
    changed = [a_model(BASE), a_model("bot", a_build(BASE, system="b")), a_model("chat", a_copy("bot"))]
    plan = host.plan(changed)
    found = unresolved(plan)
    assert (plan.actions, plan.unchanged) == ((), (name(BASE),))
    assert set(found) == {"bot:latest", "chat:latest"}
    assert "its entry in the host's list of models cannot be read" in found["bot:latest"]
    report = host.apply(changed)
    assert not report.verified
    assert host.stranger.tags().keys() == before.keys()
    assert host.stranger.show("bot")["system"] == "a"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "a" * 100_000, "digest": "0" * 64, "size": 1}, "aaaa…' is not a model name"),
        ({"name": "m:" + "a" * 100_000, "digest": "0" * 64, "size": 1}, "aaaa…' is not a model name"),
        ({"name": "", "digest": "0" * 64}, "name is missing"),
        ({"name": 7, "digest": "0" * 64}, "name is a number"),
        ({}, "name is missing"),
        (None, "models[0] is missing, not an object"),
        ("bot:latest", "models[0] is a string, not an object"),
        ([], "models[0] is a list, not an object"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("version", [VERSIONS[-1]])
def test_an_entry_without_a_name_is_said_and_the_other_models_are_judged(
    host: LiveHost, entry: object, said: str
) -> None:
    host.stranger.pull(BASE)
    edit_tags(host, lambda entries: entries.insert(0, entry))
    host.policy = Policy(prune=(NamePattern.parse("*"),))
    plan = host.plan([a_model(BASE)])
    assert (plan.actions, plan.unchanged, unresolved(plan)) == ((), (name(BASE),), {})
    (note,) = plan.notes
    assert said in note.message
    assert len(note.message) < 500
    assert_converged(host, host.apply([a_model(BASE), a_model("bot", a_build(BASE, system="b"))]))


@pytest.mark.parametrize("version", [VERSIONS[-1]])
def test_what_cannot_be_read_is_never_deleted(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.stranger.copy(BASE, "old")
    spoil(host, "old:latest", digest="none")
    host.policy = Policy(prune=(NamePattern.parse("*"),))
    plan = host.plan([a_model(BASE)])
    assert (plan.actions, unresolved(plan)) == ((), {})
    plan = host.plan([a_model(BASE)], [an_absence("old*")])
    assert plan.actions == ()
    assert "declared absent; left alone" in unresolved(plan)["old:latest"]


def in_rows(host: LiveHost, model: str, *digests: str) -> None:
    """The model is listed once for each digest, as a manifest list with a child for each runner would be."""

    def change(entries: list[Any]) -> None:
        (own,) = [entry for entry in entries if entry["name"] == model]
        entries.remove(own)
        entries += [own | {"digest": digest, "runner": f"r{i}"} for i, digest in enumerate(digests)]

    edit_tags(host, change)


A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.mark.parametrize("version", [VERSIONS[-1]])
class TestSeveralRowsOfOneName:
    def test_a_pulled_model_is_there(self, host: LiveHost) -> None:
        assert_converged(host, host.apply([a_model(BASE)]))
        in_rows(host, BASE, A, B)
        plan = host.plan([a_model(BASE)])
        assert (plan.actions, plan.unchanged, plan.notes) == ((), (name(BASE),), ())

    def test_rows_of_one_digest_are_one_model(self, host: LiveHost) -> None:
        models = [a_model(BASE), a_model("bot", a_build(BASE, system="a"))]
        assert_converged(host, host.apply(models))
        digest = host.stranger.tags()["bot:latest"]
        in_rows(host, "bot:latest", digest, digest)
        plan = host.plan(models)
        assert (plan.actions, plan.notes) == ((), ())

    @pytest.mark.parametrize("rows", [(A, B), (B, A)])
    def test_a_pin_holds_only_if_every_row_meets_it(self, host: LiveHost, rows: tuple[str, str]) -> None:
        host.stranger.pull(BASE)
        in_rows(host, BASE, *rows)
        assert host.plan([a_model(BASE, accepts=(A, B), update="locked", digest=None)]).actions == ()

    def test_a_built_model_is_named_and_left_alone(self, host: LiveHost) -> None:
        models = [a_model(BASE), a_model("bot", a_build(BASE, system="a"))]
        assert_converged(host, host.apply(models))
        digest = host.stranger.tags()["bot:latest"]
        in_rows(host, "bot:latest", digest, B)
        plan = host.plan(models)
        assert plan.actions == ()
        assert "listed with 2 contents" in unresolved(plan)["bot:latest"]

    def test_a_change_of_any_row_is_seen(self, host: LiveHost) -> None:
        models: list[ModelSpec] = [a_model(BASE), a_model("chat", a_copy(BASE))]
        assert_converged(host, host.apply(models))
        in_rows(host, BASE, host.stranger.tags()[BASE], C)
        assert [str(action.model) for action in host.plan(models).actions] == ["chat:latest"]
