"""`ollamaops test` as its users see it: exit codes, what is said, the JSON and JUnit documents."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from patience import PATIENCE_S
from pulled_models import World

from ollamaops.cli.main import run
from ollamaops.sandbox.fault_injection import with_faults
from ollamaops.sandbox.fault_script import parse_faults
from ollamaops.sandbox.server import Sandbox

MODEL = "llama3.2:3b"
PONG = {"prompt": "Reply with the word pong.", "matches": "(?i)pong"}
PING = {"prompt": "Reply with the word ping.", "contains": ["pong"], "context_length": 999999}


@pytest.fixture
def host() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        for model in (MODEL, "llama3.2:1b"):
            requests.post(
                f"{sandbox.url}/api/pull", json={"model": model, "stream": False}, timeout=PATIENCE_S
            )
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": host.url}})


def test_models_that_do_what_is_expected_pass(world: World) -> None:
    world.declare({"name": MODEL, "expect": [PONG, {"capabilities": ["completion"]}]}, "llama3.2:1b")
    code, text = world.run("test")
    assert code == 0
    assert text.splitlines() == [
        "✓ llama3.2:3b on gpu-1: 2 expectations met; loaded in 0.0s, 100 tokens a second",
        "✓ llama3.2:1b on gpu-1: answers; loaded in 0.0s, 100 tokens a second",
        "2 models tested on 1 host: 2 passed",
    ]


def test_a_failed_expectation_ends_5_and_says_why_in_every_format(world: World, tmp_path: Path) -> None:
    world.declare({"name": MODEL, "expect": PONG}, {"name": "llama3.2:1b", "expect": PING})
    code, text = world.run("test", "--junit", str(tmp_path / "report.xml"))
    assert code == 5
    assert "✗ llama3.2:1b on gpu-1: contains: no 'pong' in an answer of 4 characters: 'ping'\n" in text
    assert (
        "context_length: loaded with 4096 tokens, 999999 expected\n    hint: set parameters.num_ctx" in text
    )
    assert text.endswith("2 models tested on 1 host: 1 passed, 1 failed\n")
    [suite] = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.attrib == {"name": "gpu-1", "tests": "2", "failures": "1", "errors": "0", "skipped": "0"}
    assert [len(case) for case in suite] == [0, 2]
    code, text = world.run("test", "-o", "json")
    document = json.loads(text)
    assert (code, document["passed"]) == (5, False)
    assert [model["passed"] for model in document["hosts"][0]["models"]] == [True, False]
    assert [failure["what"] for failure in document["hosts"][0]["models"][1]["failures"]] == [
        "contains",
        "context_length",
    ]


def test_only_the_models_that_are_named_are_tested(world: World, host: Sandbox) -> None:
    world.declare({"name": MODEL, "expect": PONG}, {"name": "llama3.2:1b", "expect": PING})
    assert world.run("test", MODEL)[0] == 0
    assert world.run("test", "llama3.2:*b")[0] == 5
    assert world.run("--target", MODEL, "test")[0] == 0
    code, text = world.run("test", "mistral")
    assert (code, "matches no declared model" in text) == (64, True)


@pytest.mark.usefixtures("hurry")
def test_a_host_that_is_not_reached_ends_3_and_a_failure_counts_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"http://127.0.0.1:{server.getsockname()[1]}"
    world = World(
        tmp_path, capsys, hosts={"dead": {"url": dead, "timeout": "2s"}, "gpu-1": {"url": host.url}}
    )
    world.declare({"name": MODEL, "expect": PONG})
    code, text = world.run("test", "--junit", str(tmp_path / "report.xml"))
    assert code == 3
    assert "! dead: not reached: " in text
    assert text.endswith("1 model tested on 1 host: 1 passed; 1 host not reached\n")
    suites = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert [(suite.get("name"), suite.get("errors")) for suite in suites] == [("dead", "1"), ("gpu-1", "0")]
    document = json.loads(world.run("test", "-o", "json")[1])
    assert [host["reached"] for host in document["hosts"]] == [False, True]
    world.declare({"name": MODEL, "expect": PING})
    assert world.run("test")[0] == 5


@pytest.mark.usefixtures("hurry")
def test_one_answer_that_ends_early_leaves_that_model_unknown_and_the_others_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox
) -> None:
    rule = {"on": {"endpoint": "generate", "model": MODEL}, "do": {"cut": "mid-line"}}
    with Sandbox(host.store.root, faults=with_faults(parse_faults(json.dumps([rule])))) as faulty:
        world = World(tmp_path, capsys, hosts={"gpu-1": {"url": faulty.url}})
        world.declare({"name": MODEL, "expect": PONG}, {"name": "llama3.2:1b", "expect": PONG})
        code, text = world.run("test", "--junit", str(tmp_path / "report.xml"))
        document = json.loads(world.run("test", "-o", "json")[1])
    assert code == 3, text
    assert f"? {MODEL} on gpu-1: not known: " in text
    assert "not reached" not in text
    assert text.endswith("2 models tested on 1 host: 1 passed, 1 unknown\n")
    [suite] = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
    [found] = document["hosts"]
    assert (found["reached"], [model["passed"] for model in found["models"]]) == (True, [False, True])
    assert [bool(model["error"]) for model in found["models"]] == [True, False]


@pytest.mark.usefixtures("hurry")
def test_without_a_host_that_is_reached_nothing_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, capsys, hosts={"dead": {"url": "http://127.0.0.1:9", "timeout": "1s"}})
    world.declare({"name": MODEL, "expect": PONG})
    assert world.run("test")[0] == 1


def test_without_a_model_there_is_nothing_to_verify_and_that_is_said(world: World) -> None:
    world.declare()
    assert world.run("test") == (0, "nothing to verify: no model is declared for these hosts\n")


def test_a_report_that_cannot_be_written_is_an_error_of_usage(world: World, tmp_path: Path) -> None:
    world.declare({"name": MODEL, "expect": PONG})
    code, text = world.run("test", "--junit", str(tmp_path))
    assert (code, "is a directory" in text) == (64, True)


def test_what_is_asked_is_told_while_it_goes_on(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world.declare({"name": MODEL, "expect": PONG})
    assert run(["test", "-f", str(tmp_path / "ollamaops.yaml"), "--state-dir", str(tmp_path / "state")]) == 0
    assert capsys.readouterr().err == f"{MODEL} on gpu-1: asking\n"
    assert run(["test", "-q", "-f", str(tmp_path / "ollamaops.yaml")]) == 0
    assert capsys.readouterr().err == ""
