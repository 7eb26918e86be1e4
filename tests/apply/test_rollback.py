"""Going back to the version before: fast, held until the declaration changes, and told in every plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
from breadth import in_turn
from live_host import BASE, VERSIONS, LiveHost, a_build, a_model, assert_converged, ids, name
from msgspec.structs import replace
from patience import PATIENCE_S
from pulled_models import World

from ollamaops import exits
from ollamaops.changes import apply_tasks, release_tasks
from ollamaops.engine import plan_rollbacks
from ollamaops.manifest.types import ModelSpec, Policy, Pull
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import CopyModel, HostPlan, LoadModel, Plan, id_of
from ollamaops.plan.desired import build_desired
from ollamaops.plan.lookups import is_rolled_back, rollback_key_of
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.plan.results import RunReport
from ollamaops.plan.rollback import plan_rollback
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.records import ModelRecord, Status

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)
BOT = name("bot")


def a_bot(color: str, **rest: int) -> list[ModelSpec]:
    return [
        a_model(BASE),
        a_model("bot", a_build(BASE, system=f"Say {color}."), **{"keep_previous": 2, **rest}),
    ]


def says(host: LiveHost) -> str:
    body = {"model": "bot", "prompt": "Which color?", "stream": False}
    answer = requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S)
    answer.raise_for_status()
    return str(answer.json()["response"])


def roll_back(host: LiveHost, models: list[ModelSpec], version: int = 1) -> RunReport:
    host.targets = (NamePattern.parse("bot"),)
    tasks = host.tasks(models)
    with host.opened() as run:
        plan = plan_rollbacks(tasks, run, version)
        assert not plan.refusals, plan.refusals
        report = apply_tasks(plan, tasks, run)
    host.options = RunOptions(costs=False)
    return report


def through(host: LiveHost, *colors: str) -> list[ModelSpec]:
    """Apply one after the other; the last one's declaration."""
    for color in colors:
        assert_converged(host, host.apply(a_bot(color)))
    return a_bot(colors[-1])


@every_version
def test_a_rollback_switches_without_moving_weights_and_is_held(host: LiveHost) -> None:
    models = through(host, "red", "blue")
    host.proxy.seen.clear()
    report = roll_back(host, models)
    assert report.exit_code == exits.DONE
    assert says(host) == "red"
    paths = [request.path for request in host.proxy.seen]
    assert not {"/api/pull", "/api/create"} & set(paths)
    assert not [line for line in host.proxy.lines() if line.startswith("POST /api/blobs/")]
    assert len(paths) < 26

    plan = host.plan(models)
    assert (plan.actions, plan.rolled_back, plan.unchanged) == ((), (BOT,), (name(BASE),))
    assert [note.message for note in plan.notes] == ["stays at its previous version since it was rolled back"]
    assert_converged(host, host.apply(models))
    assert says(host) == "red"
    assert host.plan(models).leftovers == ()


@in_turn("version")
@every_version
def test_a_kept_version_that_somebody_replaced_is_not_rolled_back_to(host: LiveHost) -> None:
    models = through(host, "red", "blue", "green")
    kept = [f"bot:latest-ollamaops-previous-{number}" for number in (1, 2)]
    host.stranger.copy(BASE, kept[1])
    before = host.stranger.tags()
    report = roll_back(host, models, 2)
    assert ["somebody put" in note.message for note in report.plan.unresolved] == [True]
    assert (says(host), host.stranger.tags()) == ("green", before)
    report = roll_back(host, models, 1)
    assert (report.exit_code, says(host)) == (exits.DONE, "blue")


@every_version
def test_a_hold_ends_when_the_declaration_changes(host: LiveHost) -> None:
    roll_back(host, through(host, "red", "blue"))
    assert_converged(host, host.apply(a_bot("green")))
    assert says(host) == "green"
    assert host.plan(a_bot("green")).rolled_back == ()


def test_a_second_rollback_undoes_the_first_and_more_can_be_gone_back(newest: LiveHost) -> None:
    models = through(newest, "red", "blue", "green")
    for version, color in ((1, "blue"), (1, "green"), (2, "red"), (1, "green")):
        roll_back(newest, models, version)
        assert says(newest) == color
    kept = [tag for tag in newest.stranger.tags() if "-ollamaops-" in tag]
    assert sorted(kept) == ["bot:latest-ollamaops-previous-1", "bot:latest-ollamaops-previous-2"]


