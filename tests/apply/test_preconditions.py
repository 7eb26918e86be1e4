"""Windows and models in use, on hosts: nothing begins when it may not, and what has begun is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
import requests
from breadth import in_turn
from live_host import (
    BASE,
    LiveHost,
    NoWaitToken,
    a_build,
    a_host,
    a_model,
    an_absence,
    assert_converged,
    failures,
    name,
)
from msgspec.structs import replace
from patience import PATIENCE_S

from ollamaops.apply.perform import LOOKS_AT_BUSY
from ollamaops.apply.plan_host import judge_again
from ollamaops.changes import apply_tasks
from ollamaops.engine import check_facts, plan_tasks
from ollamaops.errors import Cancelled, ConnectError
from ollamaops.events import Progressed
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import AbsentSpec, HostSpec, ModelSpec, Policy, Window
from ollamaops.observe.run import Run, RunOptions
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import Plan, UnreachedHost
from ollamaops.plan.results import HostReport

pytestmark = in_turn("host")

VERSIONS = ("0.3.4", "0.5.7", "0.12.11", "0.33.0-rc2")
SATURDAY_NIGHT = Window(days=("sat",), begins_minute=22 * 60, ends_minute=6 * 60, timezone="Europe/Paris")
OPEN, CLOSED = "2026-11-28T23:00:00.000Z", "2026-11-29T05:00:00.000Z"
CLOSED_WORDS = (
    "the maintenance window has closed",
    "run again when the next one opens: sat 22:00 (Europe/Paris)",
)


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as host:
        yield host


@pytest.fixture
def newest() -> Iterator[LiveHost]:
    with a_host() as host:
        yield host


class Clock:
    """Says what it is told to."""

    def __init__(self, now: str) -> None:
        self.now = now

    def __call__(self) -> str:
        return self.now


def planned(host: LiveHost, run: Run, models: Sequence[ModelSpec]) -> Plan:
    return plan_tasks(host.tasks(models), run)


def apply(
    host: LiveHost, models: Sequence[ModelSpec], clock: Clock, absent: Sequence[AbsentSpec] = ()
) -> HostReport:
    """Plan while the window is open, and carry it out by this clock."""
    tasks = host.tasks(models, absent)
    with host.opened() as run:
        plan = plan_tasks(tasks, replace(run, now=Clock(OPEN)))
        assert plan.refusals == ()
        return apply_tasks(plan, tasks, replace(run, now=clock)).hosts[0]


def load(host: LiveHost, model: str) -> None:
    body = {"model": model, "keep_alive": -1}
    requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S).raise_for_status()


def unload(host: LiveHost, model: str) -> None:
    body = {"model": model, "keep_alive": 0}
    requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S).raise_for_status()


def ps_asked(host: LiveHost) -> int:
    return host.proxy.lines().count("GET /api/ps")


BOT = a_model("bot", a_build(BASE, system="new"))


def with_old_bot(host: LiveHost) -> list[ModelSpec]:
    host.stranger.pull(BASE)
    host.stranger.create("bot", BASE, system="old")
    return [a_model(BASE), BOT]


# windows


def test_outside_of_the_window_a_plan_is_refused_and_within_it_is_not(newest: LiveHost) -> None:
    newest.policy = Policy(windows=(SATURDAY_NIGHT,))
    with newest.opened() as run:
        refused = planned(newest, replace(run, now=Clock(CLOSED)), [a_model(BASE)])
        agreed = planned(newest, replace(run, now=Clock(OPEN)), [a_model(BASE)])
    said = (
        "no maintenance window is open: it is sun 06:00 (Europe/Paris), "
        "the next one opens sat 22:00 (Europe/Paris); changes that wait: 1"
    )
    assert [(refusal.rule, refusal.message) for refusal in refused.refusals] == [("windows", said)]
    assert agreed.refusals == ()


def test_nothing_begins_once_the_window_has_closed(newest: LiveHost) -> None:
    newest.policy = Policy(windows=(SATURDAY_NIGHT,))
    report = apply(newest, [a_model(BASE), a_model("qwen3:0.6b")], Clock(CLOSED))
    assert {(result.outcome.because, result.outcome.hint) for result in report.results} == {CLOSED_WORDS}  # type: ignore[union-attr]  # refused, or the test fails
    assert newest.stranger.tags() == {}


def test_a_pull_that_runs_finishes_when_the_window_closes_and_what_needs_it_does_not_begin(
    newest: LiveHost,
) -> None:
    newest.policy = Policy(windows=(SATURDAY_NIGHT,))
    clock = Clock(OPEN)

    def close(event: object) -> None:
        if isinstance(event, Progressed):
            clock.now = CLOSED

    newest.emit = close
    report = apply(newest, [a_model(BASE), BOT], clock)
    assert set(newest.stranger.tags()) == {BASE}
    assert list(failures(report)) == ["create/bot:latest"]


def test_a_forced_run_needs_no_window(newest: LiveHost) -> None:
    newest.policy = Policy(windows=(SATURDAY_NIGHT,))
    newest.options = RunOptions(costs=False, force=frozenset({"windows"}))
    report = apply(newest, [a_model(BASE)], Clock(CLOSED))
    assert report.verified


def test_a_plan_saved_outside_of_the_window_can_be_carried_out_within_it(newest: LiveHost) -> None:
    newest.policy = Policy(windows=(SATURDAY_NIGHT,))
    tasks = newest.tasks([a_model(BASE)])
    with newest.opened() as run:
        by_day = replace(run, now=Clock(CLOSED))
        saved = plan_tasks(tasks, by_day)
        assert [refusal.rule for refusal in check_facts(saved, tasks, by_day).refusals] == ["windows"]
        by_night = replace(run, now=Clock(OPEN))
        assert check_facts(saved, tasks, by_night).refusals == ()
        saved_by_night = plan_tasks(tasks, by_night)
        assert [refusal.rule for refusal in check_facts(saved_by_night, tasks, by_day).refusals] == [
            "windows"
        ]


# models in use


def test_what_is_loaded_is_asked_only_when_a_rule_needs_it(newest: LiveHost) -> None:
    models = with_old_bot(newest)
    asked = []
    for policy in (Policy(), Policy(busy="force"), Policy(busy="wait"), Policy(busy="refuse")):
        newest.policy = policy
        newest.plan(models)
        asked.append(ps_asked(newest))
    assert asked == [0, 0, 0, 1]
    newest.plan([a_model(BASE)])
    newest.plan([a_model(BASE), a_model("new", a_build(BASE, system="s"))])
    assert ps_asked(newest) == 1


def test_a_loaded_model_is_not_replaced_with_refuse(host: LiveHost) -> None:
    host.policy = Policy(busy="refuse")
    models = with_old_bot(host)
    load(host, "bot")
    said = "'bot:latest' is loaded right now, and this plan would delete or replace it"
    assert [(each.rule, each.message) for each in host.plan(models).refusals] == [("busy", said)]
    host.options = RunOptions(costs=False, force=frozenset({"busy"}))
    assert host.plan(models).refusals == ()
    host.options = RunOptions(costs=False)
    unload(host, "bot")
    host.cancel.wait(0)
    assert host.apply(models).verified


@pytest.mark.parametrize("busy", ["refuse", "wait"])
def test_being_in_memory_is_no_sign_of_use_for_what_is_declared_to_be_there(
    host: LiveHost, busy: Literal["refuse", "wait"]
) -> None:
    host.policy = Policy(busy=busy)
    for text in ("one", "two"):
        bot = a_model("bot", a_build(BASE, system=text), resident=True)
        assert_converged(host, host.apply([a_model(BASE), bot]))
        assert host.stranger.show("bot")["system"] == text
    renamed = a_model("helper", a_build(BASE, system="two"), resident=True, moved_from=name("bot"))
    assert_converged(host, host.apply([a_model(BASE), renamed]))
    assert host.stranger.tags().keys() == {BASE, "helper:latest"}


def test_a_saved_plan_is_refused_when_its_model_has_been_loaded_since(newest: LiveHost) -> None:
    newest.policy = Policy(busy="refuse")
    tasks = newest.tasks(with_old_bot(newest))
    with newest.opened() as run:
        plan = plan_tasks(tasks, run)
        load(newest, "bot")
        assert [refusal.rule for refusal in check_facts(plan, tasks, run).refusals] == ["busy"]


def test_with_wait_a_model_is_replaced_as_soon_as_it_is_idle(host: LiveHost) -> None:
    host.policy = Policy(busy="wait")
    models = with_old_bot(host)
    load(host, "bot")

    class Patient(NoWaitToken):
        """The model becomes idle while it is waited for the third time."""

        def wait(self, timeout: float | None = None) -> bool:
            if len(self.waits) == 2:
                unload(host, "bot")
            return super().wait(timeout)

    host.cancel = Patient()
    report = host.apply(models)
    assert report.verified
    assert ps_asked(host) >= 3
    assert host.stranger.show("bot")["system"] == "new"


def test_with_wait_a_model_that_stays_in_use_stays_as_it_is(newest: LiveHost) -> None:
    newest.policy = Policy(busy="wait")
    models = with_old_bot(newest)
    load(newest, "bot")
    report = newest.apply(models)
    (outcome,) = failures(report).values()
    assert "'bot:latest' is in use, and was so for 600 s" in outcome
    assert ps_asked(newest) == LOOKS_AT_BUSY
    assert newest.stranger.show("bot")["system"] == "old"


def test_with_wait_a_deletion_waits_too_and_a_new_model_does_not(newest: LiveHost) -> None:
    newest.policy = Policy(busy="wait")
    with_old_bot(newest)
    load(newest, "bot")
    report = newest.run([a_model("fresh", a_build(BASE, system="s"))], [an_absence("bot")]).hosts[0]
    assert list(failures(report)) == ["delete/bot:latest"]


def test_waiting_for_a_model_can_be_interrupted(newest: LiveHost) -> None:
    newest.policy = Policy(busy="wait")
    models = with_old_bot(newest)
    load(newest, "bot")

    class Impatient(NoWaitToken):
        def wait(self, timeout: float | None = None) -> bool:
            self.cancel()
            return True

    newest.cancel = Impatient()
    report = newest.apply(models)
    assert [str(outcome) for outcome in failures(report).values()] == ["Interrupted(started=True)"]


@pytest.mark.parametrize("busy", [None, "force"])
def test_without_a_rule_nobody_waits(newest: LiveHost, busy: str | None) -> None:
    newest.policy = Policy(busy=busy)  # type: ignore[arg-type]  # one of the literals
    models = with_old_bot(newest)
    load(newest, "bot")
    assert newest.apply(models).verified


# hosts that do not answer just then


def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
    raise ConnectError("gpu-1: nobody answers", host="gpu-1")


def interrupt(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
    raise Cancelled("stopped")


def test_a_host_that_does_not_say_what_is_loaded_is_unreached(newest: LiveHost) -> None:
    newest.policy = Policy(busy="refuse")
    tasks = newest.tasks(with_old_bot(newest))
    newest.proxy.edit = lambda request, body: b"<html>" if request.path == "/api/ps" else body
    with newest.opened() as run:
        plan = plan_tasks(tasks, run)
    assert (plan.hosts, [each.host for each in plan.unreached]) == ((), ["gpu-1"])


def test_judging_a_saved_plan_again_needs_the_host_only_for_changes_and_rules_of_the_moment(
    newest: LiveHost,
) -> None:
    newest.policy = Policy(windows=(Window(),))
    (task,) = newest.tasks([a_model(BASE)])
    with newest.opened() as run:
        (plan,) = plan_tasks([task], run).hosts
        lost = judge_again(task, plan, replace(run, open_client=refuse))
        assert isinstance(lost, UnreachedHost)
        assert lost.error == "gpu-1: nobody answers"
        with pytest.raises(Cancelled):
            judge_again(task, plan, replace(run, open_client=interrupt))
        free = replace(task, policy=Policy())
        assert isinstance(judge_again(free, plan, replace(run, open_client=refuse)), UnreachedHost)
        idle = replace(plan, actions=())
        assert judge_again(free, idle, replace(run, open_client=refuse)) == idle
