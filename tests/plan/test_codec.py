"""Saved plans: what is written comes back, and what makes two plans the same."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from plan_strategies import PLANS
from report_values import a_create, a_name, a_pull, fleet_plan, mixed_plan, refused_plan, why

from ollamaops.errors import UsageError
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import Action, HostPlan, Plan, id_of, verb_of
from ollamaops.plan.codec import ACTION_TYPES, fingerprint, plan_from_json, plan_to_json, value_to_json
from ollamaops.settings import ParameterValue

Edit = Callable[[dict[str, Any]], object]

VERBS = "pull, upload, create, copy, delete, push, verify, load, unload"


def through_text(plan: Plan) -> Any:
    return json.loads(json.dumps(plan_to_json(plan)))


@given(PLANS)
def test_a_plan_comes_back_from_its_json_as_the_same_value(plan: Plan) -> None:
    assert plan_from_json(through_text(plan)) == plan


@given(PLANS)
def test_a_plan_that_came_back_is_written_as_the_same_json(plan: Plan) -> None:
    assert plan_to_json(plan_from_json(through_text(plan))) == plan_to_json(plan)


def test_a_name_keeps_its_scheme_and_its_spelling() -> None:
    name = ModelName.parse("http://Localhost:5000/Me/Bot:V1")
    (action,) = plan_from_json(
        through_text(Plan(hosts=(HostPlan(host="a", actions=(a_pull("http://Localhost:5000/Me/Bot:V1"),)),)))
    ).actions
    assert action.model == name
    assert (action.model.scheme, action.model.full) == ("http", "Localhost:5000/Me/Bot:V1")


def test_every_action_has_a_verb_in_the_format() -> None:
    assert set(ACTION_TYPES.values()) == set(typing.get_args(Action))
    assert all(ACTION_TYPES[verb_of(action)] is type(action) for action in mixed_plan().actions)


def test_every_action_is_written_with_its_verb_and_its_id() -> None:
    for host, written in zip(mixed_plan().hosts, through_text(mixed_plan())["hosts"], strict=True):
        heads = [(action["action"], action["id"]) for action in written["actions"]]
        assert heads == [(verb_of(action), id_of(action)) for action in host.actions]


def test_a_number_keeps_its_type() -> None:
    parameters: Mapping[str, ParameterValue] = {
        "a": 1,
        "b": 1.0,
        "c": True,
        "d": "1",
        "e": None,
        "f": ("x",),
        "g": 0.1,
    }
    create = a_create()
    plan = Plan(
        hosts=(
            HostPlan(
                host="a", actions=(replace(create, recipe=replace(create.recipe, parameters=parameters)),)
            ),
        )
    )
    (back,) = plan_from_json(through_text(plan)).actions
    assert repr(getattr(back, "recipe").parameters) == repr(parameters)  # noqa: B009


@given(PLANS, st.randoms(use_true_random=False))
def test_the_order_of_hosts_and_actions_does_not_change_the_fingerprint(plan: Plan, random: Any) -> None:
    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(random.sample(items, len(items)))

    hosts = (
        replace(
            host,
            actions=tuple(
                replace(action, needs=shuffled(action.needs), expects=shuffled(action.expects))
                for action in shuffled(host.actions)
            ),
            unchanged=shuffled(host.unchanged),
            unmanaged=shuffled(host.unmanaged),
            refusals=shuffled(host.refusals),
        )
        for host in shuffled(plan.hosts)
    )
    other = replace(plan, hosts=tuple(hosts), unreached=shuffled(plan.unreached))
    assert fingerprint(other) == fingerprint(plan)


@given(PLANS, st.text())
def test_prose_does_not_change_the_fingerprint(plan: Plan, text: str) -> None:
    hosts = tuple(
        replace(
            host,
            actions=tuple(replace(action, because=why("x", "field", text)) for action in host.actions),
            notes=(),
            refusals=tuple(replace(refusal, message=text, hint=text) for refusal in host.refusals),
        )
        for host in plan.hosts
    )
    unreached = tuple(replace(host, error=text, hint=text) for host in plan.unreached)
    assert fingerprint(replace(plan, hosts=hosts, unreached=unreached)) == fingerprint(plan)


def test_the_spelling_of_a_name_does_not_change_the_fingerprint() -> None:
    plans = [
        Plan(hosts=(HostPlan(host="a", unchanged=(a_name(text),)),))
        for text in ("Bot:V1", "bot:v1", "library/bot:v1")
    ]
    assert len({fingerprint(plan) for plan in plans}) == 1


def test_the_way_a_number_is_written_does_not_change_the_fingerprint() -> None:
    def plan(value: float) -> Plan:
        create = a_create()
        recipe = replace(create.recipe, parameters={"top_k": value})
        return Plan(hosts=(HostPlan(host="a", actions=(replace(create, recipe=recipe),)),))

    assert fingerprint(plan(40)) == fingerprint(plan(40.0))
    assert fingerprint(plan(40)) != fingerprint(plan(40.5))


@pytest.mark.parametrize(
    "change",
    [
        lambda host: replace(host, actions=host.actions[1:]),
        lambda host: replace(host, actions=(replace(host.actions[0], pin=("ab",)), *host.actions[1:])),
        lambda host: replace(host, actions=(replace(host.actions[0], expects=()), *host.actions[1:])),
        lambda host: replace(host, unchanged=()),
        lambda host: replace(host, unmanaged=host.unchanged, unchanged=host.unmanaged),
        lambda host: replace(host, host="gpu-9"),
    ],
)
def test_a_fact_changes_the_fingerprint(change: Callable[[HostPlan], HostPlan]) -> None:
    plan = mixed_plan()
    other = replace(plan, hosts=(change(plan.hosts[0]), *plan.hosts[1:]))
    assert fingerprint(other) != fingerprint(plan)


def test_the_order_of_messages_and_stop_words_changes_the_fingerprint() -> None:
    create = a_create()
    recipe = replace(create.recipe, messages=(("user", "a"), ("assistant", "b")))
    one = Plan(hosts=(HostPlan(host="a", actions=(replace(create, recipe=recipe),)),))
    turned = replace(recipe, messages=recipe.messages[::-1])
    other = Plan(hosts=(HostPlan(host="a", actions=(replace(create, recipe=turned),)),))
    assert fingerprint(one) != fingerprint(other)


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    essence = b'{"hosts":[],"made_from":{},"type":"Plan","unreached":[]}'
    assert fingerprint(Plan(hosts=())) == hashlib.sha256(essence).hexdigest()


def test_a_missing_field_takes_its_default() -> None:
    document = through_text(refused_plan())
    for host in document["hosts"]:
        del host["notes"]
    assert plan_from_json(document) == refused_plan()


def test_what_a_reader_adds_beside_the_plan_is_left_alone() -> None:
    assert plan_from_json({**through_text(fleet_plan()), "summary": {"pull": 1}}) == fleet_plan()


def test_a_plan_of_a_newer_format_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        plan_from_json({**through_text(fleet_plan()), "version": 3})
    assert str(caught.value) == "the saved plan has version 3: this ollamaops reads up to 2"
    assert caught.value.hint == "upgrade ollamaops, or make a new plan with this one"


def test_a_plan_of_an_older_format_has_to_be_made_anew() -> None:
    with pytest.raises(UsageError) as caught:
        plan_from_json({**through_text(fleet_plan()), "version": 1})
    assert str(caught.value) == "the saved plan has version 1: an older ollamaops made it"
    assert caught.value.hint == "make a new one with: ollamaops plan --out FILE"


@pytest.mark.parametrize(
    "document, message",
    [
        (None, "not a saved plan: it does not begin with format 'ollamaops-plan'"),
        ([], "not a saved plan: it does not begin with format 'ollamaops-plan'"),
        ({"format": "terraform"}, "not a saved plan: it does not begin with format 'ollamaops-plan'"),
        ({"format": "ollamaops-plan"}, "not a saved plan: version null is not a number from 1 up"),
        (
            {"format": "ollamaops-plan", "version": True},
            "not a saved plan: version true is not a number from 1 up",
        ),
        ({"format": "ollamaops-plan", "version": 0}, "not a saved plan: version 0 is not a number from 1 up"),
        (
            {"format": "ollamaops-plan", "version": [1]},
            "not a saved plan: version list is not a number from 1 up",
        ),
        (
            {"format": "ollamaops-plan", "version": 2},
            "the saved plan cannot be read: hosts: null is not a value",
        ),
    ],
)
def test_what_is_no_saved_plan_is_refused(document: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_from_json(document)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda plan: plan.update(hosts={}), "hosts: dict is not list"),
        (lambda plan: plan["hosts"].insert(0, "gpu-1"), 'hosts[0]: "gpu-1" is not dict'),
        (lambda plan: plan["made_from"].update(manifest=1), "made_from.manifest: 1 is not str"),
        (lambda plan: plan["hosts"][0].pop("host"), "hosts[0].host: null is not a value"),
        (lambda plan: plan["hosts"][0].update(unchanged=["a b"]), None),
        (
            lambda plan: plan["hosts"][0]["actions"][0].update(action="explode"),
            f'hosts[0].actions[0].action: "explode" is not one of {VERBS}',
        ),
        (
            lambda plan: plan["hosts"][0]["actions"][0].update(action=["pull"]),
            f"hosts[0].actions[0].action: list is not one of {VERBS}",
        ),
        (
            lambda plan: plan["hosts"][0]["actions"][0]["because"][0].update(kind="mood"),
            None,
        ),
        (
            lambda plan: plan["hosts"][0]["actions"][0]["cost"].update(download_bytes="many"),
            'hosts[0].actions[0].cost.download_bytes: "many" is not int or NoneType',
        ),
        (
            lambda plan: plan["hosts"][0]["actions"][4]["recipe"].update(messages=[["user"]]),
            "hosts[0].actions[4].recipe.messages[0]: list is not a list of 2",
        ),
        (lambda plan: plan["hosts"][0]["actions"][2].update(digest="sha256:12"), None),
    ],
)
def test_a_damaged_plan_is_refused_with_the_place_of_the_damage(edit: Edit, message: str | None) -> None:
    document = through_text(mixed_plan())
    edit(document)
    with pytest.raises(UsageError, match=r"the saved plan cannot be read: (hosts|made_from)") as caught:
        plan_from_json(document)
    assert caught.value.hint == "make a new one with: ollamaops plan --out FILE"
    if message is not None:
        assert str(caught.value) == f"the saved plan cannot be read: {message}"


@pytest.mark.parametrize(
    "edit",
    [
        lambda plan: plan["hosts"][0]["actions"].pop(),
        lambda plan: plan["hosts"][1]["actions"][3].update(model="llama3.2:3b"),
        lambda plan: plan["hosts"][0]["refusals"].clear(),
        lambda plan: plan.pop("fingerprint"),
    ],
)
def test_a_plan_that_was_changed_by_hand_is_refused(edit: Edit) -> None:
    plan = mixed_plan()
    plan = replace(plan, hosts=(replace(plan.hosts[0], refusals=refused_plan().refusals), *plan.hosts[1:]))
    document = through_text(plan)
    edit(document)
    with pytest.raises(UsageError, match="was changed after it was written: its fingerprint differs"):
        plan_from_json(document)


@given(PLANS, st.data())
def test_no_damage_raises_anything_but_a_usage_error(plan: Plan, data: st.DataObject) -> None:
    document = through_text(plan)
    node: Any = {"": document}
    key: Any = ""
    while (
        isinstance(node[key], dict | list)
        and node[key]
        and data.draw(st.booleans() if key else st.just(True))
    ):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(st.sampled_from((None, True, 7, 1.5, "x", [], {}, [[]], {"action": {}})))
    try:
        plan_from_json(document)
    except UsageError as error:
        assert error.hint  # noqa: PT017


@pytest.mark.parametrize("value", [object(), Plan, {1, 2}])
def test_what_is_not_a_value_of_a_plan_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match="is not a value of a plan"):
        value_to_json(value)


def test_digests_are_written_as_servers_write_them() -> None:
    assert value_to_json(Digest.of(b"")) == f"sha256:{Digest.of(b'').hex}"
