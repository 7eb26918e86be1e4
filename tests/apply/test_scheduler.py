"""Doing actions in a good order: what may run at once, what waits, what is skipped, and that it always ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S

from ollamaops.apply.scheduler import execute
from ollamaops.events import Failed, Interrupted, Outcome, Skipped, Succeeded
from ollamaops.http.cancel import CancelToken
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    PullModel,
    PushModel,
    Recipe,
    UploadBlob,
    id_of,
)
from ollamaops.plan.results import ActionResult

N = ModelName.parse


def pull(name: str, *needs: str) -> Action:
    return PullModel(host="h", model=N(name), needs=needs)


def upload(name: str, content: str = "", *needs: str) -> Action:
    digest = Digest.of((content or name).encode())
    return UploadBlob(host="h", model=N(name), digest=digest, path="/x", size_bytes=1, needs=needs)


def create(name: str, *needs: str) -> Action:
    return CreateModel(host="h", model=N(name), recipe=Recipe(), needs=needs)


def copy(name: str, *needs: str) -> Action:
    return CopyModel(host="h", model=N(name), source=N("source"), needs=needs)


def delete(name: str, *needs: str) -> Action:
    return DeleteModel(host="h", model=N(name), needs=needs)


def push(name: str, *needs: str) -> Action:
    return PushModel(host="h", model=N(name), source=N("source"), needs=needs)


class Stage:
    """Where actions act: knows who runs, in which order they began, and lets them end when told."""

    def __init__(self, outcomes: dict[str, Outcome] | None = None) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.running: set[str] = set()
        self.companions: dict[str, set[str]] = {}
        self._outcomes = outcomes or {}
        self._lock = threading.Lock()

    def act(self, action: Action) -> Outcome:
        action_id = id_of(action)
        with self._lock:
            self.began.append(action_id)
            for other in self.running:
                self.companions.setdefault(other, set()).add(action_id)
            self.companions.setdefault(action_id, set()).update(self.running)
            self.running.add(action_id)
        try:
            return self.play(action)
        finally:
            with self._lock:
                self.running.discard(action_id)
                self.ended.append(action_id)

    def play(self, action: Action) -> Outcome:
        return self._outcomes.get(id_of(action), Succeeded())


class Together(Stage):
    """Nobody ends before `count` run at the same time; fails when they never do."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(count, timeout=PATIENCE_S)

    def play(self, action: Action) -> Outcome:
        self._barrier.wait()
        return Succeeded()


def run(actions: Iterable[Action], do: Callable[[Action], Outcome], parallel: int = 2) -> dict[str, Outcome]:
    results = execute(list(actions), do, parallel=parallel, cancel=CancelToken())
    return {id_of(result.action): result.outcome for result in results}


def test_results_come_in_the_order_of_the_plan() -> None:
    actions = [create("b"), pull("a"), delete("c"), upload("d")]
    results = execute(actions, Stage().act, parallel=2, cancel=CancelToken())
    assert results == tuple(ActionResult(action=action, outcome=Succeeded()) for action in actions)


def test_nothing_to_do_is_done_at_once() -> None:
    assert execute([], Stage().act, parallel=2, cancel=CancelToken()) == ()


@pytest.mark.parametrize("make", [pull, upload])
def test_as_many_transfers_run_at_once_as_the_host_allows(make: Callable[[str], Action]) -> None:
    stage = Together(3)
    outcomes = run([make(f"m{number}") for number in range(6)], stage.act, parallel=3)
    assert set(outcomes.values()) == {Succeeded()}
    assert all(len(others & stage.companions.keys()) >= 2 for others in stage.companions.values())


def test_pulls_uploads_and_one_build_run_side_by_side() -> None:
    assert set(run([pull("a"), upload("b"), create("c")], Together(3).act, parallel=1).values()) == {
        Succeeded()
    }