def test_what_is_held_is_let_go_on_release(newest: LiveHost) -> None:
    models = through(newest, "red", "blue")
    roll_back(newest, models)
    newest.options = RunOptions(costs=False, release=True)
    assert ids(newest.plan(models).actions) == ["create/bot:latest", "copy/bot:latest"]
    newest.options = RunOptions(costs=False)
    assert newest.plan(models).rolled_back == (BOT,)  # a plan changes nothing

    newest.targets = (NamePattern.parse("other"),)
    with newest.opened() as run:
        assert release_tasks(newest.tasks(models), run) == ({"gpu-1": ()}, {})
        newest.targets = ()
        assert release_tasks(newest.tasks(models), run) == ({"gpu-1": (BOT,)}, {})
    assert ids(newest.plan(models).actions) == ["create/bot:latest", "copy/bot:latest"]
    assert_converged(newest, newest.apply(models))
    assert says(newest) == "blue"


def test_an_apply_with_release_goes_forward_and_stays_there(newest: LiveHost) -> None:
    models = through(newest, "red", "blue")
    roll_back(newest, models)
    newest.options = RunOptions(costs=False, release=True)
    assert_converged(newest, newest.apply(models))
    newest.options = RunOptions(costs=False)
    assert says(newest) == "blue"
    assert newest.plan(models).rolled_back == ()


def test_a_hold_is_void_once_somebody_else_has_changed_the_model(newest: LiveHost) -> None:
    models = through(newest, "red", "blue")
    roll_back(newest, models)
    newest.stranger.create("bot", BASE, system="Say black.")
    assert newest.plan(models).rolled_back == ()
    assert_converged(newest, newest.apply(models))
    assert says(newest) == "blue"


def test_a_protected_model_is_not_rolled_back_without_force(newest: LiveHost) -> None:
    models = [replace(model, protect=model.name == BOT) for model in through(newest, "red", "blue")]
    newest.targets = (NamePattern.parse("bot"),)
    with newest.opened() as run:
        plan = plan_rollbacks(newest.tasks(models), run, 1)
    assert [refusal.rule for refusal in plan.refusals] == ["protect"]


def test_a_host_that_is_away_is_told(newest: LiveHost) -> None:
    models = through(newest, "red", "blue")
    newest.targets = (NamePattern.parse("bot"),)
    tasks = newest.tasks(models)
    newest.sandbox.stop()
    with newest.opened() as run:
        plan = plan_rollbacks(tasks, run, 1)
        released, failed = release_tasks(tasks, run)
    assert ([each.host for each in plan.unreached], plan.hosts) == (["gpu-1"], ())
    assert (released, failed) == ({"gpu-1": ()}, {})  # what is remembered is here


