"""What is planned for `resident`, as values: what is loaded, what shares a runner, what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ollamaops.files.location import FileInfo
from ollamaops.manifest.types import Build, Copy, ModelSpec, Policy, Pull, Source, WeightsFile
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import HostPlan, LoadModel, id_of
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import guard
from ollamaops.plan.lookups import PlanOptions
from ollamaops.plan.observed import (
    FOREVER_S,
    HostLoaded,
    Loaded,
    ObservedHost,
    ObservedModel,
    RegistryAnswer,
    read_stay,
)
from ollamaops.plan.planner import plan_host
from ollamaops.plan.residency import in_use, is_managed, residents_of, share_runner, to_compare, with_sharers

GB = 10**9
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def names(*texts: str) -> frozenset[ModelName]:
    return frozenset(map(a_name, texts))


def hex_of(word: str) -> str:
    return Digest.of(word.encode()).hex


def a_spec(name: str, resident: bool | float | None = True, source: Source | None = None) -> ModelSpec:
    return ModelSpec(name=a_name(name), source=source or Pull(ref=a_name(name)), resident=resident)


def wanted(*specs: ModelSpec, vram: int | None = None, **policy: Any) -> DesiredHost:
    return build_desired("h", specs, policy=Policy(**policy), vram_bytes=vram)


def a_model(name: str, word: str = "", size: int = GB, **rest: Any) -> ObservedModel:
    return ObservedModel(name=a_name(name), digest=hex_of(word or name), size_bytes=size, **rest)


def loaded(name: str, word: str = "", **rest: Any) -> Loaded:
    return Loaded(name=a_name(name), digest=hex_of(word or name), **rest)


def a_host(*models: ObservedModel, running: tuple[Loaded, ...] | None = ()) -> ObservedHost:
    features = features_of(ServerVersion.parse("0.33.0"))
    return ObservedHost(
        host="h", features=features, models=Listing((model.name, model) for model in models), loaded=running
    )


def plan(desired: DesiredHost, observed: ObservedHost, *settled: str) -> HostPlan:
    return plan_host(desired, observed, PlanOptions(residency_done=names(*settled)))


def notes(plan: HostPlan) -> list[str]:
    return [note.message for note in plan.notes]


def unresolved(plan: HostPlan) -> int:
    return sum(note.unresolved for note in plan.notes)


# --- what is planned ------------------------------------------------------------------------------------------------


def test_nothing_is_planned_while_nobody_knows_what_is_in_memory() -> None:
    assert plan(wanted(a_spec("a")), a_host(a_model("a"), running=None)).actions == ()


def test_a_load_waits_for_everything_about_its_model_and_says_for_how_long() -> None:
    specs = [a_spec("a", 90.0), a_spec("b", True), a_spec("c", None)]
    found = plan(wanted(*specs), a_host(a_model("b")))
    first, second = (action for action in found.actions if isinstance(action, LoadModel))
    assert (id_of(first), first.needs, first.keep_alive_s) == ("h/load/a:latest", ("h/pull/a:latest",), 90.0)
    assert (id_of(second), second.needs, second.keep_alive_s) == ("h/load/b:latest", (), -1.0)
    assert [fact.digest for fact in second.expects] == [hex_of("b")]


def test_what_is_not_there_and_will_not_be_is_not_loaded() -> None:
    spec = replace(a_spec("a"), update="never")
    found = plan(wanted(spec), a_host())
    assert found.actions == ()
    assert notes(found) == ["update: never forbids pulling it"]


def test_what_is_not_there_is_not_unloaded() -> None:
    spec = replace(a_spec("a", False), update="never")
    assert plan(wanted(spec), a_host(running=(loaded("a"),))).actions == ()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (a_model("a:cloud", is_cloud=True), "runs on ollama.com, so it cannot be kept in this host's memory"),
        (
            a_model("a:1b-cloud", is_cloud=True),
            "runs on ollama.com, so it cannot be kept in this host's memory",
        ),
        (a_model("a:local"), "cannot be loaded: servers from 0.18.0 on would load 'a:latest' instead"),
    ],
)
def test_what_cannot_be_kept_in_memory_is_said_and_left_alone(model: ObservedModel, said: str) -> None:
    spec = replace(a_spec("x"), name=model.name, source=Pull(ref=model.name))
    found = plan(wanted(spec), a_host(model))
    assert (found.actions, notes(found), unresolved(found)) == ((), [said], 0)


def test_what_the_policy_ignores_is_neither_loaded_nor_asked_for() -> None:
    desired = wanted(a_spec("a"), ignore=(NamePattern.parse("a"),))
    assert not is_managed(desired)
    assert residents_of(desired) == ()
    assert plan(desired, a_host(a_model("a"))).actions == ()


@pytest.mark.parametrize(("resident", "asks"), [(True, True), (5.0, True), (False, True), (None, False)])
def test_memory_is_asked_for_where_a_model_says_something_of_it(
    resident: bool | float | None, asks: bool
) -> None:
    assert is_managed(wanted(a_spec("a", resident))) == asks


def test_a_pull_that_may_change_nothing_is_no_reason_to_load_again() -> None:
    desired = wanted(replace(a_spec("a"), update="latest"))
    observed = a_host(a_model("a"), running=(loaded("a"),))
    found = plan_host(desired, observed, PlanOptions(ask_registry=False))
    assert [id_of(action) for action in found.actions] == ["h/pull/a:latest"]


# --- once is enough -------------------------------------------------------------------------------------------------


def test_what_was_loaded_and_is_gone_is_not_loaded_again() -> None:
    desired = wanted(a_spec("a"), a_spec("b", None))
    observed = a_host(a_model("a"), a_model("b"), running=(loaded("b", size_bytes=2 * GB),))
    found = plan(desired, observed, "a")
    assert found.actions == ()
    assert notes(found) == [
        "was loaded, and is not in memory any more: evicted; in memory now: b:latest (2.0 GB)"
    ]
    assert unresolved(found) == 1


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ((), "was loaded, and is not in memory any more: evicted"),
        ((loaded("a", "old"),), "was loaded, but: an older content is in memory"),
        ((loaded("a", stays_s=60.0),), "was loaded, but: in memory for a while only"),
    ],
)
def test_what_loading_did_not_settle_is_said(running: tuple[Loaded, ...], said: str) -> None:
    found = plan(wanted(a_spec("a")), a_host(a_model("a"), running=running), "a")
    assert (found.actions, notes(found)) == ((), [said])


def test_what_was_unloaded_and_is_back_is_not_unloaded_again() -> None:
    found = plan(wanted(a_spec("a", False)), a_host(a_model("a"), running=(loaded("a"),)), "a")
    assert (found.actions, notes(found)) == ((), ["was unloaded, and is still or again in memory"])
    assert unresolved(found) == 1


# --- sharing a runner -----------------------------------------------------------------------------------------------

WEIGHTS = (Digest.of(b"w"),)


def inside(name: str, parameters: Mapping[str, int] | None = None, **rest: Any) -> Contents:
    return Contents(digest=hex_of(name), **{"blobs": WEIGHTS, **rest}, parameters=parameters or {})


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        (inside("b"), True),
        (inside("b", {"temperature": 1}), True),
        (inside("b", system="s", template="t"), True),
        (inside("b", {"num_ctx": 8}), False),
        (inside("b", adapters=(Digest.of(b"lora"),)), False),
        (inside("b", blobs=(Digest.of(b"v"),)), False),
        (inside("b", blobs=()), False),
    ],
)
def test_a_runner_is_shared_by_what_has_its_weights_and_is_loaded_the_same_way(
    other: Contents, shares: bool
) -> None:
    assert share_runner(inside("a"), other) == share_runner(other, inside("a")) == shares


def test_models_whose_weights_nobody_sees_share_nothing() -> None:
    assert not share_runner(inside("a", blobs=()), inside("b", blobs=()))


def test_only_residents_that_are_not_listed_are_compared_with_what_is() -> None:
    models = [a_model("a"), a_model("b"), a_model("stub", is_cloud=True), a_model("old")]
    listed = (loaded("a"), loaded("old", "older"), loaded("gone"))
    observed = a_host(*models, running=listed)
    residents = [a_name(text) for text in ("a", "b", "stub", "missing")]
    assert to_compare(residents, observed) == names("a", "b")
    assert to_compare(residents[:1], observed) == frozenset()
    assert to_compare(residents, replace(observed, loaded=())) == frozenset()
    assert to_compare(residents, replace(observed, loaded=None)) == frozenset()


def test_a_resident_that_shares_a_runner_is_in_memory() -> None:
    desired = wanted(a_spec("a", None), a_spec("b"))
    contents = {a_name("a"): inside("a"), a_name("b"): inside("b")}
    (one,) = with_sharers(residents_of(desired), [loaded("a")], contents)
    assert one.also == names("b")
    assert plan(desired, a_host(a_model("a"), a_model("b"), running=(one,))).actions == ()


def test_what_was_looked_into_after_it_changed_says_nothing_of_the_runner() -> None:
    contents = {a_name("a"): inside("a"), a_name("b"): inside("b")}
    stale = loaded("a", "before")
    assert with_sharers([a_name("b")], [stale], contents) == (stale,)


# --- the rule vram --------------------------------------------------------------------------------------------------


def said_of_vram(desired: DesiredHost, observed: ObservedHost) -> list[str]:
    refusals = guard(plan_host(desired, observed), desired, observed).refusals
    return [refusal.message for refusal in refusals if refusal.rule == "vram"]


def test_residents_that_fit_are_not_refused() -> None:
    observed = a_host(a_model("a", size=3 * GB), a_model("b", size=5 * GB))
    assert said_of_vram(wanted(a_spec("a"), a_spec("b"), vram=8 * GB), observed) == []
    assert said_of_vram(wanted(a_spec("a"), a_spec("b")), observed) == []


def test_the_refusal_says_what_each_takes_the_loaded_as_it_is_and_the_others_as_an_estimate() -> None:
    observed = a_host(
        a_model("a", size=3 * GB), a_model("b", size=5 * GB), running=(loaded("a", size_bytes=4 * GB),)
    )
    desired = wanted(a_spec("a"), a_spec("b", 60.0), a_spec("c"), a_spec("d", False), vram=8 * GB)
    (said,) = said_of_vram(desired, observed)
    assert said == (
        "what is declared resident takes 9.0 GB, and the host's label vram is 8.0 GB: "
        "b:latest about 5.0 GB, a:latest 4.0 GB, c:latest ?"
    )


def test_a_host_on_which_nothing_has_to_be_loaded_is_not_refused() -> None:
    observed = a_host(a_model("a", size=3 * GB), running=(loaded("a", size_bytes=4 * GB),))
    assert said_of_vram(wanted(a_spec("a"), vram=GB), observed) == []


def test_models_with_the_same_weights_count_once() -> None:
    specs = [
        a_spec("base", None),
        a_spec("bot", True, Build(base=a_name("base"), system="s")),
        a_spec("alias", True, Copy(source=a_name("bot"))),
        a_spec("mirror", True, Pull(ref=a_name("base"))),
    ]
    sizes = [a_model("base", size=5 * GB), a_model("bot", size=5 * GB), a_model("alias", "bot", 6 * GB)]
    assert said_of_vram(wanted(*specs, vram=6 * GB), a_host(*sizes)) == []
    assert said_of_vram(wanted(*specs, vram=5 * GB), a_host(*sizes)) == [
        "what is declared resident takes 6.0 GB, and the host's label vram is 5.0 GB: alias:latest about 6.0 GB"
    ]


def test_what_is_still_to_come_counts_as_far_as_it_is_known() -> None:
    path = Path("/w.gguf")
    file = WeightsFile(path, path.name)
    specs = [
        a_spec("pulled"),
        a_spec("unknown"),
        a_spec("made", True, Build(files=(file,))),
        a_spec("small", True, Build(files=(file,), quantize="q4_0")),
        a_spec("derived", True, Build(base=a_name("made"), system="s")),
        a_spec("smaller", True, Build(base=a_name("made"), quantize="q4_0")),
        a_spec("of-nothing", True, Copy(source=a_name("nothing"))),
    ]
    desired = build_desired(
        "h", specs, files={path: FileInfo(digest=Digest.of(b"f"), size_bytes=2 * GB)}, vram_bytes=GB
    )
    upstream = {
        a_name("pulled"): RegistryAnswer(layers=((Digest.of(b"p"), 4 * GB),)),
        a_name("unknown"): RegistryAnswer(error="?"),
    }
    (said,) = said_of_vram(desired, replace(a_host(), upstream=upstream))
    assert said == (
        "what is declared resident takes 6.0 GB, and the host's label vram is 1.0 GB: pulled:latest about 4.0 GB, "
        "made:latest about 2.0 GB, unknown:latest ?, small:latest ?, smaller:latest ?, of-nothing:latest ?"
    )


def test_models_made_from_each_other_come_to_an_end() -> None:
    specs = [a_spec("a", True, Copy(source=a_name("b"))), a_spec("b", True, Copy(source=a_name("a")))]
    desired = wanted(*specs, vram=1)
    observed = a_host(a_model("a"), a_model("b", "a"))
    assert len(said_of_vram(desired, observed)) == 1


# --- what ps says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_at", "stays_s"),
    [
        ("2026-11-01T12:05:00Z", 300.0),
        ("2026-11-01T13:00:01.5+01:00", 1.5),
        ("2026-11-01T12:00:01.123456789Z", 1.123456),
        ("2026-11-01T11:00:00Z", 0.0),
        ("0001-01-01T00:00:00Z", 0.0),
        ("2318-07-01T12:00:00.123456789Z", FOREVER_S),
        ("", FOREVER_S),
        ("2026-11-01T12:05:00", FOREVER_S),
        ("soon", FOREVER_S),
    ],
)
def test_a_moment_of_ps_is_read_as_a_time_to_stay(expires_at: str, stays_s: float) -> None:
    assert read_stay(expires_at, NOW) == stays_s


@given(st.text(max_size=20))
def test_no_text_of_a_server_breaks_the_reading(text: str) -> None:
    assert read_stay(text, NOW) >= 0


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (loaded("a"), "current"),
        (loaded("a", "before"), "stale"),
        (loaded("gone", "before"), "deleted"),
        (loaded("a:latest-aside", "a"), "current"),
    ],
)
def test_what_is_in_memory_is_current_stale_or_deleted(one: Loaded, state: str) -> None:
    host = HostLoaded(host="h", loaded=(one,), digests={a_name("a"): hex_of("a")})
    assert host.state_of(one) == state


def test_what_is_declared_and_not_in_memory_under_any_name_is_absent() -> None:
    declared = {a_name(text): True for text in ("a", "alias", "sharer", "stale", "none", "missing")}
    host = HostLoaded(
        host="h",
        loaded=(loaded("a", also=names("sharer")), loaded("stale", "before")),
        digests={a_name(text): hex_of(word) for text, word in (("a", "a"), ("alias", "a"), ("stale", "now"))},
        declared={**declared, a_name("off"): False},
    )
    assert host.absent == tuple(map(a_name, ("none", "missing")))


# --- models that share weights --------------------------------------------------------------------------------------


def shared(*others: str) -> tuple[Loaded, ...]:
    """`one` is in memory, and these share its runner."""
    return (loaded("one", also=names(*others)),)


def test_nothing_is_unloaded_that_a_resident_shares() -> None:
    specs = [a_spec("one"), a_spec("two", False)]
    models = [a_model("one"), a_model("two")]
    for listed in (shared("two"), (loaded("two", also=names("one")),)):
        found = plan(wanted(*specs), a_host(*models, running=listed))
        assert found.actions == ()
        assert notes(found) == [
            "its weights are in memory: 'one:latest', which is declared resident, shares them"
        ]
        assert all(not note.lasting for note in found.notes)


def test_what_is_in_memory_under_a_name_of_which_nothing_is_declared_is_drift() -> None:
    found = plan(wanted(a_spec("two", False)), a_host(a_model("one"), a_model("two"), running=shared("two")))
    assert found.actions == ()
    (note,) = found.notes
    assert note.message == "it shares its weights, so it would be unloaded too"
    assert [why.observed for why in note.lasting] == ["in memory as 'one:latest'"]


def test_a_copy_is_known_by_its_digest() -> None:
    models = [a_model("one"), a_model("two", "one")]
    found = plan(wanted(a_spec("two", False)), a_host(*models, running=(loaded("one"),)))
    assert [note.lasting[0].observed for note in found.notes] == ["in memory as 'one:latest'"]


def test_of_sharers_that_are_all_to_be_unloaded_the_listed_one_is() -> None:
    specs = [a_spec("one", False), a_spec("two", False)]
    found = plan(wanted(*specs), a_host(a_model("one"), a_model("two"), running=shared("two")))
    assert [id_of(action) for action in found.actions] == ["h/unload/one:latest"]
    assert found.notes == ()


def test_a_model_may_be_in_use_under_the_name_of_another() -> None:
    host = a_host(a_model("one"), a_model("two"), a_model("copy", "one"), running=shared("two"))
    asked = sorted(names("one", "two", "copy", "other"))
    assert in_use(asked, (), host) == names("one", "two", "copy")
    assert in_use(asked, names("copy"), host) == frozenset()  # it is there for that one's sake
    assert in_use(asked, names("other"), host) == names("one", "two", "copy")
