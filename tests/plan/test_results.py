"""How runs and plans add up."""

from __future__ import annotations

from ollamaops.events import Failed, Interrupted, Refused, Skipped, Succeeded
from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    DeleteModel,
    Difference,
    HostPlan,
    Note,
    Plan,
    PullModel,
    Refusal,
    VerifyModel,
    id_of,
)
from ollamaops.plan.results import (
    ActionResult,
    HostReport,
    RunReport,
    as_verdict,
    code_of_drift,
    code_of_plan,
    count_outcomes,
)

DELETE = DeleteModel(host="h", model=ModelName.parse("a"))
OUTCOMES = (
    Succeeded(),
    Succeeded(changed=False),
    Failed(error="e"),
    Skipped(because="b"),
    Refused(because="b"),
    Interrupted(),
)


def test_outcomes_are_counted_by_kind_and_absent_kinds_are_zero() -> None:
    results = tuple(ActionResult(action=DELETE, outcome=outcome) for outcome in OUTCOMES)
    expected = {"succeeded": 2, "failed": 1, "skipped": 1, "refused": 1, "interrupted": 1}
    assert count_outcomes(results) == expected
    assert count_outcomes(()) == dict.fromkeys(expected, 0)


def test_a_run_lists_the_results_of_all_hosts_in_order() -> None:
    one, other = (ActionResult(action=DELETE, outcome=outcome) for outcome in OUTCOMES[:2])
    hosts = (
        HostReport(host="a", plan=HostPlan(host="a"), results=(one,)),
        HostReport(host="b", plan=HostPlan(host="b"), results=(other, one)),
    )
    assert RunReport(run_id="r", plan=Plan(hosts=()), hosts=hosts).results == (one, other, one)


def test_a_plan_sums_up_its_hosts() -> None:
    said = Refusal(rule="protect", host="a", message="m", hint="h")
    open_note, note = (Note(host="b", message="m", unresolved=unresolved) for unresolved in (True, False))
    plan = Plan(
        hosts=(
            HostPlan(host="a", actions=(DELETE,), refusals=(said,)),
            HostPlan(host="b", actions=(DELETE,), notes=(note, open_note)),
        )
    )
    assert plan.actions == (DELETE, DELETE)
    assert plan.refusals == (said,)
    assert plan.unresolved == (open_note,)


def test_a_pull_that_only_finds_out_is_unknown_and_no_drift_of_what_stands() -> None:
    name = ModelName.parse("a")
    why = (Difference(host="h", model=name, kind="unknown"),)
    check = PullModel(host="h", model=name, because=why)
    proof = VerifyModel(host="h", model=name, at=name, needs=(id_of(check),))
    unknown = HostPlan(host="h", actions=(check, proof))
    stands = HostPlan(host="h", actions=(check, proof, DELETE), unchanged=(name,))

    assert as_verdict(unknown) == unknown
    assert (code_of_drift(Plan(hosts=(unknown,))), code_of_plan(Plan(hosts=(unknown,)), detailed=True)) == (
        3,
        0,
    )
    assert as_verdict(stands).actions == (DELETE,)
    assert code_of_drift(Plan(hosts=(as_verdict(stands),))) == 2


def test_what_no_action_mends_is_drift_and_leaves_a_run_partial() -> None:
    name = ModelName.parse("a")
    found = Difference(host="h", model=name, kind="template", desired="t", observed="other")
    note = Note(host="h", model=name, message="m", lasting=(found,))
    plan = Plan(hosts=(HostPlan(host="h", notes=(note,)),))
    report = HostReport(host="h", plan=plan.hosts[0], notes=(note,), verified=True)

    assert plan.lasting == (note,)
    assert (code_of_drift(plan), code_of_drift(plan, detailed=False), code_of_plan(plan)) == (2, 0, 3)
    assert not report.is_as_declared
    assert RunReport(run_id="r", plan=plan, hosts=(report,)).exit_code == 3
