"""Ctrl-C and SIGTERM while a registry is being asked: no further question, nothing written, and 130 or 143."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE_S
from registry_fixture import MANIFEST_TYPE, Reply, Request, RunningServer, run_server

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

CONFIG = {
    "mediaType": "application/vnd.docker.container.image.v1+json",
    "digest": str(Digest.of(b"{}")),
    "size": 2,
}
RAW = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": CONFIG, "layers": []}).encode()
COMMANDS = (["lock"], ["lock", "--update"], ["lock", "--check"], ["outdated"], ["plan"])


class Registry:
    """Answers at once until `pausing` is set; then it keeps whoever asks waiting until `ended` is."""

    def __init__(self) -> None:
        self.pausing, self.asked, self.ended = threading.Event(), threading.Event(), threading.Event()

    def answer(self, request: Request) -> Reply:
        if self.pausing.is_set():
            self.asked.set()
            self.ended.wait(PATIENCE_S)
        return Reply(200, {"Content-Type": MANIFEST_TYPE}, RAW if "/manifests/" in request.path else b"{}")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def server(registry: Registry) -> Iterator[RunningServer]:
    with run_server(registry.answer) as running:
        yield running


@pytest.fixture
def host() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def declare(folder: Path, server: RunningServer, host: Sandbox, **keys: object) -> None:
    """Six models of one registry, on one host."""
    models = [{"name": f"{server.host}/team/mario:v{n}", "insecure": True, **keys} for n in range(6)]
    (folder / "ollamaops.yaml").write_text(
        yaml.safe_dump({"hosts": {"gpu-1": {"url": host.url}}, "models": models})
    )


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "ollamaops", *arguments, "--state-dir", str(folder / "state")]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stop_while_asking(
    registry: Registry, folder: Path, number: signal.Signals, *arguments: str
) -> tuple[int, str]:
    """The exit code, and what was printed, of a command that gets a signal while it waits for the registry."""
    registry.pausing.set()
    with start(folder, *arguments) as running:
        try:
            assert registry.asked.wait(PATIENCE_S)
            running.send_signal(number)
            text, _ = running.communicate(timeout=PATIENCE_S)
        finally:
            registry.ended.set()
            running.kill()
    return running.returncode, text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_ctrl_c_sends_no_further_question_waits_for_none_and_leaves_the_lock_as_it_was(
    command: list[str], registry: Registry, server: RunningServer, host: Sandbox, tmp_path: Path
) -> None:
    declare(tmp_path, server, host)
    lock = tmp_path / "ollamaops.lock"
    if command != ["lock"]:
        with start(tmp_path, "lock") as running:
            assert running.wait(PATIENCE_S) == 0
    before, asked = lock.exists() and lock.read_bytes(), len(server.requests)
    declare(tmp_path, server, host, **({} if command[0] == "lock" else {"update": "latest"}))
    code, text = stop_while_asking(registry, tmp_path, signal.SIGINT, *command)
    assert (code, len(server.requests) - asked) == (130, 1), text
    assert (lock.exists() and lock.read_bytes()) == before
    assert text.splitlines() == [
        "",
        "stopping; press Ctrl-C again to stop without waiting",
        "interrupted; run again to continue",
    ]


def test_sigterm_ends_it_with_143(
    registry: Registry, server: RunningServer, host: Sandbox, tmp_path: Path
) -> None:
    declare(tmp_path, server, host)
    assert stop_while_asking(registry, tmp_path, signal.SIGTERM, "lock")[0] == 143
    assert not (tmp_path / "ollamaops.lock").exists()
    assert os.listdir(tmp_path) == ["ollamaops.yaml"]  # noqa: PTH208 - names only
