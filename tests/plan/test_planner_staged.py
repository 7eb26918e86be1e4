"""How a change of a model in use is planned: made aside, verified and switched to, or verified in place."""

from __future__ import annotations

import pytest
from live_host import BASE, a_build, a_copy, a_model, ids, name
from msgspec.structs import replace

from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.names import ModelName
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import CopyModel, CreateModel, Fact, HostPlan, PullModel, PushModel, VerifyModel
from ollamaops.plan.desired import build_desired
from ollamaops.plan.expectations import Expectation, read_expectations
from ollamaops.plan.lookups import PlanOptions
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.plan.planner import plan_host
from ollamaops.plan.verdict import verified_for
from ollamaops.plan.versions import (
    is_staged,
    needs_verifying,
    next_of,
    previous_of,
)
from ollamaops.state.records import ModelRecord, Status

BOT = name("bot")
EXPECT = ({"prompt": "hi", "contains": "hi"},)
OLD = features_of(ServerVersion.parse("0.32.15"))


def observed(**digests: str) -> ObservedHost:
    """A host with these models; `_` in a keyword stands for `:`, asides among them."""
    models = {name(text.replace("__", ":")): digest for text, digest in digests.items()}
    return ObservedHost(
        host="gpu-1",
        features=features_of(ServerVersion.parse("0.33.0")),
        models=Listing(
            (model, ObservedModel(name=model, digest=digest))
            for model, digest in models.items()
            if not model.is_aside
        ),
        set_aside={model: digest for model, digest in models.items() if model.is_aside},
    )


def planned(*models: ModelSpec, there: ObservedHost | None = None, asks: bool = True) -> HostPlan:
    desired = build_desired("gpu-1", models, pushes=[model.name for model in models])
    return plan_host(desired, there or observed(), PlanOptions(ask_registry=asks))


def test_what_is_built_is_made_aside_verified_and_switched_to_in_this_order() -> None:
    model = a_model("bot", a_build("base", system="x"), expect=EXPECT, keep_previous=2, retries=7)
    create, verify, switch = planned(model, there=observed(base="b")).actions
    assert isinstance(create, CreateModel)
    assert (create.model, create.aside) == (BOT, next_of(BOT))
    assert verify == VerifyModel(
        host="gpu-1",
        model=BOT,
        at=next_of(BOT),
        expectations=(Expectation(prompt="hi", contains=("hi",)),),
        needs=("gpu-1/create/bot:latest",),
        keep=2,
        retries=7,
    )
    assert switch == CopyModel(
        host="gpu-1",
        model=BOT,
        source=next_of(BOT),
        needs=("gpu-1/verify/bot:latest",),
        expects=(Fact(BOT, None),),
        keep=2,
        fingerprint=create.fingerprint,
        retries=7,
    )


@pytest.mark.parametrize(
    ("rest", "verbs"),
    [
        ({}, ["create"]),
        ({"staged": True}, ["create", "verify", "copy"]),
        ({"keep_previous": 1}, ["create", "copy"]),
        ({"expect": EXPECT}, ["create", "verify", "copy"]),
    ],
)
def test_only_what_is_to_be_verified_is_asked(rest: dict[str, bool], verbs: list[str]) -> None:
    plan = planned(a_model("bot", a_build("base"), **rest), there=observed(base="b"))
    assert [action_id.partition("/")[0] for action_id in ids(plan.actions)] == verbs


@pytest.mark.parametrize(
    "spec",
    [
        a_model("x:cloud", staged=True),
        a_model("bot", a_build("x:20b-cloud"), staged=True),
        a_model("bot", a_copy("x:cloud"), staged=True),
    ],
)
def test_what_runs_elsewhere_is_loaded_nowhere_but_can_be_asked(spec: ModelSpec) -> None:
    assert is_staged(spec)
    assert not needs_verifying(spec)
    assert needs_verifying(replace(spec, expect=EXPECT))


def test_weights_of_our_own_can_be_staged() -> None:
    assert needs_verifying(a_model("bot", a_build(None), staged=True))


def test_a_pull_is_verified_in_place_and_what_is_made_from_it_waits() -> None:
    child = a_model("child", a_build("base", system="x"))
    mirror = a_model("mirror", Pull(ref=name("base")))
    base = a_model("base", expect=EXPECT, keep_previous=1)
    for models in ([base, mirror, child], [mirror, base, child]):
        plan = planned(*models)
        assert sorted(ids(plan.actions)) == [
            "copy/mirror:latest",
            "create/child:latest",
            "pull/base:latest",
            "verify/base:latest",
        ]
        by_id = dict(zip(ids(plan.actions), plan.actions, strict=True))
        pull = by_id["pull/base:latest"]
        assert isinstance(pull, PullModel)
        assert (pull.verify, pull.keep) == (True, 1)
        assert by_id["verify/base:latest"].needs == ("gpu-1/pull/base:latest",)
        assert by_id["copy/mirror:latest"].needs == ("gpu-1/verify/base:latest",)
        assert by_id["create/child:latest"].needs == ("gpu-1/verify/base:latest",)


