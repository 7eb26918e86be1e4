"""What is planned for a host: case by case as data, and what holds for every declaration and every host."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from plan_cases import Case, load_cases, run
from plan_world import (
    ABSENT,
    FILES,
    HOST,
    INSIDES,
    POLICIES,
    VERSIONS,
    World,
    declarations,
    worlds,
)

from ollamaops.manifest.types import AbsentSpec, Build, Copy, ModelSpec, Policy
from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import (
    DeleteModel,
    HostPlan,
    Plan,
    PushModel,
    UploadBlob,
    VerifyModel,
    id_of,
)
from ollamaops.plan.codec import fingerprint
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import guard
from ollamaops.plan.lookups import PlanOptions, lookups
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.planner import plan_host

CASES = load_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_plan_is_as_the_case_says(case: Case) -> None:
    assert run(case.tree) == case.tree["expect"]


def test_no_two_cases_promise_the_same() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


# for every declaration and every host


@st.composite
def situations(draw: st.DrawFn) -> tuple[DesiredHost, World]:
    desired = a_desired(draw(declarations()), draw(ABSENT), draw(POLICIES), are_pushed=draw(st.booleans()))
    return desired, draw(worlds(desired))


def a_desired(
    specs: Sequence[ModelSpec],
    absent: Sequence[AbsentSpec] = (),
    policy: Policy = Policy(),
    *,
    are_pushed: bool = True,
) -> DesiredHost:
    names = [spec.name for spec in specs if are_pushed]
    return build_desired(HOST, specs, absent=absent, policy=policy, files=FILES, pushes=names)


def look_and_plan(desired: DesiredHost, world: World, options: PlanOptions) -> tuple[ObservedHost, HostPlan]:
    observed = world.look(desired, options)
    return observed, plan_host(desired, observed, options)


def a_plan(situation: tuple[DesiredHost, World]) -> tuple[DesiredHost, ObservedHost, HostPlan]:
    desired, world = situation
    return desired, *look_and_plan(desired, world, PlanOptions())


@given(situations())
def test_planning_the_same_twice_gives_the_same(situation: tuple[DesiredHost, World]) -> None:
    desired, observed, plan = a_plan(situation)
    assert plan_host(desired, observed, PlanOptions()) == plan


@given(situations(), st.data())
def test_the_order_of_entries_and_models_changes_nothing(
    situation: tuple[DesiredHost, World], data: st.DataObject
) -> None:
    desired, observed, plan = a_plan(situation)
    specs = [model.spec for model in desired.models if not model.implicit]
    other = a_desired(
        data.draw(st.permutations(specs)),
        data.draw(st.permutations(desired.absent)),
        desired.policy,
        are_pushed=bool(desired.pushes),
    )
    models = Listing(data.draw(st.permutations(list(observed.models.items()))))
    again = plan_host(other, replace(observed, models=models), PlanOptions())
    assert fingerprint(Plan(hosts=(again,))) == fingerprint(Plan(hosts=(plan,)))


@given(situations())
def test_what_an_action_needs_is_planned_before_it(situation: tuple[DesiredHost, World]) -> None:
    _, _, plan = a_plan(situation)
    before: set[str] = set()
    for action in plan.actions:
        assert set(action.needs) <= before
        before.add(id_of(action))


@given(situations())
def test_every_action_has_an_id_of_its_own(situation: tuple[DesiredHost, World]) -> None:
    _, _, plan = a_plan(situation)
    ids = [id_of(action) for action in plan.actions]
    assert len(set(ids)) == len(ids)


@given(situations())
def test_an_action_relies_on_what_is_seen(situation: tuple[DesiredHost, World]) -> None:
    _, observed, plan = a_plan(situation)
    for action in plan.actions:
        for fact in action.expects:
            assert isinstance(fact.model, ModelName)
            seen = observed.models.get(fact.model)
            assert fact.digest == (seen.digest if seen else None)


@given(situations())
def test_every_declared_model_is_accounted_for(situation: tuple[DesiredHost, World]) -> None:
    desired, _, plan = a_plan(situation)
    spoken = {action.model for action in plan.actions} | {note.model for note in plan.notes}
    spoken |= {reason.model for action in plan.actions for reason in action.because}
    for model in desired.models:
        assert model.implicit or model.name in spoken or model.name in plan.unchanged


@given(situations())
def test_deletions_are_at_the_end(situation: tuple[DesiredHost, World]) -> None:
    _, _, plan = a_plan(situation)
    is_deletion = [isinstance(action, DeleteModel) for action in plan.actions]
    assert is_deletion == sorted(is_deletion)


@given(situations())
def test_nothing_protected_is_deleted_or_replaced_without_a_refusal(
    situation: tuple[DesiredHost, World],
) -> None:
    desired, observed, plan = a_plan(situation)
    refused = {refusal.model for refusal in guard(plan, desired, observed).refusals}
    verified = {action.model for action in plan.actions if isinstance(action, VerifyModel)}
    changed = {action.model for action in plan.actions if not isinstance(action, VerifyModel)}
    for name in touched(plan) & observed.models.keys() - (verified - changed):
        assert not desired.protects(name) or name in refused


@given(situations())
def test_nothing_ignored_is_touched_or_looked_into(situation: tuple[DesiredHost, World]) -> None:
    desired, observed, plan = a_plan(situation)
    asked = lookups(desired, observed, PlanOptions()).show
    for pattern in desired.policy.ignore:
        assert not any(map(pattern.matches, touched(plan) | asked))


def touched(plan: HostPlan) -> set[ModelName]:
    return {action.model for action in plan.actions if not isinstance(action, UploadBlob | PushModel)}


@given(situations())
def test_only_what_is_declared_needed_or_in_the_scope_of_a_removal_is_touched(
    situation: tuple[DesiredHost, World],
) -> None:
    desired, observed, plan = a_plan(situation)
    for action in plan.actions:
        name = action.model
        if not isinstance(action, DeleteModel):
            assert name in desired.needed
            continue
        assert name not in desired.needed
        is_former = any(model.spec.moved_from == name for model in desired.models)
        is_absent = any(entry.pattern.matches(name) for entry in desired.absent)
        assert is_former or is_absent or is_prunable(desired.policy, observed, name)


def is_prunable(policy: Policy, observed: ObservedHost, name: ModelName) -> bool:
    memory = observed.memory.get(name)
    if policy.prune == "owned":
        return memory is not None and memory.how != "adopted"
    return policy.prune is not False and any(pattern.matches(name) for pattern in policy.prune)


def test_without_options_memory_is_believed_and_registries_are_asked() -> None:
    desired = a_desired([])
    observed = World(features_of(ServerVersion.parse("0.33.0"))).look(desired, PlanOptions())
    assert plan_host(desired, observed) == plan_host(desired, observed, PlanOptions())


# applied to a host


def converge(desired: DesiredHost, world: World, rounds: int = 4) -> HostPlan:
    """Plan, apply and look again as a run does, until nothing is left to do; the last plan."""
    world.touched.clear()
    world.made.clear()
    for _ in range(rounds):
        options = world.options()
        observed, plan = look_and_plan(desired, world, options)
        world.learn(desired, observed, plan, options)
        if not plan.actions:
            return plan
        world.apply(plan.actions)
    pytest.fail(f"still to do after {rounds - 1} rounds: {list(map(id_of, plan.actions))}")


@given(situations())
def test_three_rounds_leave_nothing_to_do_on_any_host(situation: tuple[DesiredHost, World]) -> None:
    desired, world = situation
    plan = converge(desired, world)
    resolved = {note.model for note in plan.notes if note.unresolved or note.lasting}
    for model in desired.models:
        assert model.implicit or model.name in world.models or model.name in resolved


@given(situations())
def test_the_next_run_finds_nothing_to_do_and_looks_into_nothing(
    situation: tuple[DesiredHost, World],
) -> None:
    desired, world = situation
    first = converge(desired, world)
    assume(not any(note.unresolved or note.lasting for note in first.notes))
    observed, plan = look_and_plan(desired, world, PlanOptions())
    assert plan.actions == ()
    assert observed.shown == {}


@given(declarations(), st.sampled_from(VERSIONS))
def test_a_lost_memory_changes_nothing_on_a_host_that_was_made_by_the_manifest(
    specs: list[ModelSpec], version: str
) -> None:
    desired = a_desired(specs, are_pushed=False)
    world = World(features_of(ServerVersion.parse(version)))
    converge(desired, world)
    world.memory.clear()
    _, plan = look_and_plan(desired, world, PlanOptions())
    verified = {action.model for action in plan.actions if isinstance(action, VerifyModel)}
    assert [id_of(action) for action in plan.actions if action.model not in verified] == []
    given_up = {note.model for note in plan.notes if note.unresolved or note.lasting}
    assert verified == {spec.name for spec in specs if spec.expect} - given_up


@given(declarations(), st.sampled_from(VERSIONS))
def test_words_taken_out_of_the_manifest_are_gone_after_one_run(specs: list[ModelSpec], version: str) -> None:
    specs = [replace(spec, ignore=(), moved_from=None, push=None, update="missing") for spec in specs]
    world, fresh = (World(features_of(ServerVersion.parse(version))) for _ in range(2))
    converge(a_desired(specs), world)
    fewer = a_desired([without_words(spec) for spec in specs])
    converge(fewer, world)
    converge(fewer, fresh)
    assert without_asides(world) == without_asides(fresh)
    assert look_and_plan(fewer, world, PlanOptions())[1].actions == ()


def without_words(spec: ModelSpec) -> ModelSpec:
    if not isinstance(spec.source, Build):
        return spec
    bare = replace(
        spec.source,
        template=None,
        system=None,
        parameters={},
        messages=(),
        licenses=(),
        renderer=None,
        parser=None,
    )
    return replace(spec, source=bare)


@given(declarations(), st.sampled_from(VERSIONS), st.data())
def test_whatever_somebody_did_to_made_models_is_mended_and_nothing_else_is_touched(
    specs: list[ModelSpec], version: str, data: st.DataObject
) -> None:
    specs = [replace(spec, ignore=(), moved_from=None, push=None) for spec in specs]
    desired = a_desired(specs)
    world = World(features_of(ServerVersion.parse(version)))
    converge(desired, world)
    as_declared = without_asides(world)
    made = [
        spec.name for spec in specs if isinstance(spec.source, Build | Copy) and spec.name in world.models
    ]
    spoiled = data.draw(st.sets(st.sampled_from(made))) if made else set()
    for name in sorted(spoiled):
        tamper(world, name, data)
    _, plan = look_and_plan(desired, world, PlanOptions())
    assert touched(plan) <= spoiled | dependants(desired, spoiled)
    converge(desired, world)
    assert without_asides(world) == as_declared


def without_asides(world: World) -> dict[ModelName, Contents]:
    """What is in the models themselves: which versions were kept depends on what was there.

    Without digest and parent: a model made from another without a change has the same contents and another digest;
    moved onto the other, it is still as declared.
    """
    return {
        name: replace(inside, digest="", parent="")
        for name, inside in world.models.items()
        if not name.is_aside
    }


def tamper(world: World, name: ModelName, data: st.DataObject) -> None:
    """Delete the model, point its name elsewhere, or put something else into it."""
    match data.draw(st.sampled_from(("delete", "move", "replace"))):
        case "delete":
            del world.models[name]
        case "move":
            world.models[name] = world.models[data.draw(st.sampled_from(sorted(world.models)))]
        case _:
            world.models[name] = data.draw(INSIDES)


def dependants(desired: DesiredHost, names: set[ModelName]) -> set[ModelName]:
    found = set(names)
    for model in desired.models:
        if model.made_from in found:
            found.add(model.name)
    return found


@given(situations(), st.integers(0, 8))
def test_a_run_that_dies_after_any_action_leaves_a_host_on_which_the_next_run_goes_on(
    situation: tuple[DesiredHost, World], done: int
) -> None:
    desired, world = situation
    _, plan = look_and_plan(desired, world, PlanOptions())
    world.apply(plan.actions[:done])
    converge(desired, world)
