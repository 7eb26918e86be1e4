"""Which model is in which state on which host."""

from __future__ import annotations

import json

import pytest
from golden import Golden
from hypothesis import given
from plan_strategies import PLANS
from report_values import (
    a_copy,
    a_create,
    a_delete,
    a_name,
    a_pull,
    fleet_plan,
    in_sync_plan,
    mixed_plan,
    refused_plan,
    small_plan,
    why,
)

from ollamaops.plan.actions import Action, HostPlan, Note, Plan, UploadBlob, continues_another
from ollamaops.report.status_text import build_status, render_status, status_to_json

PLANS_BY_NAME = {
    "small": small_plan,
    "in-sync": in_sync_plan,
    "mixed": mixed_plan,
    "refused": refused_plan,
    "fleet": fleet_plan,
}


@pytest.mark.parametrize("width", [80, 130])
@pytest.mark.parametrize("name", PLANS_BY_NAME)
def test_a_status_reads_as_its_golden_file(name: str, width: int, golden: Golden) -> None:
    golden(f"status-{name}-{width}.txt", render_status(PLANS_BY_NAME[name](), width=width))


@pytest.mark.parametrize("width", [80, 130])
def test_a_verbose_status_says_why(width: int, golden: Golden) -> None:
    golden(f"status-mixed-{width}-verbose.txt", render_status(mixed_plan(), width=width, verbose=True))


def test_a_colored_status_keeps_its_columns() -> None:
    lines = render_status(in_sync_plan(), color=True).splitlines()
    assert lines[1] == ("chat:latest              \x1b[32min sync\x1b[0m  \x1b[32min sync\x1b[0m")


def test_a_status_without_models_is_one_line() -> None:
    assert render_status(Plan(hosts=(HostPlan(host="a"),))) == "0 models on 1 host\n"


@pytest.mark.parametrize(
    "action, state, digest",
    [
        (a_pull("m"), "missing", ""),
        (a_pull("m", kind="content"), "drifted", "3f2a3f2a3f2a"),
        (a_pull("m", kind="unknown"), "unknown", "3f2a3f2a3f2a"),
        (a_create("m"), "missing", ""),
        (a_create("m", because=why("m", "field", "system", "a", "b")), "drifted", ""),
        (a_copy("m", because=why("m", "moved", observed="n:latest")), "missing", ""),
        (a_copy("m", because=why("m", "alias")), "drifted", ""),
        (a_delete("m"), "unwanted", "3f2a3f2a3f2a"),
        (a_delete("m", kind="moved"), "unwanted", "3f2a3f2a3f2a"),
    ],
)
def test_the_state_of_a_model_follows_from_what_is_planned_for_it(
    action: Action, state: str, digest: str
) -> None:
    cell = build_status(Plan(hosts=(HostPlan(host="gpu-1", actions=(action,)),)))[a_name("m")]["gpu-1"]
    assert (cell.state, cell.digest) == (state, digest)


def test_what_could_not_be_found_out_is_unknown() -> None:
    cell = build_status(mixed_plan())[a_name("legal-7b:v3")]["gpu-2"]
    assert (cell.state, cell.why) == (
        "unknown",
        ("cannot be made by Ollama 0.12.11: split GGUF files need 0.30.0",),
    )


def test_what_no_action_mends_is_drifted() -> None:
    lasting = why("m", "template", "effective_template", "t", "other")
    note = Note(host="gpu-1", model=a_name("m"), message="m", lasting=lasting)
    cell = build_status(Plan(hosts=(HostPlan(host="gpu-1", notes=(note,)),)))[a_name("m")]["gpu-1"]
    assert (cell.state, cell.why) == (
        "drifted",
        ("the weights' own template is used, not the declared one", "m"),
    )


def test_models_that_nobody_declared_come_last() -> None:
    assert list(build_status(mixed_plan()))[-1] == a_name("scratch/try-1")


def test_a_host_that_did_not_answer_is_unknown_in_every_row() -> None:
    rows = render_status(mixed_plan(), width=200).splitlines()[1:-3]
    assert all(row.endswith("  unknown") for row in rows)


def test_a_status_as_json_has_every_host(golden: Golden) -> None:
    golden("status-mixed.json", json.dumps(status_to_json(mixed_plan()), indent=1) + "\n")


@given(PLANS)
def test_every_model_of_a_plan_has_a_state(plan: Plan) -> None:
    table = build_status(plan)
    for host in plan.hosts:
        models = {
            action.model
            for action in host.actions
            if not isinstance(action, UploadBlob) and not continues_another(action)
        }
        for name in (*models, *host.unchanged, *host.unmanaged):
            assert host.host in table[name]