def test_asking_a_server_to_pull_replaces_nothing_for_sure_even_if_it_is_verified() -> None:
    child = a_model("child", a_build(BASE))
    there = observed(**{BASE.replace(":", "__"): "b", "child": "c"})
    plan = planned(a_model(BASE, update="latest", expect=EXPECT), child, there=there, asks=False)
    assert ids(plan.actions)[:2] == [f"pull/{BASE}", f"verify/{BASE}"]
    assert not any(why.kind == "base" for action in plan.actions for why in action.because)


def test_a_mirror_is_verified_under_its_reference_before_it_is_copied() -> None:
    plan = planned(a_model("mirror", Pull(ref=name("base")), expect=EXPECT, keep_previous=1))
    pull, verify, copy = plan.actions
    assert isinstance(pull, PullModel)
    assert (pull.verify, pull.keep) == (False, 0)
    assert isinstance(verify, VerifyModel)
    assert (verify.at, verify.needs) == (name("base"), ("gpu-1/pull/base:latest",))
    assert isinstance(copy, CopyModel)
    assert (copy.keep, copy.needs) == (1, ("gpu-1/verify/mirror:latest", "gpu-1/pull/base:latest"))


def test_a_rename_changes_nothing_that_would_have_to_be_verified() -> None:
    model = a_model("bot", a_copy("base"), expect=EXPECT, moved_from=name("old"))
    assert "verify/bot:latest" not in ids(planned(model, there=observed(old="b")).actions)


def test_the_alias_of_a_push_keeps_no_versions() -> None:
    model = a_model("bot", a_copy("base"), keep_previous=2, push=name("localhost:5000/me/bot"))
    copies = [
        action
        for action in planned(model, there=observed(base="b")).actions
        if isinstance(action, CopyModel | PushModel)
    ]
    assert [getattr(action, "keep", None) for action in copies] == [2, 0, None]


PULLED = a_model("bot", expect=EXPECT)
FINGERPRINT = build_desired("gpu-1", [PULLED]).models[0].fingerprint


def with_memory(there: ObservedHost, status: Status, digest: str, verified: str = "") -> ObservedHost:
    held = verified_for(read_expectations(PULLED.expect), verified, there.features)
    memory = ModelRecord(
        how="pulled", status=status, fingerprint=FINGERPRINT, digest=digest, verified_for=held
    )
    return replace(there, memory={BOT: memory})


@pytest.mark.parametrize(
    ("there", "is_awaited"),
    [
        (observed(bot="d"), True),
        (with_memory(observed(bot="d"), "applied", "d"), True),
        (with_memory(observed(bot="d"), "applied", "d", "d"), False),
        (with_memory(observed(bot="d"), "applied", "d", "other"), True),
        (with_memory(observed(bot="d"), "unverified", "d"), True),
        (with_memory(observed(bot="d"), "unverified", ""), True),
        (with_memory(observed(bot="d"), "unverified", "other"), True),
        (replace(observed(bot="d"), set_aside={previous_of(BOT): "before"}), True),
        (replace(observed(bot="d"), set_aside={previous_of(BOT): "d"}), True),
        (
            replace(with_memory(observed(bot="d"), "applied", "d", "d"), set_aside={previous_of(BOT): "x"}),
            False,
        ),
        (replace(with_memory(observed(bot="d"), "applied", "d", "d"), features=OLD), True),
    ],
)
def test_expectations_count_only_for_the_content_and_the_server_that_they_held_for(
    there: ObservedHost, is_awaited: bool
) -> None:
    plan = planned(PULLED, there=there)
    assert ids(plan.actions) == (["verify/bot:latest"] if is_awaited else [])
    if is_awaited:
        assert [why.kind for why in plan.actions[0].because] == ["unverified"]
    assert planned(replace(PULLED, expect=()), there=there).actions == ()


@pytest.mark.parametrize(
    ("there", "is_awaited"),
    [
        (observed(bot="d"), False),
        (with_memory(observed(bot="d"), "applied", "d"), False),
        (with_memory(observed(bot="d"), "unverified", "d"), True),
        (with_memory(observed(bot="d"), "unverified", ""), True),
        (with_memory(observed(bot="d"), "unverified", "other"), False),
        (replace(observed(bot="d"), set_aside={previous_of(BOT): "before"}), True),
        (replace(observed(bot="d"), set_aside={previous_of(BOT): "d"}), False),
        (replace(observed(bot="d"), set_aside={next_of(BOT): "x"}), False),
    ],
)
def test_a_staged_pull_that_was_not_verified_yet_is_verified(there: ObservedHost, is_awaited: bool) -> None:
    plan = planned(replace(PULLED, expect=(), staged=True), there=there)
    assert ids(plan.actions) == (["verify/bot:latest"] if is_awaited else [])


def test_asides_are_told_as_left_behind_unless_they_are_kept() -> None:
    aside = {"bot__latest-ollamaops-previous-1": "o", "bot__latest-ollamaops-next": "n"}
    there = with_memory(observed(bot="d", **aside), "applied", "d", "d")
    assert planned(replace(PULLED, keep_previous=1), there=there).leftovers == (next_of(BOT),)
    in_sync = replace(PULLED, update="missing")
    assert planned(in_sync, there=there).leftovers == (
        ModelName.parse("bot:latest-ollamaops-previous-1"),
        next_of(BOT),
    )
    there = replace(there, memory={})
    assert planned(there=there).leftovers == (
        next_of(BOT),
    )  # the kept version goes when the change has worked
    assert planned(there=there).unmanaged == (BOT,)
