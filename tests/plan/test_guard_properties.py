"""No plan from any declaration and any host deletes what is protected, ignored, not ours, or not known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from plan_world import FILES, HOST, World, declarations, worlds

from ollamaops.manifest.types import AbsentSpec, Limit, Policy, Window
from ollamaops.names import ModelName, NamePattern
from ollamaops.observe.host import clocks_of
from ollamaops.plan.actions import DeleteModel, HostPlan
from ollamaops.plan.deletions import only_prune
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import RULES, changes_of, guard, guard_again, is_prune
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.planner import plan_host
from ollamaops.plan.residency import kept_loaded

GLOBS = ("*", "*:latest", "a*", "b:*", "llama*", "mirror*", "x/*", "*/*/*", "old", "stray")
SOME_PATTERNS = st.lists(st.sampled_from(GLOBS).map(NamePattern.parse), min_size=1, max_size=2).map(tuple)
PATTERNS = st.lists(st.sampled_from(GLOBS).map(NamePattern.parse), max_size=2).map(tuple)
LIMITS = st.none() | st.builds(Limit, count=st.integers(0, 2)) | st.builds(Limit, percent=st.just(30.0))
CLOSED = (Window(days=("sun",), begins_minute=60, ends_minute=61),)
POLICIES = st.builds(
    Policy,
    prune=st.sampled_from((False, "owned")) | SOME_PATTERNS,
    protect=PATTERNS,
    ignore=PATTERNS,
    max_delete=LIMITS,
    max_replace=LIMITS,
    busy=st.sampled_from((None, "refuse", "wait", "force")),
    min_version=st.sampled_from((None, "0.12.6")),
    windows=st.sampled_from(((), CLOSED)),
)
LIFTED = st.frozensets(st.sampled_from(sorted(RULES)))
NOTHING: st.SearchStrategy[frozenset[str]] = st.just(frozenset())
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)  # a Tuesday


@dataclass(frozen=True)
class Scene:
    """Everything that a plan is made and judged from."""

    desired: DesiredHost
    observed: ObservedHost
    plan: HostPlan
    force: frozenset[str]

    @property
    def deleted(self) -> set[ModelName]:
        return {action.model for action in self.plan.actions if isinstance(action, DeleteModel)}

    @property
    def pruned(self) -> set[ModelName]:
        return {action.model for action in self.plan.actions if is_prune(action)}

    def refused(self, rule: str) -> set[ModelName | None]:
        return {refusal.model for refusal in self.plan.refusals if refusal.rule == rule}


@st.composite
def scenes(draw: st.DrawFn, *, force: st.SearchStrategy[frozenset[str]] = NOTHING) -> Scene:
    specs = draw(declarations())
    policy = draw(POLICIES)
    absent = [AbsentSpec(pattern=pattern) for pattern in draw(PATTERNS)]
    targets = draw(st.just(()) | PATTERNS)
    desired = build_desired(HOST, specs, absent=absent, policy=policy, files=FILES, targets=targets)
    world: World = draw(worlds(desired))
    observed = world.look(desired, world.options())
    in_use = (
        draw(st.frozensets(st.sampled_from(sorted(observed.models)), max_size=2))
        if observed.models
        else frozenset()
    )
    observed = replace(observed, clocks=clocks_of(CLOSED, NOW), in_use=in_use)
    lifted = draw(force)
    plan = guard(plan_host(desired, observed, world.options()), desired, observed, force=lifted)
    return Scene(desired, observed, plan, lifted)


def matches(patterns: tuple[NamePattern, ...], name: ModelName) -> bool:
    return any(pattern.matches(name) for pattern in patterns)


@given(scenes(force=LIFTED))
def test_deleting_what_is_protected_is_refused_by_name_unless_that_rule_is_lifted(scene: Scene) -> None:
    declared = {model.name for model in scene.desired.declared if model.spec.protect}
    endangered = {
        name for name in scene.deleted if name in declared or matches(scene.desired.policy.protect, name)
    }
    assert scene.refused("protect") >= (set() if "protect" in scene.force else endangered)


@given(scenes(force=LIFTED))
def test_no_plan_deletes_what_is_ignored_needed_or_not_there_whatever_is_forced(scene: Scene) -> None:
    assert not [name for name in scene.deleted if matches(scene.desired.policy.ignore, name)]
    assert not scene.deleted & scene.desired.needed
    assert scene.deleted <= scene.observed.models.keys()


@given(scenes(force=LIFTED))
def test_no_plan_prunes_what_is_outside_of_the_scope_whatever_is_forced(scene: Scene) -> None:
    prune = scene.desired.policy.prune
    assert not scene.pruned & scene.desired.claimed
    if prune is False or not scene.desired.complete:
        assert scene.pruned == set()
    elif prune == "owned":
        known = {name: scene.observed.memory[name] for name in scene.pruned}
        assert all(memory.is_ours for memory in known.values())
        assert all(scene.observed.models[name].digest == memory.digest for name, memory in known.items())
    else:
        assert all(matches(prune, name) for name in scene.pruned)
    assert not [name for name in scene.pruned if scene.observed.models[name].is_cloud]


@given(scenes())
def test_what_goes_is_declared_absent_renamed_or_pruned(scene: Scene) -> None:
    former = {model.spec.moved_from for model in scene.desired.models}
    absent = tuple(entry.pattern for entry in scene.desired.absent)
    rest = scene.deleted - scene.pruned
    assert all(name in former or matches(absent, name) for name in rest)


@given(scenes())
def test_limits_windows_and_loaded_models_are_kept_to(scene: Scene) -> None:
    policy, rules = scene.desired.policy, {refusal.rule for refusal in scene.plan.refusals}
    limit = policy.max_delete.count if policy.max_delete else None
    assert ("max_change.delete" in rules) or limit is None or len(scene.deleted) <= limit
    assert ("windows" in rules) == bool(policy.windows and changes_of(scene.plan))
    if policy.busy == "refuse":
        residents = kept_loaded(model.spec for model in scene.desired.declared)
        assert scene.refused("busy") >= (scene.deleted & scene.observed.in_use) - residents


@given(scenes(force=LIFTED))
def test_forcing_lifts_exactly_the_named_rules(scene: Scene) -> None:
    assert not {refusal.rule for refusal in scene.plan.refusals} & scene.force
    strict = guard(scene.plan, scene.desired, scene.observed)
    kept = {refusal.rule for refusal in strict.refusals} - scene.force
    assert {refusal.rule for refusal in scene.plan.refusals} == kept


@given(scenes())
def test_judging_a_plan_again_in_the_same_moment_changes_no_verdict(scene: Scene) -> None:
    again = guard_again(scene.plan, scene.desired, scene.observed)
    assert set(again.refusals) == set(scene.plan.refusals)


@given(scenes())
def test_prune_alone_deletes_what_apply_would_prune_or_nothing(scene: Scene) -> None:
    only = only_prune(scene.plan)
    assert {action.model for action in only.actions} in (scene.pruned, set())
    assert all(isinstance(action, DeleteModel) and action.needs == () for action in only.actions)
    forced = only_prune(scene.plan, force={"pending"})
    assert {action.model for action in forced.actions} == scene.pruned