@pytest.mark.parametrize("parallel", [1, 4])
def test_no_kind_of_action_takes_more_than_its_slots(parallel: int) -> None:
    most = {"pull": 0, "upload": 0, "serial": 0}
    lock = threading.Lock()
    now = dict.fromkeys(most, 0)

    def kind(action: Action) -> str:
        verb = id_of(action).split("/")[1]
        return verb if verb in most else "serial"

    def do(action: Action) -> Outcome:
        with lock:
            now[kind(action)] += 1
            most[kind(action)] = max(most[kind(action)], now[kind(action)])
        with lock:
            now[kind(action)] -= 1
        return Succeeded()

    makers = (pull, upload, create, copy, push)
    run([make(f"m{number}") for number in range(12) for make in makers], do, parallel)
    assert most["serial"] == 1
    assert most["pull"] <= parallel
    assert most["upload"] <= parallel


def test_builds_copies_deletions_and_pushes_never_overlap_on_a_host() -> None:
    stage = Stage()
    serial = [create("a"), copy("b"), push("c"), delete("d"), create("e"), delete("f")]
    run(serial, stage.act, parallel=4)
    assert not any(stage.companions[id_of(action)] for action in serial)


def test_two_actions_about_one_model_never_overlap() -> None:
    stage = Stage()
    same = [pull("same"), create("same"), copy("SAME:latest")]
    assert set(run(same, stage.act, 4).values()) == {Succeeded()}
    assert not any(stage.companions[id_of(action)] for action in same)


def test_the_same_blob_is_not_sent_twice_at_once() -> None:
    stage = Stage()
    first, second = upload("a", "weights"), upload("b", "weights")
    run([first, second], stage.act, 4)
    assert stage.began == [id_of(first)]  # one id, one action


def test_an_action_waits_for_all_that_it_needs() -> None:
    stage = Stage()
    actions = [create("c", "h/pull/a:latest", "h/create/b:latest"), create("b", "h/pull/a:latest"), pull("a")]
    run(actions, stage.act)
    assert stage.began == ["h/pull/a:latest", "h/create/b:latest", "h/create/c:latest"]


def test_a_need_that_is_not_part_of_the_plan_counts_as_met() -> None:
    assert run([create("a", "h/pull/elsewhere:latest")], Stage().act) == {"h/create/a:latest": Succeeded()}


def test_a_deletion_that_something_needs_comes_before_it() -> None:
    stage = Stage()
    run([pull("a", "h/delete/a:latest"), delete("b"), delete("a"), upload("c")], stage.act, 4)
    assert stage.began.index("h/delete/a:latest") < stage.began.index("h/pull/a:latest")
    assert stage.began[-1] == "h/delete/b:latest"


def test_deletions_begin_when_everything_else_has_ended() -> None:
    stage = Stage()
    run([delete("x"), pull("a"), create("b", "h/pull/a:latest"), delete("y"), upload("c")], stage.act, 4)
    assert [began.split("/")[1] for began in stage.began[-2:]] == ["delete", "delete"]
    assert set(stage.ended[:3]) == set(stage.began[:3])


FAILURES: list[Outcome] = [Failed(error="no"), Interrupted(started=True), Skipped(because="x")]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_action_skips_its_dependants_and_never_its_neighbours(failure: Outcome) -> None:
    actions = [
        pull("bad"),
        create("child", "h/pull/bad:latest"),
        copy("grandchild", "h/create/child:latest"),
        pull("good"),
        create("neighbour", "h/pull/good:latest"),
        delete("freed"),
        delete("guarded", "h/create/child:latest", "h/create/neighbour:latest"),
    ]
    stage = Stage({"h/pull/bad:latest": failure})
    assert run(actions, stage.act) == {
        "h/pull/bad:latest": failure,
        "h/create/child:latest": Skipped(because="h/pull/bad:latest"),
        "h/copy/grandchild:latest": Skipped(because="h/create/child:latest"),
        "h/pull/good:latest": Succeeded(),
        "h/create/neighbour:latest": Succeeded(),
        "h/delete/freed:latest": Succeeded(),
        "h/delete/guarded:latest": Skipped(because="h/create/child:latest"),
    }


def test_a_bug_in_one_handler_fails_one_action_only() -> None:
    def do(action: Action) -> Outcome:
        if action.model == N("buggy"):
            raise ZeroDivisionError("oops")
        return Succeeded()

    outcomes = run([pull("buggy"), pull("fine")], do)
    assert outcomes == {
        "h/pull/buggy:latest": Failed(
            error="internal error: ZeroDivisionError: oops", hint="please report this", exit_code=1
        ),
        "h/pull/fine:latest": Succeeded(),
    }


