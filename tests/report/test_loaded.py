"""What `ollamaops ps` and reports say of memory: sizes, shares, times, what is stale, what is to be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from msgspec.structs import replace
from patience import PATIENCE_S

from ollamaops.cli.main import run as run_command
from ollamaops.errors import Cancelled
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec
from ollamaops.names import ModelName
from ollamaops.observe.host import observe_loaded
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run
from ollamaops.plan.actions import (
    Difference,
    HostPlan,
    LoadModel,
    Plan,
    PullModel,
    UnloadModel,
    UnreachedHost,
)
from ollamaops.plan.observed import HostLoaded, Loaded, under_own_names
from ollamaops.plan.versions import next_of
from ollamaops.registry.client import RegistryClient
from ollamaops.report.loaded_text import loaded_to_json, render_loaded
from ollamaops.report.plan_text import render_plan
from ollamaops.report.status_text import build_status
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

NOW, BEFORE = "9f2c" * 16, "3f2a" * 16
GB = 10**9


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def fleet() -> tuple[HostLoaded, HostLoaded]:
    return (
        HostLoaded(
            host="gpu-1",
            loaded=(
                Loaded(name=a_name("qwen3:32b"), digest=NOW, size_bytes=24 * GB, vram_bytes=18 * GB),
                Loaded(
                    name=a_name("bot"), digest=BEFORE, size_bytes=2 * GB, vram_bytes=2 * GB, stays_s=272.0
                ),
                Loaded(name=a_name("gone"), digest=BEFORE, size_bytes=0, stays_s=1.0, context_length=4096),
            ),
            digests={a_name("qwen3:32b"): NOW, a_name("bot"): NOW},
            declared={
                a_name("qwen3:32b"): True,
                a_name("bot"): 1800.0,
                a_name("gone"): False,
                a_name("emb"): True,
            },
        ),
        HostLoaded(host="gpu-2", loaded=(Loaded(name=a_name("llava"), digest=NOW, size_bytes=GB),)),
    )


AWAY = UnreachedHost(host="gpu-3", error="gpu-3: nobody answers", hint="start it")


def test_memory_is_shown_as_a_table_of_what_is_there_and_what_should_be() -> None:
    assert render_loaded(fleet(), [AWAY]) == (
        "model         host   size     on GPU  stays     declared  state\n"
        "bot:latest    gpu-1  2.0 GB   100 %   4m32s     30m00s    stale\n"
        "gone:latest   gpu-1  0 B      0 %     1.0s      unload    deleted\n"
        "qwen3:32b     gpu-1  24.0 GB  75 %    for ever  for ever  current\n"
        "emb:latest    gpu-1  -        -       -         for ever  not in memory\n"
        "llava:latest  gpu-2  1.0 GB   0 %     for ever  -         deleted\n"
        "! gpu-3: not reached: nobody answers; its state is unknown, nothing is planned for it\n"
        "    hint: start it\n"
        "4 models in memory on 2 hosts: 27.0 GB, 20.0 GB of it on GPUs; 1 stale; 2 deleted; "
        "1 declared but not in memory; 1 host not reached\n"
    )


def test_an_empty_memory_is_one_line() -> None:
    assert render_loaded([HostLoaded(host="gpu-2")], []) == "0 models in memory on 1 host\n"


def test_colors_change_nothing_but_colors() -> None:
    colored = render_loaded(fleet(), [], color=True)
    assert "\x1b[33mstale\x1b[0m" in colored
    assert "\x1b[31mnot in memory\x1b[0m" in colored


def test_programs_get_numbers() -> None:
    document = loaded_to_json(fleet(), [AWAY])
    assert json.loads(json.dumps(document)) == document
    hosts = document["hosts"]
    assert isinstance(hosts, list)
    first, second, away = hosts
    assert isinstance(first, dict)
    assert first["absent"] == ["emb:latest"]
    models = first["models"]
    assert isinstance(models, list)
    assert models[0] == {
        "model": "qwen3:32b",
        "digest": NOW,
        "state": "current",
        "size_bytes": 24 * GB,
        "vram_bytes": 18 * GB,
        "gpu_percent": 75,
        "context_length": None,
        "expires_at": "",
        "stays_s": None,
        "resident": True,
        "also": [],
    }
    assert isinstance(second, dict)
    assert (second["reached"], second["absent"]) == (True, [])
    assert isinstance(away, dict)
    assert (away["reached"], away["error"]) == (False, "gpu-3: nobody answers")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ollamaops.yaml"


@pytest.mark.usefixtures("hurry")
def test_ps_shows_every_host_and_ends_3_when_one_is_away(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Sandbox() as sandbox:
        hosts = {"gpu-1": {"url": sandbox.url}}
        models = [{"name": "llama3.2:3b", "resident": True}, {"name": "bot", "from": "llama3.2:3b"}]
        manifest.write_text(json.dumps({"hosts": hosts, "models": models}))
        assert (
            run_command(["apply", "-y", "--state-dir", "state", "--no-registry", "--progress", "none"]) == 0
        )
        requests.post(
            f"{sandbox.url}/api/create",
            json={"model": "llama3.2:3b", "from": "bot", "system": "s"},
            timeout=PATIENCE_S,
        )
        capsys.readouterr()
        assert run_command(["ps"]) == 0
        head, row, total = capsys.readouterr().out.splitlines()
        assert head.split()[:2] == ["model", "host"]
        assert row.split() == [
            "llama3.2:3b",
            "gpu-1",
            "43.5",
            "kB",
            "0",
            "%",
            *(["for", "ever"] * 2),
            "stale",
        ]
        assert total == "1 model in memory on 1 host: 43.5 kB, 0 B of it on GPUs; 1 stale"
        hosts["gpu-2"] = {"url": "http://127.0.0.1:9"}
        manifest.write_text(json.dumps({"hosts": hosts, "models": models}))
        assert run_command(["ps", "-o", "json"]) == 3
        document = json.loads(capsys.readouterr().out)
        assert [(host["host"], host["reached"]) for host in document["hosts"]] == [
            ("gpu-1", True),
            ("gpu-2", False),
        ]
        assert run_command(["ps", "-o", "html"]) == 64


def test_ps_goes_by_the_names_that_are_declared_not_by_those_aside(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        {
            "name": "bot",
            "from": "llama3.2:3b",
            "system": "s",
            "resident": True,
            "expect": {"capabilities": ["completion"]},
        },
        "nomic-embed-text",
        {"name": "emb", "copy": "nomic-embed-text", "resident": "30m"},
    ]
    with Sandbox() as sandbox:
        manifest.write_text(json.dumps({"hosts": {"gpu-1": {"url": sandbox.url}}, "models": models}))
        assert (
            run_command(["apply", "-y", "--state-dir", "state", "--no-registry", "--progress", "none"]) == 0
        )
        requests.post(
            f"{sandbox.url}/api/embed", json={"model": "nomic-embed-text", "input": "x"}, timeout=PATIENCE_S
        )
        capsys.readouterr()
        assert run_command(["ps", "-o", "json"]) == 0
        (host,) = json.loads(capsys.readouterr().out)["hosts"]
        assert host["absent"] == []
        found = {model["model"]: (model["resident"], model["also"]) for model in host["models"]}
        names = {"emb:latest", "nomic-embed-text:latest"}
        assert found.pop("bot:latest") == (True, [])
        ((name, (resident, also)),) = found.items()
        assert ({name, *also}, resident) == (names, 1800.0)


def test_what_waited_aside_goes_by_the_name_it_waited_for() -> None:
    bot, alias, other = a_name("bot"), a_name("alias"), a_name("other")
    aside = Loaded(name=next_of(bot), digest=NOW)

    def named(digests: dict[ModelName, str], *declared: ModelName) -> tuple[ModelName, set[ModelName]]:
        (one,) = under_own_names([aside], digests, declared)
        return one.name, set(one.also)

    assert named({bot: NOW, alias: NOW}, alias) == (bot, {alias})
    assert named({bot: BEFORE, alias: NOW, other: NOW}, other) == (other, {alias})
    assert named({bot: BEFORE}, bot) == (next_of(bot), set())


def test_a_name_that_shares_a_runner_counts_with_what_is_declared_of_it() -> None:
    one = Loaded(name=a_name("a"), digest=NOW, size_bytes=GB, also=frozenset(map(a_name, "bcd")))
    declared = {a_name("b"): 60.0, a_name("c"): True, a_name("d"): False}
    host = HostLoaded(host="h", loaded=(one,), digests={a_name("a"): NOW}, declared=declared)
    assert render_loaded([host], []).splitlines()[1].split("  ")[0] == "a:latest, b:latest, c:latest"
    assert host.resident_of(one) is True
    assert replace(host, declared={**declared, a_name("a"): 5.0}).resident_of(one) == 5.0


def test_a_stop_ends_the_look_at_all_hosts(tmp_path: Path) -> None:
    stopped = CancelToken()
    stopped.cancel()
    run = Run(ledger=Ledger(tmp_path), registries=RegistryCache(RegistryClient), cancel=stopped)
    with Sandbox() as sandbox, pytest.raises(Cancelled):
        observe_loaded([HostTask(spec=HostSpec(name="h", url=sandbox.url))], run)


# --- plans ----------------------------------------------------------------------------------------------------------


def because(model: str, observed: str) -> tuple[Difference, ...]:
    return (Difference(host="gpu-1", model=a_name(model), kind="resident", observed=observed),)


def memory_plan() -> Plan:
    load = LoadModel(host="gpu-1", model=a_name("a"), because=because("a", "not in memory"))
    brief = LoadModel(
        host="gpu-1",
        model=a_name("b"),
        because=because("b", "an older content is in memory"),
        keep_alive_s=90,
    )
    unload = UnloadModel(host="gpu-1", model=a_name("c"), because=because("c", "in memory"))
    missing = (Difference(host="gpu-1", model=a_name("b"), kind="missing"),)
    pull = PullModel(host="gpu-1", model=a_name("b"), because=missing)
    unchanged = (a_name("a"), a_name("c"))
    return Plan(hosts=(HostPlan(host="gpu-1", actions=(pull, load, brief, unload), unchanged=unchanged),))


def test_what_is_loaded_and_unloaded_is_said_and_counted() -> None:
    assert render_plan(memory_plan()).splitlines() == [
        "+ b:latest on gpu-1: pull, not there: size not known",
        "~ a:latest on gpu-1: load, not in memory",
        "~ b:latest on gpu-1: load for 1m30s, an older content is in memory",
        "~ c:latest on gpu-1: unload, in memory",
        "1 to pull, 0 to create, 0 to delete, 2 to load, 1 to unload, 2 unchanged; ? to download",
    ]


def test_status_tells_a_missing_model_before_one_that_is_only_not_in_memory() -> None:
    table = build_status(memory_plan())
    states = {str(name): row["gpu-1"].state for name, row in table.items()}
    assert states == {"a:latest": "drifted", "b:latest": "missing", "c:latest": "drifted"}
