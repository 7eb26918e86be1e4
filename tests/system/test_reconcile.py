"""The cycle against hosts of every recorded version: converge, notice, mend, and touch nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    REWRITING_VERSIONS,
    VERSIONS,
    LiveHost,
    OtherClient,
    a_build,
    a_copy,
    a_model,
    an_absence,
    assert_converged,
    every_source,
    name,
    others,
    reasons,
    small_manifest,
)
from msgspec.structs import replace
from session_actions import at

from ollamaops.manifest.types import Build, Policy
from ollamaops.names import NamePattern
from ollamaops.observe.host import observe_all
from ollamaops.observe.run import RunOptions, desired_of
from ollamaops.plan.importing import import_host

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)


# converging


@every_version
def test_every_source_converges_and_a_second_plan_is_empty(host: LiveHost, version: str) -> None:
    stranger, absent = host.stranger, [an_absence("old-bot:*")]
    stranger.pull("all-minilm")
    for copy in ("old-bot:v1", "old-bot:v2", "old-bots:v1", "old-name", "theirs"):
        stranger.copy("all-minilm", copy)
    theirs = others(stranger.tags(), "old-bot:v1", "old-bot:v2", "old-name:latest")

    models = [*every_source(version), a_model("not-in-any-registry", moved_from=name("old-name"))]
    report = host.apply(models, absent)

    assert_converged(host, report)
    tags = stranger.tags()
    assert theirs.items() <= tags.items()
    assert not {"old-bot:v1", "old-bot:v2", "old-name:latest"} & tags.keys()
    assert tags["chat:latest"] == tags["bot:v1"]
    assert tags["mirror:latest"] == tags["qwen3:0.6b"]
    assert (
        tags["not-in-any-registry:latest"] == theirs["theirs:latest"]
    )  # the old content, under its new name

    again = host.plan(models, absent)
    assert (again.actions, again.notes) == ((), ())
    assert len(again.unchanged) == len(models)
    assert host.requests_sent == 2


@every_version
def test_losing_the_memory_changes_nothing_on_the_host(host: LiveHost, version: str) -> None:
    assert_converged(host, host.apply(every_source(version)))
    before = host.stranger.tags()

    host.forget()
    plan = host.plan(every_source(version))
    assert plan.actions == ()
    converted = {name("small")} | (
        {name("legal"), name("with-template")} if version in REWRITING_VERSIONS else set()
    )
    assert {note.model for note in plan.notes} == converted
    assert all("weights not verified" in note.message and not note.unresolved for note in plan.notes)

    assert host.plan(every_source(version)).actions == ()
    assert host.requests_sent == 2  # what was found in sync is remembered
    assert host.stranger.tags() == before


@in_turn("version")
@every_version
def test_models_that_were_found_are_adopted_and_never_pruned_as_ours(host: LiveHost) -> None:
    stranger = host.stranger
    stranger.pull(BASE)
    stranger.create("bot", BASE, system="be kind")
    stranger.pull("all-minilm")
    before = stranger.tags()
    bot = a_model("bot", a_build(BASE, system="be kind"))

    report = host.apply([a_model(BASE), bot])
    assert (report.results, report.verified) == ((), True)
    assert host.ledger.load("gpu-1")[name("bot").key].how == "adopted"

    host.policy = Policy(prune="owned")
    report = host.apply([a_model(BASE)])  # the bot is not declared any more
    assert report.results == ()
    assert stranger.tags() == before


@in_turn("version")
@every_version
def test_verifying_weights_builds_again_what_only_its_header_vouched_for(
    host: LiveHost, version: str
) -> None:
    models = [a_model("small", a_build(None, "tiny-f16.gguf", quantize="Q8_0"))]
    assert_converged(host, host.apply(models))
    before = host.stranger.tags()
    host.forget()
    host.options = RunOptions(costs=False, verify_weights=True)

    assert reasons(host.plan(models)) == {"create/small:latest": ["weights"]}
    assert_converged(host, host.apply(models))
    assert host.plan(models).actions == ()
    assert host.stranger.tags() == before


@in_turn("version")
@pytest.mark.parametrize("version", ["0.3.4", "0.12.11", "0.33.0-rc2"])
def test_a_steady_host_costs_two_requests_whatever_the_number_of_models(host: LiveHost) -> None:
    models = [a_model(BASE), a_model("legal", a_build(None, "tiny-a.gguf"))]
    models += [a_model(f"bot-{number}", a_build(BASE, system=f"number {number}")) for number in range(19)]
    models += [a_model(f"alias-{number}", a_copy(f"bot-{number}")) for number in range(19)]
    assert_converged(host, host.apply(models))
    host.proxy.seen.clear()
    assert host.plan(models).actions == ()
    lines = [line.partition("sha256:")[0] for line in host.proxy.lines()]
    assert lines == ["GET /api/version", "GET /api/tags", *["HEAD /api/blobs/"] * 2]  # both weights are there


# noticing and mending


@dataclass(frozen=True)
class Tampering:
    """What a stranger does, what a plan must say of it, and which models change when it is mended."""

    what: str
    do: Callable[[OtherClient], None]
    because: dict[str, list[str]]
    mended: tuple[str, ...]
    needs_memory: bool = False


def _recreate_bot(stranger: OtherClient, **changes: object) -> None:
    fields: dict[str, object] = {
        "system": "be kind",
        "template": "{{ .System }} {{ .Prompt }}",
        "license": "MIT",
    }
    stranger.create("bot", BASE, **fields | changes)


def _replace_weights(stranger: OtherClient, file: str) -> None:
    stranger.create_from_file("legal", file)
    stranger.create("legal", "legal", system="be exact", parameters={"num_ctx": 4096})


BOT, CHAT, LEGAL = "bot:latest", "chat:latest", "legal:latest"
TAMPERINGS = [
    Tampering(
        "a pulled model is deleted", lambda them: them.delete(BASE), {f"pull/{BASE}": ["missing"]}, (BASE,)
    ),
    Tampering(
        "a derived model is deleted", lambda them: them.delete("bot"), {f"create/{BOT}": ["missing"]}, (BOT,)
    ),
    Tampering(
        "a model with local weights is deleted",
        lambda them: them.delete("legal"),
        {f"create/{LEGAL}": ["missing"]},
        (LEGAL,),
    ),
    Tampering(
        "an alias is deleted", lambda them: them.delete("chat"), {f"copy/{CHAT}": ["missing"]}, (CHAT,)
    ),
    Tampering(
        "parameters are changed",
        lambda them: _recreate_bot(them, parameters={"temperature": 0.9}),
        {f"create/{BOT}": ["parameters.stop", "parameters.temperature"], f"copy/{CHAT}": ["base"]},
        (BOT, CHAT),
    ),
    Tampering(
        "a parameter is added",
        lambda them: them.create("bot", "bot", parameters={"top_k": 3}),
        {f"create/{BOT}": ["parameters.top_k"], f"copy/{CHAT}": ["base"]},
        (BOT, CHAT),
    ),
    Tampering(
        "the system prompt is changed",
        lambda them: them.create("bot", "bot", system="be rude"),
        {f"create/{BOT}": ["system"], f"copy/{CHAT}": ["base"]},
        (BOT, CHAT),
    ),
    Tampering(
        "the template is changed",
        lambda them: them.create("bot", "bot", template="{{ .Prompt }}!"),
        {f"create/{BOT}": ["template"], f"copy/{CHAT}": ["base"]},
        (BOT, CHAT),
    ),
    Tampering(
        "a license is added",
        lambda them: them.create("bot", "bot", license="GPL"),
        {f"create/{BOT}": ["license"], f"copy/{CHAT}": ["base"]},
        (BOT, CHAT),
    ),
    Tampering(
        "weights are replaced by others of the same shape",
        lambda them: _replace_weights(them, "tiny-b.gguf"),
        {f"create/{LEGAL}": ["weights"]},
        (LEGAL,),
        needs_memory=True,
    ),
    Tampering(
        "weights are replaced by others",
        lambda them: _replace_weights(them, "tiny-f16.gguf"),
        {f"create/{LEGAL}": ["weights"]},
        (LEGAL,),
    ),
    Tampering(
        "an alias is moved", lambda them: them.copy(BASE, "chat"), {f"copy/{CHAT}": ["digest"]}, (CHAT,)
    ),
    Tampering(
        "a derived model is overwritten by another",
        lambda them: them.copy("legal", "bot"),
        {
            f"create/{BOT}": ["template", "system", "parameters.num_ctx", "weights"],
            f"copy/{CHAT}": ["base"],
        },
        (BOT, CHAT),
    ),
]


def _tampering_cases() -> Iterator[object]:
    """Servers that rewrite weights leave only our memory to know which ones they are."""
    for version in VERSIONS:
        for tampering in TAMPERINGS:
            for remembers in (True, False):
                if remembers or not (tampering.needs_memory and version in REWRITING_VERSIONS):
                    how = "with" if remembers else "without"
                    case = f"{version}: {tampering.what}, {how} memory"
                    yield pytest.param(version, tampering, remembers, id=case)


@in_turn("version")
@pytest.mark.parametrize("version, tampering, remembers", list(_tampering_cases()))
def test_tampering_is_found_named_and_mended_without_touching_anything_else(
    host: LiveHost, version: str, tampering: Tampering, remembers: bool
) -> None:
    stranger = host.stranger
    assert_converged(host, host.apply(small_manifest()))
    stranger.copy(BASE, "theirs")
    before = stranger.tags()
    tampering.do(stranger)
    tampered = stranger.tags()
    if not remembers:
        host.forget()

    found = reasons(host.plan(small_manifest()))
    assert found.keys() == tampering.because.keys()
    assert all(set(found[action]) >= set(because) for action, because in tampering.because.items())
    assert stranger.tags() == tampered  # a plan never writes

    assert_converged(host, host.apply(small_manifest()))
    after = stranger.tags()
    assert after == before
    untouched = others(tampered, *tampering.mended)
    assert others(after, *tampering.mended) == untouched
    assert host.plan(small_manifest()).actions == ()


@in_turn("version")
@every_version
@pytest.mark.parametrize("prune", ["owned", "patterns"])
def test_only_what_prune_covers_is_deleted(host: LiveHost, prune: str) -> None:
    stranger = host.stranger
    stranger.pull("all-minilm")
    assert_converged(host, host.apply([*small_manifest(), a_model("scratch/old", a_copy(BASE))]))
    stranger.copy("all-minilm", "scratch/theirs")
    before = stranger.tags()
    host.policy = Policy(prune="owned" if prune == "owned" else (NamePattern.parse("scratch/*"),))

    plan = host.plan(small_manifest())
    gone = ["scratch/old:latest"] + (["scratch/theirs:latest"] if prune == "patterns" else [])
    assert reasons(plan) == {f"delete/{model}": ["undeclared"] for model in gone}
    assert_converged(host, host.apply(small_manifest()))
    assert stranger.tags() == others(before, *gone)
    assert host.plan(small_manifest()).actions == ()


@in_turn("version")
@every_version
def test_an_undeclared_model_is_left_alone_without_prune(host: LiveHost) -> None:
    assert_converged(host, host.apply(small_manifest()))
    host.stranger.copy(BASE, "extra")
    plan = host.plan(small_manifest())
    assert (plan.actions, plan.unmanaged) == ((), (name("extra"),))


@in_turn("version")
@every_version
def test_a_changed_declaration_is_applied_and_named(host: LiveHost) -> None:
    assert_converged(host, host.apply(small_manifest()))
    bot = small_manifest()[1]
    assert isinstance(bot.source, Build)
    changed = replace(bot, source=replace(bot.source, system="be kinder", parameters={"temperature": 0.5}))
    models = [changed if model.name == bot.name else model for model in small_manifest()]
    assert reasons(host.plan(models)) == {
        "create/bot:latest": ["system", "parameters.stop"],
        "copy/chat:latest": ["base"],
    }
    assert_converged(host, host.apply(models))
    assert host.stranger.show("bot")["system"] == "be kinder"
    assert host.plan(models).actions == ()


@in_turn("version")
@every_version
def test_applying_a_hundred_times_leaves_one_license(host: LiveHost) -> None:
    for system in ("a", "b", "c"):
        assert_converged(host, host.apply([a_model("bot", a_build(BASE, system=system, licenses=("MIT",)))]))
    assert host.stranger.show("bot")["license"].count("MIT") == 1


# importing


@every_version
def test_a_manifest_made_from_a_host_plans_nothing_there(
    host: LiveHost, version: str, tmp_path: Path
) -> None:
    assert_converged(host, host.apply(every_source(version)))
    host.stranger.copy(BASE, "Theirs/Copy:V1")
    with at(host.sandbox.url, tmp_path) as session:
        seen = observe_all(session.host)
    assert seen.shown.keys() == seen.models.keys()
    imported = import_host(seen)
    assert imported.left_out == {}
    assert {spec.name for spec in imported.specs} == seen.models.keys()

    host.forget()
    plan = host.plan(imported.specs)
    assert (plan.actions, plan.unmanaged, plan.refusals) == ((), (), ())
    assert host.plan(imported.specs).actions == ()
    assert host.requests_sent == 2


def test_desired_values_of_a_case_are_those_of_its_models(newest: LiveHost) -> None:
    [case] = newest.tasks(small_manifest())
    assert {model.name for model in desired_of(case).models} == {model.name for model in small_manifest()}