def test_a_cycle_of_needs_ends_with_an_outcome_for_all() -> None:
    actions = [create("a", "h/create/b:latest"), create("b", "h/create/a:latest"), pull("c")]
    assert run(actions, Stage().act) == {
        "h/create/a:latest": Skipped(because="its needs form a cycle"),
        "h/create/b:latest": Skipped(because="h/create/a:latest"),
        "h/pull/c:latest": Succeeded(),
    }


def test_a_stop_before_the_start_starts_nothing() -> None:
    token = CancelToken()
    token.cancel()
    stage = Stage()
    results = execute([pull("a"), delete("b")], stage.act, parallel=2, cancel=token)
    assert [result.outcome for result in results] == [Interrupted(), Interrupted()]
    assert stage.began == []


def test_a_stop_lets_what_runs_end_and_starts_nothing_more() -> None:
    token, barrier = CancelToken(), threading.Barrier(2, timeout=PATIENCE_S)

    def do(action: Action) -> Outcome:
        barrier.wait()
        if action.model == N("a"):
            token.cancel()
            return Succeeded()
        token.wait(PATIENCE_S)
        return Interrupted(started=True)

    actions = [pull("a"), pull("b"), pull("c"), create("d", "h/pull/a:latest")]
    results = execute(actions, do, parallel=2, cancel=token)
    assert [result.outcome for result in results] == [
        Succeeded(),
        Interrupted(started=True),
        Interrupted(),
        Interrupted(),
    ]


MAKERS = (pull, upload, create, copy, push, delete)


@st.composite
def plans(draw: st.DrawFn) -> list[Action]:
    """Actions with any needs at all: on earlier ones, later ones, themselves, strangers."""
    chosen = draw(st.lists(st.sampled_from(range(len(MAKERS))), max_size=9))
    plain = [MAKERS[kind](f"m{number}") for number, kind in enumerate(chosen)]
    everyone = [id_of(action) for action in plain] + ["h/pull/stranger:latest"]
    wanted = [draw(st.lists(st.sampled_from(everyone), max_size=3)) for _ in plain]
    return [
        upload(f"m{number}", "", *needs) if MAKERS[kind] is upload else MAKERS[kind](f"m{number}", *needs)
        for number, (kind, needs) in enumerate(zip(chosen, wanted, strict=True))
    ]


OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(
    [Succeeded(), Succeeded(changed=False), Failed(error="no"), Interrupted(started=True)]
)


@given(plans(), st.lists(OUTCOMES, min_size=9, max_size=9), st.integers(1, 3), st.integers(0, 12))
def test_every_action_gets_exactly_one_outcome_and_the_run_ends(
    actions: list[Action], played: list[Outcome], parallel: int, stop_after: int
) -> None:
    script = {id_of(action): outcome for action, outcome in zip(actions, played, strict=False)}
    token = CancelToken()
    stage = Stage(script)

    def do(action: Action) -> Outcome:
        outcome = stage.act(action)
        if len(stage.ended) >= stop_after:
            token.cancel()
        return outcome

    results = execute(actions, do, parallel=parallel, cancel=token)

    assert [result.action for result in results] == actions
    assert sorted(stage.began) == sorted(set(stage.began)) == sorted(stage.ended)
    ended = {id_of(result.action): result.outcome for result in results}
    for action in actions:
        action_id, outcome = id_of(action), ended[id_of(action)]
        if action_id in stage.began:
            assert outcome == script[action_id]
            needs = [need for need in action.needs if need in ended]
            assert all(isinstance(ended[need], Succeeded) for need in needs)
            assert all(stage.ended.index(need) < stage.ended.index(action_id) for need in needs)
        else:
            assert outcome == Interrupted() or isinstance(outcome, Skipped)
    needed = {need for action in actions for need in action.needs}
    deletions = [began for began in stage.began if "/delete/" in began and began not in needed]
    assert stage.began[len(stage.began) - len(deletions) :] == deletions
