"""Changing models that are in use, on pretend hosts of four eras: old or new, never neither, never the wrong one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
import requests
from breadth import in_turn
from live_host import (
    BASE,
    LiveHost,
    a_build,
    a_copy,
    a_host,
    a_model,
    assert_converged,
    failures,
    ids,
    name,
)
from msgspec.structs import replace
from patience import PATIENCE_S
from recording_proxy import Request

from ollamaops import exits
from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_tasks
from ollamaops.events import ActionEnded, ActionStarted, Event
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec, ModelSpec, Policy, Pull
from ollamaops.names import Digest, NamePattern
from ollamaops.observe.run import Run, RunOptions
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.desired import build_desired
from ollamaops.state.records import ModelRecord

pytestmark = in_turn("version")


VERSIONS = ("0.3.4", "0.5.7", "0.12.11", "0.33.0-rc2")
OTHER = "qwen2.5:0.5b"
every_version = pytest.mark.parametrize("version", VERSIONS)


def asked(word: str) -> dict[str, object]:
    """Whether the model, whose system prompt asks for a word, says that word."""
    return {"prompt": "Which color?", "contains": word}


def a_bot(color: str, expected: str | None = None, **rest: object) -> list[ModelSpec]:
    """A bot that says a color, and is expected to."""
    expect = (asked(expected or color),)
    build = a_build(BASE, system=f"Say {color}.")
    return [a_model(BASE), a_model("bot", build, expect=expect, **rest)]


def says(host: LiveHost, model: str = "bot") -> str:
    body = {"model": model, "prompt": "Which color?", "stream": False}
    answer = requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S)
    answer.raise_for_status()
    return str(answer.json()["response"])


def asides(host: LiveHost) -> list[str]:
    return [model for model in host.stranger.tags() if "-ollamaops-" in model]


def exit_code(host: LiveHost, models: list[ModelSpec]) -> int:
    return host.run(models).exit_code


# what is built


@every_version
def test_a_change_that_passes_is_switched_to_and_leaves_nothing_aside(host: LiveHost) -> None:
    assert_converged(host, host.apply(a_bot("red")))
    plan = host.plan(a_bot("blue"))
    assert ids(plan.actions) == ["create/bot:latest", "verify/bot:latest", "copy/bot:latest"]
    assert_converged(host, host.apply(a_bot("blue")))
    assert says(host) == "blue"
    assert host.stranger.tags().keys() == {BASE, "bot:latest"}
    assert host.plan(a_bot("blue")).actions == ()
    assert host.requests_sent == 2  # what was found out aside is known of the model as well


@every_version
def test_a_change_that_fails_leaves_the_old_model_answering_and_ends_5(host: LiveHost) -> None:
    assert_converged(host, host.apply(a_bot("red")))
    before = host.stranger.tags()
    models = a_bot("blue", "green")
    report = host.run(models)
    assert report.exit_code == exits.UNEXPECTED
    wrong = failures(report.hosts[0])
    assert (
        "no 'green' in an answer of 4 characters: 'blue'; the version that was there stays"
        in (wrong["verify/bot:latest"])
    )
    assert wrong.keys() == {"verify/bot:latest", "copy/bot:latest"}
    assert host.stranger.tags() == before
    assert says(host) == "red"
    assert exit_code(host, models) == exits.UNEXPECTED  # and says so again
    assert_converged(host, host.apply(a_bot("green")))
    assert says(host) == "green"


@in_turn("version")
@every_version
def test_a_first_version_that_fails_never_gets_the_name(host: LiveHost) -> None:
    report = host.apply(a_bot("red", "green"))
    assert "there was none before, and there is none now" in failures(report)["verify/bot:latest"]
    assert host.stranger.tags().keys() == {BASE}


def test_what_is_made_from_a_model_waits_for_its_proof(newest: LiveHost) -> None:
    child = a_model("child", a_build("bot", parameters={"seed": 1}))
    newest.apply([*a_bot("red"), child])
    report = newest.apply([*a_bot("blue", "green"), child])
    assert failures(report).keys() == {"verify/bot:latest", "copy/bot:latest", "create/child:latest"}
    assert says(newest, "child") == "red"
    assert_converged(newest, newest.apply([*a_bot("blue"), child]))
    assert says(newest, "child") == "blue"


def test_staged_alone_means_that_it_can_be_loaded(newest: LiveHost) -> None:
    def staged(color: str) -> list[ModelSpec]:
        return [a_model(BASE), a_model("bot", a_build(BASE, system=f"Say {color}."), staged=True)]

    assert_converged(newest, newest.apply(staged("red")))
    loaded = [request.body for request in newest.proxy.seen if request.path == "/api/generate"]
    assert len(loaded) == 1
    assert "bot:latest-ollamaops-next" in loaded[0]
    newest.proxy.edit = lambda request, body: (
        b'{"error": "unable to load model"}' if request.path == "/api/generate" else body
    )
    report = newest.apply(staged("blue"))
    newest.proxy.edit = None
    assert "answer: unable to load model" in failures(report)["verify/bot:latest"]
    assert says(newest) == "red"


def test_somebody_elses_change_while_it_is_proven_is_not_overwritten(newest: LiveHost) -> None:
    newest.apply(a_bot("red"))

    def meddle(event: Event) -> None:
        if isinstance(event, ActionEnded) and event.action_id.endswith("verify/bot:latest"):
            newest.stranger.create("bot", BASE, system="Say black.")

    newest.emit = meddle
    report = newest.apply(a_bot("blue"))
    assert "changed since the plan was made" in failures(report)["copy/bot:latest"]
    assert says(newest) == "black"
    assert asides(newest) == []


def test_an_alias_is_proven_before_it_moves(newest: LiveHost) -> None:
    def models(target: str, word: str) -> list[ModelSpec]:
        alias = a_model("prod", a_copy(target), expect=(asked(word),), keep_previous=1)
        return [
            a_model(BASE),
            a_model("one", a_build(BASE, system="Say red.")),
            a_model("two", a_build(BASE, system="Say blue.")),
            alias,
        ]

    assert_converged(newest, newest.apply(models("one", "red")))
    report = newest.apply(models("two", "green"))
    assert failures(report).keys() == {"verify/prod:latest", "copy/prod:latest"}
    assert says(newest, "prod") == "red"
    assert_converged(newest, newest.apply(models("two", "blue")))
    assert says(newest, "prod") == "blue"
    assert asides(newest) == ["prod:latest-ollamaops-previous-1"]


@every_version
def test_a_client_that_keeps_asking_sees_the_old_or_the_new_and_nothing_else(host: LiveHost) -> None:
    """It asks before each of our requests, so at every moment at which we leave the host."""
    host.apply(a_bot("red"))
    seen: list[str] = []
    tasks = host.tasks(a_bot("blue", keep_previous=1))
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        report = apply_tasks(plan, tasks, before_each(run, lambda: seen.append(says(host)))).hosts[0]
    assert_converged(host, report)
    assert len(seen) > 10
    changes = [color for color, _ in itertools.groupby(seen)]
    assert changes == ["red", "blue"]


def before_each(run: Run, hook: Callable[[], object]) -> Run:
    """Run in which `hook` is called before each request."""
    lock = threading.Lock()

    def hooked(method: Callable[..., object]) -> Callable[..., object]:
        def ask(*args: object, **rest: object) -> object:
            with lock:
                hook()
            return method(*args, **rest)

        return ask

    def open_client(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
        client = run.open_client(spec, cancel)
        transport = client.transport
        transport.request = hooked(transport.request)  # type: ignore[method-assign,assignment]
        transport.stream = hooked(transport.stream)  # type: ignore[method-assign,assignment]
        return client

    return replace(run, open_client=open_client)


# what is pulled


def a_pulled(expect: Mapping[str, object] | None = None) -> list[ModelSpec]:
    pong = {"prompt": "Reply with the word pong.", "matches": "^pong$"}
    return [a_model(BASE, update="latest", expect=(expect or pong,))]


FAILS = {"prompt": "Reply with the word pong.", "matches": "^pang$"}


def outdated(host: LiveHost) -> dict[str, str]:
    """A host whose BASE is not what the registry has; the servers themselves are asked to find out."""
    host.options = RunOptions(costs=False, ask_registry=False)
    host.stranger.pull(OTHER)
    host.stranger.copy(OTHER, BASE)
    return host.stranger.tags()


@every_version
def test_a_pull_that_passes_stays_and_one_that_fails_is_taken_back(host: LiveHost) -> None:
    before = outdated(host)
    report = host.run(a_pulled(FAILS))
    assert report.exit_code == exits.UNEXPECTED
    assert "the previous version is back" in failures(report.hosts[0])[f"verify/{BASE}"]
    assert host.stranger.tags() == before
    report = host.run(a_pulled())
    assert report.exit_code == exits.DONE
    after = host.stranger.tags()
    assert after.keys() == before.keys()
    assert after[BASE] != before[BASE]


@in_turn("version")
@every_version
def test_a_first_pull_that_fails_is_removed_again(host: LiveHost) -> None:
    host.options = RunOptions(costs=False, ask_registry=False)
    report = host.apply(a_pulled(FAILS))
    assert "it was removed, because there was none before" in failures(report)[f"verify/{BASE}"]
    assert host.stranger.tags() == {}
    assert host.ledger.load("gpu-1") == {}
    assert_converged(host, host.apply(a_pulled()))


def test_a_pull_that_never_comes_leaves_no_trace(newest: LiveHost) -> None:
    model = a_model("no-such-model:1b", staged=True, retries=0)
    assert failures(newest.apply([model])).keys() == {"pull/no-such-model:1b", "verify/no-such-model:1b"}
    assert newest.ledger.load("gpu-1") == {}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("has_memory", [True, False])
def test_what_was_pulled_and_not_proven_is_proven_by_the_next_run(
    newest: LiveHost, is_first: bool, has_memory: bool
) -> None:
    if not is_first:
        outdated(newest)
    before = newest.stranger.tags()

    def stop(event: Event) -> None:
        if isinstance(event, ActionEnded) and "/pull/" in event.action_id:
            newest.cancel.cancel()

    newest.emit = stop
    newest.run(a_pulled(FAILS))
    newest.emit = None
    newest.cancel = type(newest.cancel)()
    pulled = newest.stranger.tags()
    if not has_memory:
        newest.forget()
    plan = newest.plan([replace(model, update="missing") for model in a_pulled(FAILS)])
    assert ids(plan.actions) == [f"verify/{BASE}"]
    assert (
        exit_code(newest, [replace(model, update="missing") for model in a_pulled(FAILS)]) == exits.UNEXPECTED
    )
    nobody_knows_that_it_is_ours = is_first and not has_memory
    assert newest.stranger.tags() == (pulled if nobody_knows_that_it_is_ours else before)


def test_what_is_not_known_to_be_ours_is_not_removed_when_it_fails(newest: LiveHost) -> None:
    """A run was killed around its first pull, so nobody knows which content came of it."""
    newest.stranger.pull(BASE)
    [model] = a_pulled(FAILS)
    [desired] = build_desired("gpu-1", [model]).models
    begun = ModelRecord(how="pulled", status="unverified", fingerprint=desired.fingerprint, digest="")
    newest.ledger.remember("gpu-1", {model.name.key: begun})
    before = newest.stranger.tags()
    report = newest.apply([replace(model, update="missing")])
    assert "it stays as it is" in failures(report)[f"verify/{BASE}"]
    assert newest.stranger.tags() == before
    passing = replace(a_pulled()[0], update="missing")
    assert_converged(newest, newest.apply([passing]))
    assert newest.plan([passing]).actions == ()


def test_what_cannot_be_taken_back_is_left_to_the_next_run(newest: LiveHost) -> None:
    newest.apply(a_bot("red"))
    asked_before = len(newest.proxy.seen)

    def refuse(request: Request, body: bytes) -> bytes:
        has_asked = any(one.path == "/api/generate" for one in newest.proxy.seen[asked_before:])
        return b"<html>no</html>" if request.path == "/api/tags" and has_asked else body

    newest.proxy.edit = refuse
    report = newest.apply(a_bot("blue", "green"))
    newest.proxy.edit = None
    assert (
        "it could not be taken back, which the next run does: gpu-1: list models"
        in (failures(report)["verify/bot:latest"])
    )
    assert says(newest) == "red"
    assert asides(newest) == ["bot:latest-ollamaops-next"]
    assert_converged(newest, newest.apply(a_bot("green")))
    assert asides(newest) == []


def test_a_pinned_pull_is_proven_as_well(newest: LiveHost) -> None:
    newest.stranger.pull(BASE)
    digest = Digest(newest.stranger.tags()[BASE])
    newest.stranger.pull(OTHER)
    newest.stranger.copy(OTHER, BASE)
    before = newest.stranger.tags()
    newest.options = RunOptions(costs=False, ask_registry=False)
    pinned = [replace(model, digest=digest, update="missing") for model in a_pulled(FAILS)]
    assert exit_code(newest, pinned) == exits.UNEXPECTED
    assert newest.stranger.tags() == before
    pinned = [replace(model, digest=digest, update="missing") for model in a_pulled()]
    assert exit_code(newest, pinned) == exits.DONE
    assert newest.stranger.tags()[BASE] == digest.hex


def test_a_mirror_is_proven_under_its_reference(newest: LiveHost) -> None:
    newest.stranger.pull(OTHER)
    newest.stranger.copy(OTHER, "mirror")
    before = newest.stranger.tags()
    mirror = ModelSpec(name=name("mirror"), source=Pull(ref=name(BASE)), update="latest", expect=(FAILS,))
    newest.options = RunOptions(costs=False, ask_registry=False)
    report = newest.apply([mirror])
    assert failures(report).keys() == {"verify/mirror:latest", "copy/mirror:latest"}
    assert newest.stranger.tags()["mirror:latest"] == before["mirror:latest"]


# previous versions


@in_turn("version")
@every_version
def test_so_many_previous_versions_stay_as_are_wanted(host: LiveHost) -> None:
    found = []
    for color in ("red", "blue", "green", "white"):
        assert_converged(host, host.apply(a_bot(color, keep_previous=2)))
        found.append(host.stranger.tags()["bot:latest"])
    red, blue, green, white = found
    assert host.stranger.tags() == {
        BASE: host.stranger.tags()[BASE],
        "bot:latest": white,
        "bot:latest-ollamaops-previous-1": green,
        "bot:latest-ollamaops-previous-2": blue,
    }
    assert red not in host.stranger.tags().values()
    assert host.plan(a_bot("white", keep_previous=2)).leftovers == ()
    assert host.plan(a_bot("white", keep_previous=1)).leftovers == (name("bot:latest-ollamaops-previous-2"),)
    host.apply(a_bot("white", keep_previous=1))
    assert asides(host) == ["bot:latest-ollamaops-previous-1"]


def test_previous_versions_of_what_is_pulled_stay_too(newest: LiveHost) -> None:
    before = outdated(newest)
    model = a_model(BASE, update="latest", keep_previous=1)
    newest.apply([model])
    tags = newest.stranger.tags()
    assert tags[f"{BASE}-ollamaops-previous-1"] == before[BASE] != tags[BASE]


def test_asides_are_never_drift_never_noise_and_never_pruned(newest: LiveHost) -> None:
    for color in ("red", "blue"):
        newest.apply(a_bot(color, keep_previous=1))
    newest.policy = Policy(prune=(NamePattern.parse("*"),))
    plan = newest.plan(a_bot("blue", keep_previous=1))
    assert (plan.actions, plan.unmanaged, plan.leftovers) == ((), (), ())
    newest.apply(a_bot("blue", keep_previous=1))
    assert asides(newest) == ["bot:latest-ollamaops-previous-1"]
    newest.apply([a_model(BASE)])
    assert newest.stranger.tags().keys() == {BASE}  # its versions go with the model


# being killed


class Killed(BaseException):
    """kill -9: no handler sees it, nothing is tidied up."""


def killing(run: Run, left: int) -> Run:
    """Run in which the process dies at its request number `left`."""
    count = itertools.count(1)

    def die() -> None:
        if next(count) >= left:
            raise Killed

    return before_each(run, die)


def kill_at(host: LiveHost, models: list[ModelSpec], left: int) -> bool:
    """Apply and die at that request; False when the run was over before."""
    tasks = host.tasks(models)
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        try:
            apply_tasks(plan, tasks, killing(run, left))
        except Killed:
            return True
    return False


def survive(
    version: str,
    before: list[ModelSpec],
    after: list[ModelSpec],
    check: Callable[[LiveHost], None],
    moments: Iterable[int],
) -> int:
    """Kill the change at these requests, one way and then back; the next run always converges. The last request."""
    with a_host(version) as host:
        assert_converged(host, host.apply(before))
        for left in moments:
            was_killed = kill_at(host, after, left)
            check(host)
            report = host.apply(after)
            assert_converged(host, report)
            check(host)
            assert not [aside for aside in asides(host) if not aside.endswith("previous-1")], left
            assert host.unused_blobs == set(), left
            assert host.plan(after).actions == ()
            assert host.requests_sent == 2  # nothing has to be looked into
            before, after = after, before
            if not was_killed:
                return left
    raise AssertionError


def requests_from(version: str, every: int) -> Iterator[int]:
    """The numbers of the requests at which a run dies. With a step, each version begins elsewhere."""
    return itertools.count(1 + VERSIONS.index(version) * every // len(VERSIONS), every)


# at some requests on each version, which together are at most of them; and at all
some_or_all = pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.soak)])


@some_or_all
@every_version
def test_a_switch_that_is_killed_at_any_request_is_finished_by_the_next_run(version: str, every: int) -> None:
    def check(host: LiveHost) -> None:
        assert says(host) in {"red", "blue"}

    alias = a_model("chat", a_copy("bot"))
    before, after = ([*a_bot(color, keep_previous=1), alias] for color in ("red", "blue"))
    assert survive(version, before, after, check, requests_from(version, every)) > 10


@some_or_all
@pytest.mark.parametrize("version", ["0.5.7", "0.33.0-rc2"])
def test_a_failing_switch_that_is_killed_at_any_request_never_shows_the_new_version(
    version: str, every: int
) -> None:
    with a_host(version) as host:
        assert_converged(host, host.apply(a_bot("red")))
        for left in requests_from(version, every):
            was_killed = kill_at(host, a_bot("blue", "green"), left)
            assert says(host) == "red"
            assert exit_code(host, a_bot("blue", "green")) == exits.UNEXPECTED
            assert says(host) == "red"
            assert asides(host) == []
            if not was_killed:
                assert left > 10
                return


@some_or_all
@pytest.mark.parametrize("expect", [None, FAILS], ids=["passes", "fails"])
def test_a_pull_on_trial_that_is_killed_at_any_request_is_settled_by_the_next_run(
    newest: LiveHost, expect: Mapping[str, object] | None, every: int
) -> None:
    before = outdated(newest)
    for left in requests_from(VERSIONS[0] if expect else VERSIONS[2], every):
        newest.stranger.copy(OTHER, BASE)
        was_killed = kill_at(newest, a_pulled(expect), left)
        assert BASE in newest.stranger.tags()
        code = exit_code(newest, a_pulled(expect))
        tags = newest.stranger.tags()
        assert code == (exits.UNEXPECTED if expect else exits.DONE)
        assert (tags[BASE] == before[BASE]) is (expect is not None)
        assert asides(newest) == []
        if not was_killed:
            assert left > 8
            return


@in_turn("version")
@every_version
def test_a_run_that_is_stopped_at_any_action_is_finished_by_the_next(host: LiveHost) -> None:
    colors = itertools.cycle(["blue", "red"])
    host.apply(a_bot("red", keep_previous=1))
    for boundary in range(1, 7):
        events = itertools.count(1)

        def stop(event: Event, events: itertools.count[int] = events, boundary: int = boundary) -> None:
            if isinstance(event, ActionStarted | ActionEnded) and next(events) == boundary:
                host.cancel.cancel()

        color = next(colors)
        host.emit = stop
        host.run(a_bot(color, keep_previous=1))
        host.emit = None
        host.cancel = type(host.cancel)()
        assert says(host) in {"red", "blue"}
        assert_converged(host, host.apply(a_bot(color, keep_previous=1)))
        assert says(host) == color
        assert asides(host) == ["bot:latest-ollamaops-previous-1"]


# what was seen to hold, and for what


PONG, PANG = ({"prompt": "Reply with the word " + word, "matches": f"^{word}$"} for word in ("pong", "pang"))


def expecting(kind: str, *expect: Mapping[str, object]) -> list[ModelSpec]:
    bot = a_model("bot", a_build(BASE, system="s"), expect=expect)
    models = {
        "pulled": [a_model(BASE, expect=expect)],
        "built": [a_model(BASE), bot],
        "copied": [a_model(BASE), a_model("alias", a_copy(BASE), expect=expect)],
        "mirrored": [a_model("mirror", Pull(ref=name(BASE)), expect=expect)],
    }
    return models[kind]


def wants_verifying(host: LiveHost, models: list[ModelSpec]) -> bool:
    """Whether the plan, twice the same, is to verify the last of the models, and nothing else."""
    first, second = (ids(host.plan(models).actions) for _ in range(2))
    assert first == second
    assert first in ([], [f"verify/{models[-1].name}"])
    return bool(first)


@in_turn("version")
@pytest.mark.parametrize("kind", ["pulled", "built", "copied", "mirrored"])
@every_version
def test_a_changed_expectation_is_verified_again_over_unchanged_content(host: LiveHost, kind: str) -> None:
    assert_converged(host, host.apply(expecting(kind)))
    for models in (expecting(kind, PONG), expecting(kind, PONG, PANG)):
        assert wants_verifying(host, models)
        assert_converged(host, host.apply(models))
        assert not wants_verifying(host, models)
        assert host.requests_sent == 2
    assert wants_verifying(host, expecting(kind, PANG))

    fails = expecting(kind, {**PONG, "matches": "^nothing$"})
    before = host.stranger.tags()
    assert host.run(fails).exit_code == exits.UNEXPECTED
    assert host.stranger.tags() == before
    assert wants_verifying(host, fails)

    host.forget()
    assert wants_verifying(host, models)


@pytest.mark.parametrize("kind", ["pulled", "built", "copied", "mirrored"])
def test_what_was_verified_on_one_version_of_the_server_is_verified_on_the_next(kind: str) -> None:
    models = expecting(kind, PONG)
    with a_host("0.12.11") as host:
        assert_converged(host, host.apply(models))
        host.sandbox.restart("0.33.0-rc2")
        assert wants_verifying(host, models)
        assert_converged(host, host.apply(models))
        assert not wants_verifying(host, models)


def test_what_was_never_proven_stays_unproven_wherever_the_name_goes(newest: LiveHost) -> None:
    """A stranger moves the name away and back while the mark of a pull on trial is kept."""
    models = [a_model(BASE, expect=(PONG,), retries=0)]
    newest.proxy.edit = lambda request, body: b"<html>" if request.path == "/api/generate" else body
    assert newest.run(models).exit_code == exits.PARTIAL
    newest.proxy.edit = None
    assert wants_verifying(newest, models)

    stranger = newest.stranger
    stranger.pull(OTHER)
    stranger.copy(BASE, "elsewhere")
    stranger.copy(OTHER, BASE)
    assert wants_verifying(newest, models)
    stranger.copy("elsewhere", BASE)
    assert wants_verifying(newest, models)
    renamed = [a_model("tiny", Pull(ref=name(BASE)), moved_from=name(BASE), expect=(PONG,))]
    newest.apply(renamed)
    assert not wants_verifying(newest, renamed)
    assert "/api/generate" in {request.path for request in newest.proxy.seen[-60:]}