def test_a_rollback_is_judged_by_what_it_rolled_back(newest: LiveHost) -> None:
    """Whatever else is not as declared just now is for the next plan to say."""
    newest.stranger.pull("all-minilm")
    bystanders = [
        a_model(BASE, resident=True),
        a_model("all-minilm", resident=True),
        a_model("child", a_build("bot", system="x"), resident=True),
    ]

    def declared(color: str) -> list[ModelSpec]:
        return [*bystanders, a_model("bot", a_build(BASE, system=f"Say {color}."), keep_previous=1)]

    for color in ("red", "blue"):
        assert_converged(newest, newest.apply(declared(color)))
    for model in (BASE, "child", "all-minilm"):
        body = {"model": model, "keep_alive": 0}
        requests.post(f"{newest.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S).raise_for_status()
    report = roll_back(newest, declared("blue"))
    assert report.exit_code == exits.DONE
    assert says(newest) == "red"


@every_version
def test_a_resident_model_is_rolled_back_in_memory_too_and_held(host: LiveHost) -> None:
    def declared(color: str) -> list[ModelSpec]:
        system = f"Say {color}."
        return [a_model(BASE), a_model("bot", a_build(BASE, system=system), keep_previous=1, resident=True)]

    for color in ("red", "blue"):
        assert_converged(host, host.apply(declared(color)))
    report = roll_back(host, declared("blue"))
    assert report.exit_code == exits.DONE, report.hosts
    listed = requests.get(f"{host.sandbox.url}/api/ps", timeout=PATIENCE_S).json()["models"]
    assert [(one["name"], one["digest"]) for one in listed] == [
        ("bot:latest", host.stranger.tags()["bot:latest"])
    ]
    plan = host.plan(declared("blue"))
    assert (plan.actions, plan.rolled_back) == ((), (BOT,))
    assert says(host) == "red"


def test_a_model_that_leaves_memory_after_its_rollback_is_held_all_the_same(newest: LiveHost) -> None:
    models = [
        *through(newest, "red", "blue"),
        a_model("all-minilm"),
    ]
    resident = [*models[:1], replace(models[1], resident=True), *models[2:]]
    newest.targets = (NamePattern.parse("bot"),)
    tasks = newest.tasks(resident)
    with newest.opened() as run:
        [host_plan] = plan_rollbacks(tasks, run, 1).hosts
        switch_only = Plan(hosts=(replace(host_plan, actions=host_plan.actions[:1]),), kind="rollback")
        report = apply_tasks(switch_only, tasks, run)
    newest.options = RunOptions(costs=False)
    assert report.exit_code == exits.PARTIAL
    plan = newest.plan(resident)
    assert plan.rolled_back == (BOT,)
    assert "create/bot:latest" not in ids(plan.actions)


# the decision


def rolled(
    models: list[ModelSpec], *there: str, version: int = 1, memory: Mapping[ModelName, str] | None = None
) -> HostPlan:
    digests = {name(model): ObservedModel(name=name(model), digest=model) for model in there}
    observed = ObservedHost(
        host="gpu-1",
        features=features_of(ServerVersion.parse("0.33.0")),
        models=Listing((model, one) for model, one in digests.items() if not model.is_aside),
        set_aside={model: one.digest for model, one in digests.items() if model.is_aside},
        memory={model: ModelRecord(how="adopted", digest=digest) for model, digest in (memory or {}).items()},
    )
    desired = build_desired("gpu-1", models)
    return plan_rollback(desired, observed, [NamePattern.parse("bot:*")], version=version)


def test_a_version_that_is_not_kept_is_told_with_the_way_to_keep_it() -> None:
    plan = rolled(a_bot("red"), "bot:latest")
    assert plan.actions == ()
    [note] = plan.notes
    assert (note.message, note.unresolved) == ("cannot be rolled back by 1: none is kept", True)
    assert "keep_previous" in str(note.hint)
    [note] = rolled(a_bot("red"), "bot:latest", "bot:latest-ollamaops-previous-1", version=2).notes
    assert note.message == "cannot be rolled back by 2: 1 is kept"


KEPT = name("bot:latest-ollamaops-previous-1")


def test_only_what_was_kept_is_rolled_back_to() -> None:
    there = ("bot:latest", str(KEPT))
    [action] = rolled(a_bot("red"), *there, memory={KEPT: str(KEPT)}).actions
    assert action.expects[1].digest == str(KEPT)
    plan = rolled(a_bot("red"), *there)
    assert [type(action).__name__ for action in plan.actions] == ["CopyModel"]
    [note] = plan.notes
    assert ("nothing is remembered of" in note.message, note.unresolved) == (True, False)
    plan = rolled(a_bot("red"), *there, memory={KEPT: "d" * 64})
    assert plan.actions == ()
    [note] = plan.notes
    assert "somebody put bot:latest-o in its place" in note.message
    assert note.unresolved


def test_a_model_that_has_gone_can_come_back() -> None:
    [action] = rolled(a_bot("red", keep_previous=0), "bot:latest-ollamaops-previous-1").actions
    assert isinstance(action, CopyModel)
    assert (action.keep, action.expects[0].digest) == (1, None)


@pytest.mark.parametrize(
    "resident, keep_alive_s", [(True, [-1.0]), (1800.0, [1800.0]), (False, []), (0.0, []), (None, [])]
)
def test_what_is_declared_resident_is_loaded_after_its_switch(
    resident: bool | float | None, keep_alive_s: list[float]
) -> None:
    models = [a_model("bot", a_build(BASE, system="x"), resident=resident)]
    switch, *loads = rolled(models, "bot:latest", "bot:latest-ollamaops-previous-1").actions
    assert [(load.keep_alive_s, load.needs) for load in loads if isinstance(load, LoadModel)] == [
        (seconds, (id_of(switch),)) for seconds in keep_alive_s
    ]
    assert len(loads) == len(keep_alive_s)


def test_what_runs_elsewhere_is_switched_and_not_loaded() -> None:
    bot = a_model("bot:cloud", a_build(BASE, system="x"), resident=True)
    [switch] = rolled([bot], "bot:cloud", "bot:cloud-ollamaops-previous-1").actions
    assert isinstance(switch, CopyModel)


def test_a_hold_depends_on_the_entry_and_on_what_is_there() -> None:
    def held(spec: ModelSpec, status: Status = "rolled_back", digest: str = "d") -> bool:
        [declared] = build_desired("gpu-1", [model]).models
        memory = ModelRecord(how="copied", status=status, entry=rollback_key_of(declared), digest=digest)
        observed = ObservedHost(
            host="gpu-1",
            features=features_of(ServerVersion.parse("0.33.0")),
            models=Listing([(model.name, ObservedModel(name=model.name, digest="d"))]),
            memory={model.name: memory},
        )
        [now] = build_desired("gpu-1", [spec]).models
        return is_rolled_back(now, observed)

    model = a_model("bot", Pull(ref=BOT), update="latest")
    assert held(model)
    assert held(replace(model, retries=9, keep_previous=3))
    assert not held(replace(model, update="locked"))
    assert not held(replace(model, digest=Digest.of(b"x")))
    assert not held(replace(model, accepts=("x",)))
    assert not held(replace(model, name=name("other"), source=Pull(ref=name("other"))))
    assert not held(model, status="doubted")
    assert not held(model, digest="e")


# the command


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], sandbox: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": sandbox.url}})


