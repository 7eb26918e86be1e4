"""Plans and runs of staged changes in words: one line for what is one change, and why it did not come to be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ollamaops.events import Failed, Outcome, Skipped, Succeeded
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    Difference,
    HostPlan,
    Kind,
    Note,
    Plan,
    PullModel,
    Recipe,
    VerifyModel,
)
from ollamaops.plan.expectations import Failure, Verdict
from ollamaops.plan.results import ActionResult, HostReport, HostVerdicts, RunReport
from ollamaops.plan.versions import kept_of, next_of
from ollamaops.report.junit import drift_to_junit, verdicts_to_junit
from ollamaops.report.markdown_html import render_plan_html
from ollamaops.report.plan_text import render_plan
from ollamaops.report.run_text import render_run
from ollamaops.report.status_text import render_status
from ollamaops.report.verify_text import render_verdicts, verdicts_to_json

BOT = ModelName.parse("bot")
FIELD = Difference(host="gpu-1", model=BOT, kind="field", path="parameters.seed", desired="2", observed="1")
CREATE = CreateModel(
    host="gpu-1",
    model=BOT,
    recipe=Recipe(base=ModelName.parse("base")),
    aside=next_of(BOT),
    because=(FIELD,),
)
PROBE = VerifyModel(host="gpu-1", model=BOT, at=next_of(BOT))
SWITCH = CopyModel(host="gpu-1", model=BOT, source=next_of(BOT))
BACK = CopyModel(
    host="gpu-1",
    model=BOT,
    source=kept_of(BOT, 1),
    rollback_key="h",
    because=(
        replace(FIELD, kind="content", path="", desired=Digest.of(b"a").hex, observed=Digest.of(b"b").hex),
    ),
)


def why(kind: Kind) -> tuple[Difference, ...]:
    return (Difference(host="gpu-1", model=BOT, kind=kind),)


def plan_of(*actions: Action) -> Plan:
    return Plan(hosts=(HostPlan(host="gpu-1", actions=actions),))


@pytest.mark.parametrize(
    ("actions", "lines"),
    [
        (
            (CREATE, PROBE, SWITCH),
            [
                "~ bot:latest on gpu-1: create (verified before the switch): parameters.seed 1 → 2",
                "0 to pull, 1 to create, 0 to delete, 0 unchanged",
            ],
        ),
        (
            (CREATE, SWITCH),
            [
                "~ bot:latest on gpu-1: create (built beside it, then switched to): parameters.seed 1 → 2",
                "0 to pull, 1 to create, 0 to delete, 0 unchanged",
            ],
        ),
        (
            (
                PullModel(host="gpu-1", model=BOT, verify=True, because=why("missing")),
                replace(PROBE, at=BOT),
            ),
            [
                "+ bot:latest on gpu-1: pull (undone unless it is verified), not there: size not known",
                "1 to pull, 0 to create, 0 to delete, 0 unchanged; ? to download",
            ],
        ),
        (
            (PROBE, CopyModel(host="gpu-1", model=BOT, source=ModelName.parse("x"), because=why("missing"))),
            [
                "→ bot:latest on gpu-1: copy of x:latest (verified before), not there",
                "0 to pull, 0 to create, 1 to copy, 0 to delete, 0 unchanged",
            ],
        ),
        (
            (replace(PROBE, at=BOT, because=why("unverified")),),
            [
                "? bot:latest on gpu-1: verify, not verified yet",
                "0 to pull, 0 to create, 0 to delete, 1 to verify, 0 unchanged",
            ],
        ),
        (
            (BACK,),
            [
                "~ bot:latest on gpu-1: roll back to the previous version: content 3e23e8160039 → ca978112ca1b",
                "0 to pull, 0 to create, 1 to copy, 0 to delete, 0 unchanged",
            ],
        ),
    ],
)
def test_a_staged_change_is_one_line_of_a_plan(actions: tuple[Action, ...], lines: list[str]) -> None:
    assert render_plan(plan_of(*actions)).splitlines() == lines
    assert "bot:latest" in render_plan_html(plan_of(*actions))


def test_a_verbose_plan_shows_every_step() -> None:
    assert render_plan(plan_of(CREATE, PROBE, SWITCH), verbose=True).splitlines()[:-1] == [
        "~ bot:latest on gpu-1: create (verified before the switch): parameters.seed 1 → 2",
        "? bot:latest on gpu-1: verify",
        "→ bot:latest on gpu-1: switch",
    ]


def test_a_status_tells_of_the_change_and_of_what_is_held() -> None:
    held = Plan(hosts=(HostPlan(host="gpu-1", rolled_back=(BOT,)),))
    assert "bot:latest  drifted" in render_status(plan_of(CREATE, PROBE, SWITCH))
    assert "bot:latest  held" in render_status(held)
    assert '<testcase classname="gpu-1" name="bot:latest"></testcase>' in drift_to_junit(held)


def run_of(*ended: tuple[Action, Outcome], notes: tuple[Note, ...] = ()) -> RunReport:
    results = tuple(ActionResult(action=action, outcome=outcome) for action, outcome in ended)
    has_worked = all(isinstance(outcome, Succeeded) for _, outcome in ended)
    plan = HostPlan(host="gpu-1", actions=tuple(action for action, _ in ended))
    remaining = () if has_worked else (FIELD,)
    host = HostReport(
        host="gpu-1",
        plan=plan,
        results=results,
        remaining=remaining,
        notes=notes,
        rounds=1,
        verified=has_worked,
    )
    return RunReport(run_id="r", plan=Plan(hosts=(plan,)), hosts=(host,), seconds=2.0)


DONE = Succeeded(seconds=1.0)
PROVEN = Succeeded(seconds=3.0, changed=False)


def test_a_run_counts_a_switch_as_what_it_completes() -> None:
    report = run_of((CREATE, DONE), (PROBE, PROVEN), (SWITCH, DONE))
    assert render_run(report) == "done in 2.0s: 1 created; 1 host as declared\n"
    assert render_run(report, verbose=True).splitlines()[:-1] == [
        "~ bot:latest on gpu-1: created beside the current version in 1.0s",
        "✓ bot:latest on gpu-1: verified in 3.0s",
        "→ bot:latest on gpu-1: switched to in 1.0s",
    ]


def test_a_run_that_fails_to_verify_has_changed_nothing() -> None:
    failed = Failed(error="gpu-1: 'bot:latest' is not as expected: matches: no", exit_code=5, seconds=3.0)
    report = run_of((CREATE, DONE), (PROBE, failed), (SWITCH, Skipped(because="gpu-1/verify/bot:latest")))
    assert render_run(report).splitlines() == [
        "✗ bot:latest on gpu-1: verify failed after 3.0s: 'bot:latest' is not as expected: matches: no",
        "failed after 2.0s: 1 failed; 0 hosts as declared, 1 not",
    ]


def test_a_run_counts_what_it_rolled_back() -> None:
    report = run_of((BACK, DONE))
    assert render_run(report, verbose=True).splitlines() == [
        "~ bot:latest on gpu-1: rolled back in 1.0s",
        "done in 2.0s: 1 rolled back; 1 host as declared",
    ]


# ollamaops test


def test_what_a_model_said_cannot_act_on_the_terminal_or_the_report() -> None:
    failure = Failure("matches", "no match in 'a\x1b[2J<b>\u202e'")
    hosts = [HostVerdicts(host="gpu-1", verdicts=(Verdict(model=BOT, expectations=1, failures=(failure,)),))]
    text = render_verdicts(hosts)
    assert "\x1b" not in text
    assert "\\x1b[2J<b>\\u202e" in text
    assert "\\x1b[2J&lt;b&gt;" in verdicts_to_junit(hosts)
    assert verdicts_to_json(hosts)["passed"] is False


def test_a_verdict_says_what_was_measured() -> None:
    verdict = Verdict(model=BOT, expectations=2, load_s=3.21, tokens_per_s=41.26)
    slow = replace(verdict, tokens_per_s=None, expectations=1)
    hosts = [HostVerdicts(host="a", verdicts=(verdict,)), HostVerdicts(host="b", verdicts=(slow,))]
    assert render_verdicts(hosts).splitlines() == [
        "✓ bot:latest on a: 2 expectations met; loaded in 3.2s, 41 tokens a second",
        "✓ bot:latest on b: 1 expectation met; loaded in 3.2s",
        "2 models tested on 2 hosts: 2 passed",
    ]
