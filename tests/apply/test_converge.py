"""Applying on several hosts, being stopped, failing halfway, looking again: what is done, told and reported."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    VERSIONS,
    WEIGHTS,
    LiveHost,
    a_build,
    a_copy,
    a_host,
    a_model,
    an_absence,
    assert_converged,
    failures,
    name,
    small_manifest,
)
from msgspec.structs import replace
from recording_proxy import Request

from ollamaops.changes import apply_tasks
from ollamaops.engine import build_tasks, check_facts, plan_tasks
from ollamaops.errors import Cancelled, RefusedError, StateError, UsageError, WeightsError
from ollamaops.events import (
    ActionEnded,
    ActionStarted,
    Event,
    HostObserved,
    HostUnreached,
    Interrupted,
    Progressed,
    RoundEnded,
    Skipped,
    Succeeded,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import Build, HostSpec, Limit, Manifest, ModelSpec, Policy, WeightsFile
from ollamaops.names import Digest, NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import Plan, id_of
from ollamaops.state.ledger import Ledger

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)


# several hosts


def _dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_host_is_unreached_and_the_others_are_done(newest: LiveHost) -> None:
    dead = HostSpec(name="gpu-0", url=_dead_url(), timeout_s=2)
    models = (a_model(BASE), a_model("bot", a_build(BASE, system="be kind")))
    manifest = Manifest(root=WEIGHTS, files=(), hosts=(dead, newest.spec), models=models)
    tasks = build_tasks(manifest, manifest.hosts, {})
    with newest.opened() as run:
        plan = plan_tasks(tasks, run)
        assert [(each.host, "refused" in each.error) for each in plan.unreached] == [("gpu-0", True)]
        assert [each.host for each in plan.hosts] == ["gpu-1"]
        report = apply_tasks(plan, tasks, run)
        assert plan_tasks(tasks, run).actions == ()
    assert [each.host for each in report.hosts] == ["gpu-1"]
    assert_converged(newest, report.hosts[0])
    assert {event.host for event in newest.events if isinstance(event, HostUnreached)} == {"gpu-0"}


def test_hosts_are_worked_on_in_parallel_and_each_is_as_declared() -> None:
    models = (a_model(BASE), a_model("bot", a_build(BASE, system="be kind")))
    options = RunOptions(costs=False, jobs=2)
    with a_host("0.3.4", options=options) as old, a_host("0.33.0-rc2") as new, old.opened() as run:
        hosts = tuple(
            HostSpec(name=host_name, url=host.sandbox.url) for host_name, host in (("old", old), ("new", new))
        )
        manifest = Manifest(root=WEIGHTS, files=(), hosts=hosts, models=models)
        tasks = build_tasks(manifest, hosts, {})
        report = apply_tasks(plan_tasks(tasks, run), tasks, run)
        assert [(host.host, host.verified) for host in report.hosts] == [("old", True), ("new", True)]
        assert {"bot:latest", BASE} == old.stranger.tags().keys() == new.stranger.tags().keys()


def test_a_host_that_goes_away_before_the_apply_has_an_outcome_for_every_action(newest: LiveHost) -> None:
    models = [a_model(BASE), a_model("bot", a_build(BASE, system="be kind"))]
    tasks = newest.tasks(models)
    with newest.opened() as run:
        plan = plan_tasks(tasks, run)

        def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
            raise UsageError(f"{spec.name}: the environment variable TOKEN is not set")

        report = apply_tasks(plan, tasks, replace(run, open_client=refuse)).hosts[0]
    assert report.unreached is not None
    assert "TOKEN" in report.unreached.error
    assert [result.outcome for result in report.results] == [Skipped(because="the host was not reached")] * 2
    assert not report.verified


def test_a_host_whose_secret_cannot_be_read_is_unreached_and_not_the_end_of_the_plan(
    newest: LiveHost,
) -> None:
    with newest.opened() as run:

        def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
            raise UsageError(f"{spec.name}: the environment variable TOKEN is not set", hint="export TOKEN=…")

        plan = plan_tasks(newest.tasks([a_model(BASE)]), replace(run, open_client=refuse))
    assert [(each.host, each.hint) for each in plan.unreached] == [("gpu-1", "export TOKEN=…")]


def test_a_server_that_only_answers_errors_after_the_work_leaves_the_results_in_the_report(
    newest: LiveHost,
) -> None:
    def break_down(event: Event) -> None:
        if isinstance(event, ActionEnded):
            newest.proxy.before = _go_away

    newest.emit = break_down
    report = newest.apply([a_model(BASE)])
    assert report.unreached is not None
    assert [result.outcome for result in report.results] == [Succeeded(seconds=_seconds(report.results[0]))]
    assert not report.verified


def _go_away(_: Request) -> None:
    raise ConnectionAbortedError


def _seconds(result: object) -> float:
    outcome = getattr(result, "outcome", None)
    assert isinstance(outcome, Succeeded), outcome
    return outcome.seconds


def test_only_the_first_host_that_has_a_model_pushes_it() -> None:
    pushed = a_model("bot", a_build(BASE), push=name("localhost:5000/me/bot"))
    hosts = tuple(HostSpec(name=f"gpu-{number}", url="http://127.0.0.1:1") for number in range(3))
    manifest = Manifest(root=WEIGHTS, files=(), hosts=hosts, models=(pushed,))
    tasks = build_tasks(manifest, hosts, {})
    assert [task.pushes for task in tasks] == [{pushed.name}, frozenset(), frozenset()]


def test_without_hosts_there_is_nothing_to_plan_or_do(newest: LiveHost) -> None:
    with newest.opened() as run:
        plan = plan_tasks((), run)
        report = apply_tasks(plan, (), run)
    assert (plan.hosts, plan.unreached, report.hosts, report.run_id) == ((), (), (), "run")


def test_a_case_and_its_report_can_be_sent_to_another_process(newest: LiveHost) -> None:
    models = small_manifest()
    [task] = newest.tasks(models)
    report = newest.apply(models)
    assert pickle.loads(pickle.dumps(task)) == task
    assert pickle.loads(pickle.dumps(report)) == report


# when things go wrong


@every_version
def test_a_failing_pull_aborts_no_neighbour(host: LiveHost) -> None:
    models = [
        a_model("no-such-model:1b", retries=0),
        a_model("from-nothing", a_build("no-such-model:1b")),
        a_model(BASE),
        a_model("bot", a_build(BASE, system="be kind")),
    ]
    report = host.apply(models)
    wrong = failures(report)
    assert wrong.keys() == {"pull/no-such-model:1b", "create/from-nothing:latest"}
    assert "the registry has no such model or tag" in wrong["pull/no-such-model:1b"]
    assert "gpu-1/pull/no-such-model:1b" in wrong["create/from-nothing:latest"]
    assert host.stranger.tags().keys() == {BASE, "bot:latest"}
    assert {difference.model for difference in report.remaining} == {models[0].name, models[1].name}
    assert (report.verified, report.rounds) == (False, 1)


@every_version
def test_a_model_that_somebody_else_changed_since_the_plan_is_not_touched(host: LiveHost) -> None:
    assert_converged(host, host.apply(small_manifest()))
    stranger = host.stranger
    stranger.create("bot", "bot", system="drifted")
    tasks = host.tasks(small_manifest())
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        drifted = stranger.tags()["bot:latest"]
        stranger.create("bot", "bot", system="and again")
        changed = stranger.tags()
        report = apply_tasks(plan, tasks, run).hosts[0]
    wrong = failures(report)
    was, is_now = drifted[:12], changed["bot:latest"][:12]
    assert (
        f"'bot:latest' changed since the plan was made: it was {was}, now it is {is_now}"
        in (wrong["create/bot:latest"])
    )
    assert "plan again" in wrong["create/bot:latest"]
    assert stranger.tags() == changed
    assert_converged(host, host.apply(small_manifest()))


def _saved(host: LiveHost, models: list[ModelSpec]) -> Plan:
    with host.opened() as run:
        plan = plan_tasks(host.tasks(models), run)
    return replace(plan, kind="saved", made_from={"declaration": "x"})


def test_a_saved_plan_is_refused_when_a_fact_has_changed_and_names_it(newest: LiveHost) -> None:
    newest.stranger.pull(BASE)
    models = [a_model("bot", a_build(BASE, system="be kind")), a_model("chat", a_copy(BASE))]
    plan = _saved(newest, models)
    with newest.opened() as run:
        assert check_facts(plan, newest.tasks(models), run) is not None
        was = newest.stranger.tags()[BASE][:12]
        newest.stranger.pull("all-minilm")
        newest.stranger.copy("all-minilm", BASE)
        newest.stranger.copy(BASE, "chat")
        now = newest.stranger.tags()[BASE][:12]
        with pytest.raises(RefusedError) as caught:
            check_facts(plan, newest.tasks(models), run)
    assert str(caught.value) == (
        f"the plan no longer fits: '{BASE}' on gpu-1 was {was}, now it is {now}; "
        f"'chat:latest' on gpu-1 was not there, now it is {now}"
    ) or "'chat:latest' on gpu-1 was not there" in str(caught.value)
    assert caught.value.hint == "plan again"


def test_a_saved_plan_goes_on_without_the_hosts_that_do_not_answer_now(newest: LiveHost) -> None:
    plan = _saved(newest, [a_model(BASE)])
    gone = replace(
        newest.tasks([a_model(BASE)])[0], spec=HostSpec(name="gpu-1", url=_dead_url(), timeout_s=2)
    )
    with newest.opened() as run:
        checked = check_facts(plan, (gone,), run)
    assert checked.hosts == ()
    assert [each.host for each in checked.unreached] == ["gpu-1"]


def test_checking_facts_can_be_stopped(newest: LiveHost) -> None:
    plan = _saved(newest, [a_model(BASE)])
    with newest.opened() as run:
        newest.cancel.cancel()
        with pytest.raises(Cancelled):
            check_facts(plan, newest.tasks([a_model(BASE)]), run)


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_saved_plan_is_carried_out_exactly_and_any_other_is_mended_further(
    newest: LiveHost, is_saved: bool
) -> None:
    """While the plan is carried out, somebody deletes a model that was fine when the plan was made."""
    stranger = newest.stranger
    fine = a_model("fine", a_copy(BASE))
    assert_converged(newest, newest.apply([a_model(BASE), fine]))
    models = [a_model(BASE), fine, a_model("bot", a_build(BASE, system="be kind"))]
    plan = _saved(newest, models)
    plan = plan if is_saved else replace(plan, kind="fresh")

    def meddle(event: Event) -> None:
        if isinstance(event, ActionEnded) and event.action_id.endswith("bot:latest"):
            stranger.delete("fine")

    newest.emit = meddle
    report = newest.carry_out(plan, newest.tasks(models))
    assert ("fine:latest" in stranger.tags()) is not is_saved
    assert report.verified is not is_saved
    assert [str(each.model) for each in report.remaining] == (["fine:latest"] if is_saved else [])
    assert report.rounds == (1 if is_saved else 2)


def test_what_never_converges_ends_after_one_try_and_is_named(newest: LiveHost) -> None:
    """Somebody changes the model back whenever it has been made."""
    stranger = newest.stranger
    stranger.pull(BASE)

    def meddle(event: Event) -> None:
        if isinstance(event, ActionEnded):
            stranger.create("bot", BASE, system="mine!")

    newest.emit = meddle
    report = newest.apply([a_model("bot", a_build(BASE, system="be kind"))])
    assert failures(report) == {}
    assert [(each.path, each.observed) for each in report.remaining] == [("system", "mine!")]
    assert (report.verified, report.rounds, len(report.results)) == (False, 1, 1)


def test_a_last_look_that_fails_loses_no_result(newest: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [a_model(BASE), a_model("legal", a_build(None, "tiny-a.gguf"))]
    tasks = newest.tasks(models)
    with newest.opened() as run:
        plan = plan_tasks(tasks, run)

        class Broken(Ledger):
            def load_pushes(self, host: str) -> dict[tuple[str, str], tuple[str, ...]]:
                raise StateError("the ledger is damaged", hint="delete it")

        report = apply_tasks(plan, tasks, replace(run, ledger=Broken(newest.state))).hosts[0]
    assert failures(report) == {}
    assert len(report.results) == 3
    assert not report.verified
    assert [(note.message, note.hint, note.unresolved) for note in report.notes] == [
        ("the last look failed: the ledger is damaged", "delete it", True)
    ]


def test_weights_that_are_cut_short_are_refused_before_anything_is_sent(
    newest: LiveHost, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes()[:-5000])
    models = [a_model("legal", Build(files=(WeightsFile(cut, "cut.gguf"),)))]
    with pytest.raises(WeightsError, match="cut short: 5000 of 114880 bytes are missing"):
        newest.plan(models)
    assert not any("blobs" in line for line in newest.proxy.lines())


def test_a_stop_during_the_last_look_is_an_interruption_with_all_results(newest: LiveHost) -> None:
    newest.cancel = CancelToken()

    def stop(event: Event) -> None:
        if isinstance(event, HostObserved) and event.models == 1:
            newest.cancel.cancel()

    newest.emit = stop
    report = newest.run([a_model(BASE)])
    assert report.interrupted
    assert failures(report.hosts[0]) == {}
    assert len(report.results) == 1


BOUNDARY_VERSIONS = ("0.3.4", "0.12.11", "0.33.0-rc2")


@in_turn("version")
@pytest.mark.parametrize("version", BOUNDARY_VERSIONS)
@pytest.mark.parametrize("when", [ActionStarted, ActionEnded], ids=["as it starts", "when it has ended"])
@pytest.mark.parametrize("boundary", range(1, 9))
def test_a_run_that_is_stopped_at_any_boundary_is_finished_by_the_next(
    host: LiveHost, when: type[Event], boundary: int
) -> None:
    stranger, absent = host.stranger, [an_absence("old-bot:*")]
    stranger.pull("all-minilm")
    for copy in ("old-bot:v1", "old-name", "theirs", "bot"):
        stranger.copy("all-minilm", copy)
    models = [*small_manifest(), a_model("renamed", moved_from=name("old-name"))]
    theirs = {"theirs:latest", "all-minilm:latest"}
    before = {model: digest for model, digest in stranger.tags().items() if model in theirs}
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, when)
        if seen == boundary:
            host.cancel.cancel()

    host.emit, host.cancel, host.parallel = stop, CancelToken(), 1
    first = host.run(models, absent)
    assert first.interrupted
    assert {str(model) for model in before} <= stranger.tags().keys()
    assert any(isinstance(result.outcome, Interrupted) for result in first.results) or seen == boundary

    host.emit, host.cancel = None, CancelToken()
    assert_converged(host, host.apply(models, absent))
    assert host.plan(models, absent).actions == ()
    after = stranger.tags()
    assert before.items() <= after.items()
    assert after.keys() == theirs | {BASE, "bot:latest", "legal:latest", "chat:latest", "renamed:latest"}


# what is told and what it costs


def test_a_blob_that_several_models_need_is_sent_once(newest: LiveHost) -> None:
    models = [
        a_model(f"legal-{number}", a_build(None, "tiny-a.gguf", system=str(number))) for number in range(3)
    ]
    assert_converged(newest, newest.apply(models))
    uploads = [line for line in newest.proxy.lines() if line.startswith("POST /api/blobs/")]
    assert len(uploads) == 1


def test_nothing_is_sent_that_is_there_already(newest: LiveHost) -> None:
    newest.stranger.create_from_file("theirs", "tiny-a.gguf")
    newest.proxy.seen.clear()
    report = newest.apply([a_model("legal", a_build(None, "tiny-a.gguf"))])
    assert_converged(newest, report)
    assert not any(line.startswith("POST /api/blobs/") for line in newest.proxy.lines())
    assert not getattr(report.results[0].outcome, "changed", True)


@every_version
def test_progress_is_told_layer_by_layer(host: LiveHost) -> None:
    assert_converged(host, host.apply([a_model(BASE), a_model("legal", a_build(None, "tiny-a.gguf"))]))
    digest = Digest.of((WEIGHTS / "tiny-a.gguf").read_bytes())
    size = (WEIGHTS / "tiny-a.gguf").stat().st_size
    moved = [event for event in host.events if isinstance(event, Progressed) and event.layer]
    sent = [event for event in moved if event.action_id == f"gpu-1/upload/sha256:{digest.short}"]
    assert {event.layer for event in sent} == {digest.short}
    assert {event.total_bytes for event in sent} == {size}
    assert sent[-1].completed_bytes == size
    assert [event.completed_bytes for event in sent] == sorted(event.completed_bytes for event in sent)
    assert any(event.action_id == f"gpu-1/pull/{BASE}" and event.total_bytes for event in moved)


def test_every_action_is_told_from_its_start_to_its_end_and_every_round(newest: LiveHost) -> None:
    report = newest.apply(small_manifest())
    began = [event.action_id for event in newest.events if isinstance(event, ActionStarted)]
    ended = {event.action_id: event.outcome for event in newest.events if isinstance(event, ActionEnded)}
    assert sorted(began) == sorted(ended)
    assert ended == {id_of(result.action): result.outcome for result in report.results}
    assert [event.remaining for event in newest.events if isinstance(event, RoundEnded)] == [()]
    looks = [event for event in newest.events if isinstance(event, HostObserved)]
    assert [(event.version, event.models) for event in looks] == [("0.33.0-rc2", 0), ("0.33.0-rc2", 4)]


def test_with_targets_only_they_and_what_they_need_are_done(newest: LiveHost) -> None:
    newest.targets = (NamePattern.parse("bot"),)
    newest.stranger.pull("all-minilm")
    newest.stranger.copy("all-minilm", "gone:1-ollamaops-previous")
    assert_converged(newest, newest.apply(small_manifest()))
    assert {BASE, "bot:latest"} < newest.stranger.tags().keys()
    assert "legal:latest" not in newest.stranger.tags()
    assert "gone:1-ollamaops-previous" in newest.stranger.tags()  # a full run will settle it


def test_a_plan_that_a_rule_refuses_says_so_and_force_lifts_it(newest: LiveHost) -> None:
    newest.stranger.pull(BASE)
    newest.policy = Policy(prune=(NamePattern.parse("*"),), max_delete=Limit(count=0))
    assert [refusal.rule for refusal in newest.plan([a_model("bot", a_build(BASE))]).refusals] == []
    refused = newest.plan([a_model("all-minilm")])
    assert [refusal.rule for refusal in refused.refusals] == ["max_change.delete"]
    newest.options = RunOptions(costs=False, force=frozenset({"max_change.delete"}))
    assert newest.plan([a_model("all-minilm")]).refusals == ()
    newest.options = RunOptions(costs=False, guarded=False)
    assert newest.plan([a_model("all-minilm")]).refusals == ()