def declare(world: World, color: str) -> None:
    world.declare(BASE, {"name": "bot", "from": BASE, "system": f"Say {color}.", "keep_previous": 1})


@pytest.fixture
def changed(world: World) -> World:
    for color in ("red", "blue"):
        declare(world, color)
        assert world.run("apply", "-y")[0] == 0
    return world


def test_the_command_rolls_back_and_the_next_plan_says_so(changed: World) -> None:
    code, text = changed.run("rollback", "bot")
    assert code == 0
    assert "~ bot:latest on gpu-1: rolled back in " in text
    assert "1 rolled back; 1 host as declared" in text
    code, text = changed.run("plan", "--detailed-exitcode")
    assert code == 0
    assert "bot:latest on gpu-1: stays at its previous version since it was rolled back" in text
    assert "hint: change its entry, or release it: ollamaops rollback bot:latest --release" in text
    assert "bot:latest   held" in changed.run("status")[1]
    document = json.loads(changed.run("plan", "-o", "json")[1])
    assert document["hosts"][0]["rolled_back"] == ["bot:latest"]
    assert changed.run("apply", "-y")[0] == 0
    assert changed.run("plan", "--release", "--detailed-exitcode")[0] == 2


def test_the_command_releases(changed: World) -> None:
    changed.run("rollback", "bot")
    assert changed.run("rollback", "bot", "--release") == (
        0,
        "bot:latest on gpu-1: released, the next apply brings it forward\n",
    )
    assert changed.run("rollback", "bot", "--release") == (0, "nothing was rolled back\n")
    assert changed.run("plan", "--detailed-exitcode")[0] == 2
    changed.run("rollback", "bot")


def test_apply_with_release_brings_forward(changed: World) -> None:
    changed.run("rollback", "bot")
    assert changed.run("apply", "-y", "--release")[0] == 0
    assert changed.run("plan", "--detailed-exitcode")[0] == 0
    assert "held" not in changed.run("status")[1]


@pytest.mark.usefixtures("hurry")
def test_the_command_says_what_it_cannot_do(changed: World, sandbox: Sandbox) -> None:
    code, text = changed.run("rollback", "bot", "--to", "2")
    assert (code, "cannot be rolled back by 2: 1 is kept" in text) == (1, True)
    assert text.endswith("nothing is rolled back; 1 unknown\n")
    assert (
        json.loads(changed.run("rollback", "bot", "--to", "2", "-o", "json")[1])["summary"]["unresolved"] == 1
    )
    code, text = changed.run("rollback", "nobody")
    assert (code, "matches no declared model" in text) == (64, True)
    assert changed.run("rollback")[0] == 64
    sandbox.stop()
    code, text = changed.run("rollback", "bot")
    assert (code, "not reached" in text) == (3, True)


def test_an_apply_without_changes_still_tidies_up(changed: World, sandbox: Sandbox) -> None:
    def tags() -> set[str]:
        listed = requests.get(f"{sandbox.url}/api/tags", timeout=PATIENCE_S).json()["models"]
        return {model["name"] for model in listed}

    for aside in ("bot:latest-ollamaops-next", "bot:latest-ollamaops-previous"):
        body = {"source": "bot", "destination": aside}
        requests.post(f"{sandbox.url}/api/copy", json=body, timeout=PATIENCE_S).raise_for_status()
    assert changed.run("drift")[0] == 0
    told = "· bot:latest-ollamaops-next on gpu-1: no longer needed under this name: "
    assert told + "apply removes it" in changed.run("plan")[1]
    code, text = changed.run("apply", "-y")
    assert code == 0
    assert told + "removed" in text
    assert "2 leftovers removed; 1 host as declared" in text
    assert "ollamaops-" not in changed.run("plan", "-v")[1]
    assert changed.run("apply", "-y")[1].startswith("nothing to do: 2 models on 1 host are as declared")
    assert tags() == {BASE, "bot:latest", "bot:latest-ollamaops-previous-1"}


def test_a_lost_memory_ends_a_hold(changed: World) -> None:
    changed.run("rollback", "bot")
    shutil.rmtree(changed.folder / "state")
    assert changed.run("plan", "--detailed-exitcode")[0] == 2


def test_a_plan_with_everything_of_it_can_be_saved(newest: LiveHost) -> None:
    from ollamaops.plan.codec import plan_from_json, plan_to_json

    expect = {"prompt": "x", "closer": ["a", "b", "c"], "max_load": 9, "options": {"stop": ["x"]}}
    models = [replace(model, expect=(expect,)) for model in a_bot("red")]
    newest.policy = Policy()
    plan = Plan(hosts=(newest.plan(models),))
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan
