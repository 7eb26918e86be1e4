"""The safety rules: what is refused, in which words, and what lifts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from ollamaops.errors import InvalidValue
from ollamaops.manifest.types import AbsentSpec, Build, Copy, Limit, ModelSpec, Policy, Pull, Window
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.observe.host import clocks_of
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    Difference,
    HostPlan,
    Kind,
    PullModel,
    PushModel,
    Recipe,
    Refusal,
)
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import RULES, guard, guard_again, lifted_by
from ollamaops.plan.observed import ObservedHost, ObservedModel


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def a_delete(name: str, kind: Kind = "undeclared") -> DeleteModel:
    because = (Difference(host="h", model=a_name(name), kind=kind),)
    return DeleteModel(host="h", model=a_name(name), because=because)


def a_pull(name: str) -> PullModel:
    return PullModel(host="h", model=a_name(name))


def a_create(name: str, base: str = "base") -> CreateModel:
    return CreateModel(host="h", model=a_name(name), recipe=Recipe(base=a_name(base)))


def a_copy(name: str, source: str = "base") -> CopyModel:
    return CopyModel(host="h", model=a_name(name), source=a_name(source))


def a_host(*names: str) -> ObservedHost:
    models = {a_name(name): ObservedModel(name=a_name(name), digest="0" * 64) for name in names}
    return ObservedHost(
        host="h", features=features_of(ServerVersion.parse("0.33.0")), models=Listing(models.items())
    )


def a_spec(name: str, **parts: Any) -> ModelSpec:
    return ModelSpec(name=a_name(name), source=Pull(ref=a_name(name)), **parts)


def wanted(*specs: ModelSpec, **policy: Any) -> DesiredHost:
    return build_desired("h", specs or [a_spec("declared")], policy=Policy(**policy))


def refusals(
    actions: Iterable[Action], desired: DesiredHost, observed: ObservedHost, force: Iterable[str] = ()
) -> list[str]:
    plan = guard(HostPlan(host="h", actions=tuple(actions)), desired, observed, force=force)
    return [f"{refusal.rule}: {refusal.message}" for refusal in plan.refusals]


def patterns(*texts: str) -> tuple[NamePattern, ...]:
    return tuple(map(NamePattern.parse, texts))


def test_a_harmless_plan_is_not_refused_and_stays_as_it_is() -> None:
    plan = HostPlan(host="h", actions=(a_pull("a"), a_create("b"), a_copy("c"), a_delete("d")))
    assert guard(plan, wanted(), a_host("d")) == plan


@pytest.mark.parametrize(
    "action", [a_pull("a"), a_create("a"), a_copy("a"), a_delete("A", "unwanted")], ids=type
)
def test_a_protected_model_is_neither_deleted_nor_replaced(action: Action) -> None:
    expected = [f"protect: '{action.model}' is protected, and this plan would delete or replace it"]
    assert refusals([action], wanted(a_spec("a", protect=True)), a_host("a")) == expected
    assert refusals([action], wanted(protect=patterns("a*")), a_host("a")) == expected
    assert refusals([action], wanted(protect=patterns("a*")), a_host("a"), ["protect"]) == []


def test_a_protected_model_may_be_made_for_the_first_time_and_pushed() -> None:
    push = PushModel(host="h", model=a_name("a"), source=a_name("a"))
    assert refusals([a_create("a"), push], wanted(protect=patterns("*")), a_host()) == []


def test_what_is_protected_stays_so_when_it_is_no_target() -> None:
    specs = [a_spec("a", protect=True), a_spec("b")]
    desired = build_desired("h", specs, targets=patterns("b"))
    assert len(refusals([a_delete("a")], desired, a_host("a"))) == 1


def test_a_model_that_is_replaced_and_deleted_is_refused_once() -> None:
    assert len(refusals([a_pull("a"), a_delete("a")], wanted(protect=patterns("a")), a_host("a"))) == 1


MANY = tuple(f"m{number}" for number in range(20))


@pytest.mark.parametrize(
    ("limit", "models", "changes", "said"),
    [
        (Limit(count=2), 3, 2, ""),
        (Limit(count=2), 3, 3, "3 models to {}, 2 allowed"),
        (Limit(count=0), 3, 1, "1 models to {}, 0 allowed"),
        (Limit(percent=30), 10, 3, ""),
        (Limit(percent=30), 10, 4, "4 models to {}, 3 allowed (30 % of 10)"),
        (Limit(percent=12.5), 20, 3, "3 models to {}, 2 allowed (12.5 % of 20)"),
        (Limit(percent=30), 9, 9, ""),
        (Limit(percent=0), 10, 1, "1 models to {}, 0 allowed (0 % of 10)"),
        (Limit(percent=100), 10, 10, ""),
        (None, 20, 20, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("what", ["delete", "replace"])
def test_too_much_change_is_refused_in_numbers(
    limit: Limit | None, models: int, changes: int, said: str, what: str
) -> None:
    make: Callable[[str], Action] = a_delete if what == "delete" else a_create
    actions = [make(name) for name in MANY[:changes]]
    desired, rule = wanted(**{f"max_{what}": limit}), f"max_change.{what}"
    expected = [f"{rule}: {said.format(what)}"] if said else []
    assert refusals(actions, desired, a_host(*MANY[:models])) == expected
    assert refusals(actions, desired, a_host(*MANY[:models]), [rule]) == []


def test_what_is_made_for_the_first_time_replaces_nothing() -> None:
    actions = [a_create(name) for name in MANY]
    assert refusals(actions, wanted(max_replace=Limit(count=0)), a_host()) == []


def test_an_empty_manifest_prunes_nothing() -> None:
    desired = build_desired("h", [], absent=[AbsentSpec(pattern=NamePattern.parse("b"))])
    expected = ["empty-manifest: the manifest declares no model for this host, and prune would delete 2"]
    actions: list[Action] = [a_delete("a"), a_delete("c"), a_delete("b", "unwanted")]
    assert refusals(actions, desired, a_host("a", "b", "c")) == expected
    assert refusals(actions[2:], desired, a_host("a", "b", "c")) == []
    assert refusals(actions, wanted(), a_host("a", "b", "c")) == []


def test_only_named_registries_are_pulled_from() -> None:
    actions: list[Action] = [
        a_pull("llama3"),
        a_pull("HF.co/a/b"),
        a_pull("hf.co:443/a/b"),
        a_create("reg.lan/x/y"),
    ]
    assert refusals(actions, wanted(registries=("registry.ollama.ai", "Hf.co")), a_host()) == [
        "registries: 'hf.co:443/a/b:latest' comes from hf.co:443, which policy.allow.registries does not name"
    ]
    assert len(refusals(actions, wanted(registries=()), a_host())) == 3
    assert refusals(actions, wanted(), a_host()) == []


@pytest.mark.parametrize(
    "action",
    [a_pull("big:cloud"), a_pull("big:20b-cloud"), a_create("bot", "big:cloud"), a_copy("bot", "big:cloud")],
    ids=type,
)
def test_nothing_that_sends_prompts_away_is_made_unless_that_is_allowed(action: Action) -> None:
    expected = [f"cloud: '{action.model}' runs on ollama.com, not on this host"]
    assert refusals([action], wanted(), a_host()) == expected
    assert refusals([action], wanted(cloud=True), a_host()) == []


def test_removing_a_cloud_stub_is_no_question_of_the_cloud() -> None:
    assert refusals([a_delete("big:cloud")], wanted(), a_host("big:cloud")) == []


def test_with_locked_everything_that_could_be_pulled_has_to_be_in_the_lock() -> None:
    specs = [
        a_spec("open"),
        a_spec("locked", accepts=("0" * 64,)),
        a_spec("pinned", digest=Digest.of(b"p")),
        a_spec("floating", update="latest"),
        ModelSpec(name=a_name("bot"), source=Build(base=a_name("base"))),
        ModelSpec(name=a_name("kid"), source=Build(base=a_name("safe")), accepts=("1" * 64,)),
        ModelSpec(name=a_name("chat"), source=Copy(source=a_name("open"))),
    ]
    assert refusals([], wanted(*specs, require_lock=True), a_host("open")) == [
        "locked: 'base:latest' is not in the lock file, and this run is --locked",
        "locked: 'open:latest' is not in the lock file, and this run is --locked",
    ]
    assert refusals([], wanted(*specs), a_host("open")) == []


def test_every_refusal_names_its_rule_the_host_and_a_way_out() -> None:
    desired = build_desired(
        "h",
        [],
        policy=Policy(
            protect=patterns("*"),
            max_delete=Limit(count=0),
            max_replace=Limit(count=0),
            registries=(),
            licenses=(),
            min_version="99.0",
            windows=(NIGHTS,),
            busy="refuse",
        ),
    )
    observed = replace(
        a_host("a", "c"),
        clocks=clocks_of((NIGHTS,), NOON),
        in_use=frozenset({a_name("a")}),
        licenses={a_name("b:cloud"): ("X",)},
    )
    plan = HostPlan(host="h", actions=(a_delete("a"), a_pull("b:cloud"), a_create("c")))
    found = guard(plan, desired, observed).refusals
    rules = {"protect", "max_change.delete", "max_change.replace", "empty-manifest", "registries", "cloud"}
    rules |= {"licenses", "min-version", "windows", "busy"}
    assert {refusal.rule for refusal in found} == rules
    assert rules <= RULES.keys()
    for refusal in found:
        assert refusal.host == "h"
        assert refusal.rule in refusal.hint
    assert guard(plan, desired, observed, force=RULES).refusals == ()


def test_a_guarded_plan_has_no_refusals_of_before() -> None:
    old = Refusal(rule="protect", host="h", message="m", hint="h")
    plan = replace(HostPlan(host="h"), refusals=(old,))
    assert guard(plan, wanted(), a_host()).refusals == ()


# rules about the moment, the server and the licenses

NOON = datetime.fromisoformat("2026-11-24T12:00:00+00:00")  # a Tuesday
NIGHTS = Window(days=("sat",), begins_minute=22 * 60, ends_minute=6 * 60, timezone="Europe/Paris")


@pytest.mark.parametrize(
    "server, wanted_version, is_refused",
    [
        ("0.5.7", "0.12.6", True),
        ("0.12.5", "0.12.6", True),
        ("0.12.6", "0.12.6", False),
        ("0.12.6-rc1", "0.12.6", False),
        ("0.33.0", "0.12", False),
        ("0.0.0", "0.12.6", False),
        ("nonsense", "0.12.6", False),
    ],
)
def test_nothing_is_changed_on_a_server_that_is_known_to_be_too_old(
    server: str, wanted_version: str, is_refused: bool
) -> None:
    observed = replace(a_host(), features=features_of(ServerVersion.parse(server)))
    desired = wanted(min_version=wanted_version)
    said = f"min-version: the server is {server}, and policy.min_version is {wanted_version}"
    assert refusals([a_pull("a")], desired, observed) == ([said] if is_refused else [])
    assert refusals([], desired, observed) == []
    assert refusals([a_pull("a")], desired, observed, ["min-version"]) == []


def test_licenses_are_refused_where_they_are_known() -> None:
    base = Contents(digest="0" * 64, license_text="LLAMA LICENSE\n…")
    observed = replace(
        a_host("base"),
        shown={a_name("base"): base},
        licenses={a_name("pulled"): ("MIT License\n…", "Other\n…")},
    )
    declared = Recipe(base=a_name("unknown"), licenses=("Apache-2.0", "Own license"))
    actions: list[Action] = [
        a_pull("pulled"),
        a_pull("not-asked"),
        a_create("from-base", "base"),
        CreateModel(host="h", model=a_name("declared"), recipe=declared),
        CreateModel(host="h", model=a_name("weights"), recipe=Recipe()),
        a_copy("copy"),
        a_delete("gone"),
    ]
    desired = wanted(licenses=("MIT", "Apache-2.0"))
    assert refusals(actions, desired, observed) == [
        "licenses: 'pulled:latest' has the license 'Other', which policy.allow.licenses does not name",
        "licenses: 'from-base:latest' has the license 'LLAMA LICENSE', which policy.allow.licenses does not name",
        "licenses: 'declared:latest' has the license 'Own license', which policy.allow.licenses does not name",
    ]
    assert refusals(actions, wanted(), observed) == []
    assert refusals(actions, desired, observed, ["licenses"]) == []
    assert len(refusals(actions, wanted(licenses=()), observed)) == 5


def test_a_license_without_a_line_break_is_cut() -> None:
    action = CreateModel(host="h", model=a_name("m"), recipe=Recipe(licenses=("x" * 500,)))
    (said,) = refusals([action], wanted(licenses=("MIT",)), a_host())
    assert len(said) < 200


def test_outside_of_every_window_nothing_is_changed_and_the_next_one_is_named() -> None:
    desired, observed = wanted(windows=(NIGHTS,)), replace(a_host("a"), clocks=clocks_of((NIGHTS,), NOON))
    said = (
        "windows: no maintenance window is open: it is tue 13:00 (Europe/Paris), "
        "the next one opens sat 22:00 (Europe/Paris); changes that wait: 2"
    )
    assert refusals([a_create("a"), a_pull("b")], desired, observed) == [said]
    assert refusals([], desired, observed) == []
    assert refusals([a_pull("b")], wanted(), observed) == []
    assert refusals([a_pull("b")], desired, observed, ["windows"]) == []
    assert refusals([a_pull("b")], desired, replace(observed, clocks=None)) == []
    night = datetime.fromisoformat("2026-11-29T03:00:00+01:00")
    assert refusals([a_pull("b")], desired, replace(observed, clocks=clocks_of((NIGHTS,), night))) == []


@pytest.mark.parametrize("action", [a_pull("A"), a_create("A"), a_copy("A"), a_delete("A")], ids=type)
def test_a_model_in_use_is_neither_deleted_nor_replaced(action: Action) -> None:
    observed = replace(a_host("a", "b"), in_use=frozenset({a_name("a"), a_name("b")}))
    said = "busy: 'A:latest' is loaded right now, and this plan would delete or replace it"
    assert refusals([action], wanted(busy="refuse"), observed) == [said]
    assert refusals([action], wanted(busy="refuse"), observed, ["busy"]) == []
    assert refusals([action], wanted(busy="wait"), observed) == []
    assert refusals([action], wanted(busy="force"), observed) == []
    assert refusals([action], wanted(), observed) == []
    assert refusals([action], wanted(busy="refuse"), a_host("a")) == []


def test_a_saved_plan_is_judged_anew_by_every_rule_and_what_else_was_refused_stays_so() -> None:
    old = Refusal(rule="windows", host="h", message="closed", hint="wait")
    lasting = Refusal(rule="protect", host="h", message="no", hint="no")
    plan = HostPlan(host="h", actions=(a_delete("a"),), refusals=(old, lasting))
    desired = wanted(windows=(NIGHTS,), busy="refuse", max_delete=Limit(count=0))
    night = datetime.fromisoformat("2026-11-28T23:00:00+01:00")
    observed = replace(a_host("a"), clocks=clocks_of((NIGHTS,), night))

    def rules(observed: ObservedHost, *force: str) -> list[str]:
        return [refusal.rule for refusal in guard_again(plan, desired, observed, force=force).refusals]

    assert rules(observed) == ["protect", "max_change.delete"]
    assert rules(observed, "max_change.delete") == ["protect"]
    busy = replace(observed, clocks=clocks_of((NIGHTS,), NOON), in_use=frozenset({a_name("a")}))
    assert rules(busy) == ["protect", "max_change.delete", "windows", "busy"]
    assert rules(busy, "windows", "busy") == ["protect", "max_change.delete"]


@pytest.mark.parametrize(
    "name, rules",
    [
        ("protect", {"protect"}),
        ("pending", {"pending"}),
        ("max_change.delete", {"max_change.delete"}),
        ("max_change", {"max_change.delete", "max_change.replace"}),
    ],
)
def test_a_rule_is_lifted_by_its_name_or_by_that_of_its_family(name: str, rules: set[str]) -> None:
    assert lifted_by(name) == rules


@pytest.mark.parametrize("name", ["WRONG", "", "max", "max_change.", "protect.x", "Protect"])
def test_there_is_no_other_name_of_a_rule(name: str) -> None:
    with pytest.raises(InvalidValue, match="no safety rule") as caught:
        lifted_by(name)
    assert str(caught.value.hint).startswith("rules: protect, max_change.delete")
