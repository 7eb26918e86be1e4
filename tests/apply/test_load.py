"""What `resident` promises on pretend servers of four eras: it holds over evictions, restarts and new content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from breadth import in_turn
from live_host import (
    BASE,
    VERSIONS,
    LiveHost,
    NoWaitToken,
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
from sandbox_caller import a_gguf
from session_actions import at, copy

from ollamaops import exits
from ollamaops.apply.scheduler import execute
from ollamaops.cli.main import run
from ollamaops.events import Noted, Succeeded
from ollamaops.manifest.types import Build, ModelSpec, WeightsFile
from ollamaops.observe.memory import load_evictions
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import Action, DeleteModel, LoadModel, Plan, PullModel, UnloadModel, id_of
from ollamaops.plan.codec import plan_from_json, plan_to_json
from ollamaops.sandbox.builtin_models import BUILTIN_MODELS
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

pytestmark = in_turn("host", "small_host", "version")

EMBEDDING = "all-minilm:latest"
OTHER = "qwen3:0.6b"


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        yield running


def residents() -> list[ModelSpec]:
    return [
        a_model(BASE, resident=True),
        a_model(EMBEDDING, resident=1800.0),
        a_model("bot", a_build(BASE, system="s")),
    ]


def in_memory(host: LiveHost) -> dict[str, str]:
    """Name → until when, as the server lists it; `for ever` for a date centuries away."""
    return {
        model["name"]: "for ever" if model["expires_at"] > "2200" else "a while" for model in listed(host)
    }


def listed(host: LiveHost) -> list[dict[str, Any]]:
    answer = requests.get(f"{host.sandbox.url}/api/ps", timeout=PATIENCE_S)
    models: list[dict[str, Any]] = answer.json()["models"]
    return models


def ask(host: LiveHost, model: str, **fields: object) -> None:
    """Somebody uses the model, or unloads it with `keep_alive=0`."""
    answer = requests.post(
        f"{host.sandbox.url}/api/generate",
        json={"model": model, "stream": False, **fields},
        timeout=PATIENCE_S,
    )
    assert answer.ok, answer.text


def loads(host: LiveHost) -> list[str]:
    """Every model that was asked to be loaded or unloaded so far, in order."""
    return [
        json.loads(request.body)["model"]
        for request in host.proxy.seen
        if request.path in ("/api/generate", "/api/embed", "/api/embeddings")
    ]


def reasons(host: LiveHost, models: list[ModelSpec]) -> dict[str, str]:
    """What is planned, and why."""
    actions = host.plan(models).actions
    return dict(zip(ids(actions), (action.because[0].observed for action in actions), strict=True))


# --- it holds -------------------------------------------------------------------------------------------------------


def test_what_is_declared_resident_is_in_memory_and_a_second_plan_is_empty(host: LiveHost) -> None:
    report = host.apply(residents())
    assert_converged(host, report)
    assert in_memory(host) == {BASE: "for ever", EMBEDDING: "a while"}
    assert host.plan(residents()).actions == ()
    assert sorted(host.plan(residents()).unchanged) == sorted(map(name, [BASE, EMBEDDING, "bot"]))


def test_what_is_evicted_is_drift_and_mended(host: LiveHost) -> None:
    host.apply(residents())
    ask(host, BASE, keep_alive=0)
    assert reasons(host, residents()) == {f"load/{BASE}": "not in memory"}
    assert_converged(host, host.apply(residents()))
    assert in_memory(host)[BASE] == "for ever"


def test_a_restart_of_the_server_is_mended(host: LiveHost) -> None:
    host.apply(residents())
    host.sandbox.restart()
    assert set(reasons(host, residents())) == {f"load/{BASE}", f"load/{EMBEDDING}"}
    assert_converged(host, host.apply(residents()))
    assert set(in_memory(host)) == {BASE, EMBEDDING}


def test_what_is_made_again_is_loaded_again(host: LiveHost) -> None:
    host.apply([a_model("bot", a_build(BASE, system="one"), resident=True)])
    before = listed(host)[0]["digest"]
    changed = [a_model("bot", a_build(BASE, system="two"), resident=True)]
    assert reasons(host, changed)["load/bot:latest"] == "its content changes"
    assert_converged(host, host.apply(changed))
    assert [model["digest"] for model in listed(host)] == [host.stranger.tags()["bot:latest"]]
    assert listed(host)[0]["digest"] != before


def test_what_is_proven_aside_and_switched_to_is_loaded_under_its_own_name(host: LiveHost) -> None:
    def staged(system: str) -> list[ModelSpec]:
        expect = ({"prompt": "hi", "max_load": "90s"},)
        return [a_model("bot", a_build(BASE, system=system), expect=expect, staged=True, resident=True)]

    assert_converged(host, host.apply(staged("one")))
    assert_converged(host, host.apply(staged("two")))
    now = host.stranger.tags()["bot:latest"]
    assert [model["digest"] for model in listed(host) if model["expires_at"] > "2200"] == [now]
    assert host.plan(staged("two")).actions == ()


def test_what_somebody_else_made_again_is_loaded_again(host: LiveHost) -> None:
    models = [a_model("bot", a_copy(BASE)), a_model(BASE, ignore=("digest",), resident=True)]
    host.apply(models[1:])
    host.stranger.create(BASE, BASE, system="another")
    assert reasons(host, models[1:]) == {f"load/{BASE}": "an older content is in memory"}
    assert_converged(host, host.apply(models[1:]))
    assert [model["digest"] for model in listed(host)] == [host.stranger.tags()[BASE]]


def test_an_embedding_model_that_cannot_generate_is_loaded(host: LiveHost) -> None:
    models = [a_model(pretend.name, resident=True) for pretend in BUILTIN_MODELS if pretend.is_embedding][:2]
    assert_converged(host, host.apply(models))
    assert in_memory(host) == {str(model.name): "for ever" for model in models}


def test_resident_false_unloads_and_then_there_is_nothing_to_do(host: LiveHost) -> None:
    models = [a_model(BASE, resident=False), a_model(EMBEDDING, resident=0.0)]
    host.apply(models)
    assert loads(host) == []
    ask(host, BASE)
    assert reasons(host, models) == {f"unload/{BASE}": "in memory"}
    assert_converged(host, host.apply(models))
    assert in_memory(host) == {}
    assert host.plan(models).actions == ()


def test_a_host_is_asked_for_its_memory_only_where_something_is_resident(host: LiveHost) -> None:
    host.apply(residents())
    host.plan(residents())
    assert host.requests_sent == 3
    plain = [replace(model, resident=None) for model in residents()]
    host.plan(plain)
    assert host.requests_sent == 2


def test_an_ordinary_request_does_not_change_how_long_a_resident_stays(host: LiveHost) -> None:
    host.apply(residents())
    ask(host, BASE, prompt="hi")
    assert host.plan(residents()).actions == ()


def test_who_asks_for_less_time_is_overruled(host: LiveHost) -> None:
    host.apply(residents())
    ask(host, BASE, keep_alive="1m")
    assert reasons(host, residents()) == {f"load/{BASE}": "in memory for a while only"}
    assert_converged(host, host.apply(residents()))
    assert in_memory(host)[BASE] == "for ever"


def test_a_change_from_for_ever_to_a_while_has_its_effect(host: LiveHost) -> None:
    host.apply([a_model(BASE, resident=True)])
    models = [a_model(BASE, resident=600.0)]
    assert reasons(host, models) == {f"load/{BASE}": "in memory for good"}
    assert_converged(host, host.apply(models))
    assert in_memory(host) == {BASE: "a while"}


def test_a_saved_plan_loads_what_it_says(host: LiveHost) -> None:
    plan = Plan(hosts=(host.plan(residents()),), made_from={"manifest": "m"}, kind="saved")
    again = plan_from_json(json.loads(json.dumps(plan_to_json(plan))))
    assert again == plan
    assert failures(host.carry_out(again, host.tasks(residents()))) == {}
    assert in_memory(host) == {BASE: "for ever", EMBEDDING: "a while"}


# --- what shares a runner -------------------------------------------------------------------------------------------


def test_models_with_the_same_weights_share_a_runner_and_all_are_resident(host: LiveHost) -> None:
    models = [
        a_model(BASE, resident=600.0),
        a_model("alias", a_copy(BASE), resident=600.0),
        a_model("bot", a_build(BASE, system="s"), resident=True),
    ]
    assert_converged(host, host.apply(models))
    assert list(in_memory(host).values()) == ["for ever"]
    assert host.plan(models).actions == ()


def test_what_uses_an_outdated_runner_of_another_name_gets_a_new_one(host: LiveHost) -> None:
    """Servers go on listing what they loaded first, so that nobody can tell what its content is."""
    host.apply([a_model(BASE), a_model("bot", a_build(BASE, system="s"))])
    ask(host, BASE)
    host.stranger.create(BASE, BASE, system="another")
    models = [
        a_model(BASE, ignore=("digest",)),
        a_model("bot", a_build(BASE, system="another"), resident=True),
    ]
    assert_converged(host, host.apply(models))
    assert in_memory(host) == {"bot:latest": "for ever"}


def test_models_with_other_options_of_the_runner_evict_each_other_which_is_said(host: LiveHost) -> None:
    models = [
        a_model(BASE, resident=True),
        a_model("long", a_build(BASE, parameters={"num_ctx": 2048}), resident=True),
    ]
    report = host.apply(models)
    assert failures(report) == {}
    (note,) = report.notes
    assert (note.model, note.unresolved, report.verified) == (name(BASE), True, False)
    assert note.message.startswith("was loaded, and is not in memory any more: evicted; in memory now: long:")


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_an_eviction_loop_is_reported_and_not_repeated(version: str) -> None:
    models = [a_model(BASE, resident=True), a_model(OTHER, resident=True)]
    with a_host(version, max_loaded=1) as host:
        report = host.apply(models)
        assert loads(host) == [BASE, OTHER]
        assert in_memory(host) == {OTHER: "for ever"}
        assert (report.rounds, report.verified, report.remaining) == (1, False, ())
        (note,) = report.notes
        assert (note.model, note.unresolved) == (name(BASE), True)
        assert f"in memory now: {OTHER} (" in note.message
        assert "raise OLLAMA_MAX_LOADED_MODELS" in (note.hint or "")


@pytest.fixture(params=VERSIONS)
def small_host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallHost]:
    """A server with room for one model, and two that are declared resident."""
    with Sandbox(as_version=request.param, max_loaded=1) as sandbox:
        yield SmallHost(sandbox, tmp_path)


@dataclass
class SmallHost:
    """The program, a manifest and a history, which is what later runs know of earlier ones."""

    sandbox: Sandbox
    folder: Path

    def declare(self, *models: object) -> None:
        document = {"hosts": {"gpu-1": {"url": self.sandbox.url}}, "models": list(models)}
        (self.folder / "ollamaops.yaml").write_text(json.dumps(document))

    def run(self, *arguments: str) -> int:
        shared = ["-f", str(self.folder / "ollamaops.yaml"), "--state-dir", str(self.folder / "state")]
        return run([*arguments, *shared, "--no-registry", "--progress", "none"])

    def listed(self) -> list[str]:
        found = requests.get(f"{self.sandbox.url}/api/ps", timeout=PATIENCE_S).json()["models"]
        return [model["name"] for model in found]


def test_later_runs_do_not_repeat_an_eviction_loop_until_something_changes(
    small_host: SmallHost, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [{"name": BASE, "resident": True}, {"name": OTHER, "resident": True}]
    small_host.declare(*both)
    assert small_host.run("apply", "-y") == exits.PARTIAL
    assert small_host.listed() == [OTHER]
    capsys.readouterr()
    for command in (["plan"], ["apply", "-y"], ["drift"], ["apply", "-y"]):
        assert small_host.run(*command) == exits.PARTIAL
        assert (
            f"{BASE} on gpu-1: was loaded, and is not in memory any more: evicted" in capsys.readouterr().out
        )
        assert small_host.listed() == [OTHER]

    small_host.declare(*both, {"name": "bot", "from": BASE, "system": "s"})  # a run that has something to do
    assert small_host.run("apply", "-y") == exits.PARTIAL
    small_host.run("apply", "-y", "--target", "bot")  # and one that looks at nothing else
    assert small_host.listed() == [OTHER]

    small_host.declare(both[0], OTHER)
    assert small_host.run("apply", "-y") == exits.DONE
    assert small_host.listed() == [BASE]

    small_host.declare(*both)
    assert small_host.run("apply", "-y") == exits.PARTIAL
    small_host.sandbox.restart()
    assert (
        small_host.run("plan", "--detailed-exitcode") == exits.CHANGES
    )  # a server with more room is tried anew


def test_a_ledger_that_cannot_be_read_evicts_nobody(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert load_evictions(ledger, "gpu-1") == {}
    ledger.remember_evictions("gpu-1", {name("a"): (name("b"),)})
    assert load_evictions(ledger, "gpu-1") == {name("a"): {name("b")}}
    assert load_evictions(ledger, "gpu-2") == {}
    ledger.remember_evictions("gpu-1", {})
    assert load_evictions(ledger, "gpu-1") == {}
    ledger.path.write_bytes(b"not a database, but long enough to be taken for one")
    assert load_evictions(ledger, "gpu-1") == {}


def test_a_host_whose_residents_need_more_than_its_vram_is_refused() -> None:
    models = [a_model(BASE, resident=True), a_model(EMBEDDING, resident=True)]
    with a_host(labels={"vram": "1MB"}) as host:
        host.apply([a_model(BASE), a_model(EMBEDDING)])
        (refusal,) = host.plan(models).refusals
        assert refusal.rule == "vram"
        assert refusal.message == (
            "what is declared resident takes 1.4 MB, and the host's label vram is 1.0 MB: "
            "all-minilm:latest about 1.4 MB, llama3.2:3b about 43.5 kB"
        )
        assert in_memory(host) == {}
        host.options = RunOptions(costs=False, force=frozenset({"vram"}))
        assert_converged(host, host.apply(models))


@pytest.mark.parametrize("vram", ["2MB", "none", "a lot"])
def test_a_host_with_enough_vram_or_none_stated_is_not(vram: str) -> None:
    labels = {} if vram == "none" else {"vram": vram}
    with a_host(labels=labels) as host:
        assert_converged(host, host.apply([a_model(BASE, resident=True), a_model(EMBEDDING, resident=True)]))


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_model_that_the_server_cannot_run_fails_and_its_neighbours_are_loaded(
    host: LiveHost, tmp_path: Path
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(a_gguf(architecture="nobody-knows"))
    odd = Build(files=(WeightsFile(path, path.name),))
    report = host.apply([a_model("odd", odd, resident=True, retries=0), a_model(BASE, resident=True)])
    assert list(failures(report)) == ["load/odd:latest"]
    assert in_memory(host) == {BASE: "for ever"}


def test_a_server_that_does_not_keep_what_it_loads_fails_the_action(host: LiveHost) -> None:
    host.apply([a_model(BASE)])
    host.proxy.edit = lambda request, body: b'{"models":[]}' if request.path == "/api/ps" else body
    report = host.apply([a_model(BASE, resident=True, retries=0)])
    assert "was loaded, but the server does not keep it in memory" in failures(report)[f"load/{BASE}"]
    assert loads(host) == [BASE, BASE, BASE]  # unloaded in between, should another name have had its runner


def test_a_model_that_somebody_goes_on_using_is_not_unloaded(host: LiveHost) -> None:
    host.apply([a_model(BASE)])
    ask(host, BASE)
    body = requests.get(f"{host.sandbox.url}/api/ps", timeout=PATIENCE_S).content
    host.proxy.edit = lambda request, found: body if request.path == "/api/ps" else found
    report = host.apply([a_model(BASE, resident=False, retries=0)])
    assert "is still in memory 10s after it was unloaded" in failures(report)[f"unload/{BASE}"]


class Impatient(NoWaitToken):
    """Somebody who wants to stop as soon as there is something to wait for."""

    def wait(self, timeout: float | None = None) -> bool:
        self.cancel()
        return True


def test_a_stop_while_a_model_is_awaited_is_an_interruption() -> None:
    with a_host() as host:
        host.apply([a_model(BASE)])
        host.proxy.edit = lambda request, body: b'{"models":[]}' if request.path == "/api/ps" else body
        host.cancel = Impatient()
        report = host.apply([a_model(BASE, resident=True)])
        assert failures(report) == {f"load/{BASE}": "Interrupted(started=True)"}


# --- new weights under a name that is kept for ever -----------------------------------------------------------------


def switched(source: str) -> list[ModelSpec]:
    return [a_model(BASE), a_model(OTHER), a_model("chat", a_copy(source), resident=True)]


def test_weights_that_are_replaced_do_not_stay_in_memory_for_good(host: LiveHost) -> None:
    host.apply(switched(BASE))
    assert in_memory(host) == {"chat:latest": "for ever"}
    assert_converged(host, host.apply(switched(OTHER)))
    now = host.stranger.tags()
    stays = {model["digest"]: model["expires_at"] > "2200" for model in listed(host)}
    assert stays == {now[OTHER]: True, now[BASE]: False}
    assert host.plan(switched(OTHER)).actions == ()


def test_weights_that_somebody_else_replaced_stay_which_is_said(host: LiveHost) -> None:
    host.apply([a_model(BASE), a_model(OTHER), a_model("chat", a_copy(BASE), resident=True)])
    chat = a_model("chat", a_copy(BASE), ignore=("digest",), resident=True)
    host.stranger.copy(OTHER, "chat")
    report = host.apply([chat])
    assert_converged(host, report)
    (note,) = report.notes
    assert note.message.startswith("an older content of it is in memory as well (")


def test_old_weights_that_are_to_be_unloaded_stay_which_is_said(host: LiveHost) -> None:
    host.apply([a_model(BASE), a_model(OTHER), a_model("chat", a_copy(BASE), resident=True)])
    host.stranger.copy(OTHER, "chat")
    chat = a_model("chat", a_copy(BASE), ignore=("digest",), resident=False)
    host.apply([chat])
    said = [event.message for event in host.events if isinstance(event, Noted)]
    assert any("an older content of it stays in memory" in message for message in said)


def test_a_pull_that_changes_nothing_leaves_a_resident_as_it_was(host: LiveHost) -> None:
    host.options = RunOptions(costs=False, ask_registry=False)
    models = [a_model(BASE, update="latest", resident=True)]
    host.apply(models)
    assert_converged(host, host.apply(models))
    assert in_memory(host) == {BASE: "for ever"}


def test_nothing_fails_with_a_server_that_does_not_say_what_is_in_memory(tmp_path: Path) -> None:
    with a_host() as host, at(host.sandbox.url, tmp_path) as session:
        host.apply([a_model(BASE), a_model("chat", a_copy(BASE), resident=True)])
        host.proxy.edit = lambda request, body: b"{}" if request.path == "/api/ps" else body
        chat = a_model("chat", a_copy(BASE), resident=True)
        session.host.task = replace(session.host.task, models=(chat,))
        assert isinstance(session.do(copy(BASE, "chat")), Succeeded)


def test_what_is_not_in_memory_any_more_needs_no_request_to_be_unloaded(tmp_path: Path) -> None:
    with a_host() as host, at(host.sandbox.url, tmp_path) as session:
        host.apply([a_model(BASE)])
        outcome = session.do(UnloadModel(host="gpu-1", model=name(BASE)))
        assert isinstance(outcome, Succeeded)
        assert not outcome.changed
        assert loads(host) == []


# --- when -----------------------------------------------------------------------------------------------------------


def test_models_are_loaded_after_everything_else_and_before_deletions() -> None:
    load = LoadModel(host="gpu-1", model=name("a"))
    actions: list[Action] = [
        DeleteModel(host="gpu-1", model=name("x")),
        load,
        UnloadModel(host="gpu-1", model=name("b")),
        PullModel(host="gpu-1", model=name("c")),
        replace(load, model=name("d")),
    ]
    order: list[str] = []

    def do(action: Action) -> Succeeded:
        order.append(id_of(action).removeprefix("gpu-1/"))
        return Succeeded(seconds=0.0, changed=True)

    execute(actions, do, parallel=1, cancel=NoWaitToken())
    assert sorted(order[:2]) == ["pull/c:latest", "unload/b:latest"]
    assert order[2:] == ["load/a:latest", "load/d:latest", "delete/x:latest"]
