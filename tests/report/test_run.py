"""How a run ended, as people read it."""

from __future__ import annotations

import pytest
from golden import Golden
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from plan_strategies import TEXTS, values_of
from report_values import (
    a_clean_run,
    a_create,
    a_pull,
    a_run,
    in_sync_plan,
    mixed_plan,
    refused_plan,
    why,
)

from ollamaops.events import Failed, Interrupted, Outcome, Refused, Skipped, Succeeded
from ollamaops.plan.actions import HostPlan, Note, Plan
from ollamaops.plan.results import ActionResult, HostReport, RunReport
from ollamaops.report.run_text import render_run


def a_host_report(*outcomes: Outcome, host: str = "gpu-1") -> HostReport:
    results = tuple(
        ActionResult(action=a_pull(f"m{number}", host=host), outcome=outcome)
        for number, outcome in enumerate(outcomes)
    )
    return HostReport(host=host, plan=HostPlan(host=host), results=results, rounds=1, verified=True)


def a_run_of(*hosts: HostReport, interrupted: bool = False) -> RunReport:
    plan = Plan(hosts=tuple(host.plan for host in hosts))
    return RunReport(run_id="r", plan=plan, hosts=hosts, interrupted=interrupted, seconds=90)


def last_line(report: RunReport) -> str:
    return render_run(report).splitlines()[-1]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [80, 120])
def test_a_run_reads_as_its_golden_file(width: int, verbose: bool, golden: Golden) -> None:
    text = render_run(a_run(), width=width, verbose=verbose)
    golden(f"run-mixed-{width}{'-verbose' if verbose else ''}.txt", text)


def test_a_run_without_trouble_is_one_line() -> None:
    assert render_run(a_clean_run()) == "done in 25s: 2 pulled, 2 created; 2 hosts as declared\n"


def test_a_colored_run_marks_what_failed() -> None:
    assert "\x1b[31m✗\x1b[0m \x1b[1mqwen3:32b\x1b[0m on gpu-1" in render_run(a_run(), color=True)


@pytest.mark.parametrize(
    "outcome, line",
    [
        (
            Failed(error="gpu-1: disk full", seconds=3),
            "✗ m0:latest on gpu-1: pull failed after 3.0s: disk full",
        ),
        (Failed(error="no space left"), "✗ m0:latest on gpu-1: pull failed: no space left"),
        (Skipped(because="gpu-1/pull/x failed"), "» m0:latest on gpu-1: pull skipped: gpu-1/pull/x failed"),
        (Refused(because="it has changed"), "! m0:latest on gpu-1: pull refused: it has changed"),
        (Interrupted(), "» m0:latest on gpu-1: pull not started"),
        (Interrupted(started=True), "» m0:latest on gpu-1: pull stopped halfway"),
        (Succeeded(seconds=42), "+ m0:latest on gpu-1: pulled in 42s"),
        (Succeeded(changed=False), "+ m0:latest on gpu-1: pulled, nothing to transfer in 0.0s"),
    ],
)
def test_every_outcome_has_a_line(outcome: Outcome, line: str) -> None:
    assert render_run(a_run_of(a_host_report(outcome)), verbose=True).splitlines()[0] == line


@pytest.mark.parametrize(
    "report, line",
    [
        (a_run_of(a_host_report(Succeeded())), "done in 1m30s: 1 pulled; 1 host as declared"),
        (
            a_run_of(a_host_report(Succeeded(changed=False))),
            "done in 1m30s: nothing was changed; 1 host as declared",
        ),
        (
            a_run_of(a_host_report(Succeeded(), Failed(error="x"))),
            "partly done in 1m30s: 1 pulled, 1 failed; 0 hosts as declared, 1 not",
        ),
        (
            a_run_of(a_host_report(Failed(error="x"), Skipped(because="y"))),
            "failed after 1m30s: 1 failed, 1 skipped; 0 hosts as declared, 1 not",
        ),
        (
            a_run_of(a_host_report(Interrupted()), interrupted=True),
            "interrupted (run again to continue) after 1m30s: 1 interrupted; 0 hosts as declared, 1 not",
        ),
        (
            a_run_of(
                a_host_report(Succeeded()), replace(a_host_report(), unreached=mixed_plan().unreached[0])
            ),
            "partly done in 1m30s: 1 pulled; 1 host as declared, 1 not reached",
        ),
        (
            RunReport(run_id="r", plan=refused_plan(), hosts=()),
            "refused by 1 rule: nothing was changed",
        ),
        (
            RunReport(
                run_id="r",
                plan=in_sync_plan(),
                hosts=tuple(HostReport(host=host.host, plan=host) for host in in_sync_plan().hosts),
            ),
            "nothing to do: 12 models on 2 hosts are as declared",
        ),
    ],
)
def test_the_last_line_says_how_it_ended(report: RunReport, line: str) -> None:
    assert last_line(report) == line


@pytest.mark.parametrize(
    "report, expected",
    [
        (a_host_report(), True),
        (a_host_report(Succeeded()), True),
        (replace(a_host_report(Succeeded()), verified=False), False),
        (replace(a_host_report(), verified=False), True),
        (a_host_report(Succeeded(), Skipped(because="x")), False),
        (replace(a_host_report(Succeeded()), remaining=why("x", "missing")), False),
        (replace(a_host_report(), notes=(Note(host="gpu-1", message="?", unresolved=True),)), False),
        (replace(a_host_report(), notes=(Note(host="gpu-1", message="by the way"),)), True),
        (replace(a_host_report(), unreached=mixed_plan().unreached[0]), False),
    ],
)
def test_a_host_is_as_declared_only_when_that_is_known(report: HostReport, expected: bool) -> None:
    assert report.is_as_declared is expected


def test_a_refused_run_says_which_rule_and_the_way_out() -> None:
    text = render_run(RunReport(run_id="r", plan=refused_plan(), hosts=()))
    assert "! gpu-1: refused by max_change.delete: 5 models to delete, 3 allowed (30 % of 12)" in text
    assert "    hint: raise policy.max_change.delete, or use --force max_change.delete for this run" in text


def test_what_an_outcome_has_told_is_not_told_again_as_a_difference() -> None:
    report = replace(
        a_host_report(Failed(error="x")),
        remaining=(*why("m0", "missing"), *why("m1", "field", "system", "a", "b")),
        rounds=3,
    )
    assert render_run(a_run_of(report)).splitlines()[:-1] == [
        "✗ m0:latest on gpu-1: pull failed: x",
        "! m1:latest on gpu-1: still differs after 3 rounds: system b → a",
    ]


def test_what_worked_on_many_hosts_is_one_line() -> None:
    hosts = tuple(
        replace(
            a_host_report(host=host),
            results=(ActionResult(action=a_create(host=host), outcome=Succeeded(seconds=number)),),
        )
        for number, host in enumerate(("a", "b", "c", "d"))
    )
    line = "+ support-bot:latest on a, b and 2 more: created"
    assert render_run(a_run_of(*hosts), verbose=True).splitlines()[0] == line


@given(st.lists(values_of(HostReport), max_size=2), TEXTS, st.booleans())
def test_any_run_can_be_said_and_no_text_of_it_reaches_the_terminal_raw(
    hosts: list[HostReport], text: str, interrupted: bool
) -> None:
    plan = Plan(hosts=tuple(host.plan for host in hosts))
    report = RunReport(run_id=text, plan=plan, hosts=tuple(hosts), interrupted=interrupted, seconds=1)
    said = render_run(report, verbose=True)
    assert all(sign == "\n" or sign.isprintable() or ord(sign) > 0xFF for sign in said)
    assert said.endswith("\n")
