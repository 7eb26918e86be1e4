"""Questions on a real terminal: what is answered counts, and one Ctrl-C at a question ends everything at once."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import yaml
from patience import PATIENCE_S

from ollamaops.cli.main import run
from ollamaops.sandbox.server import Sandbox

# the terminal becomes the one that Ctrl-C is typed on
_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_PROGRAM = [sys.executable, "-m", "ollamaops"]
CTRL_C = b"\x03"


class Terminal:
    """A program on a terminal of its own: what it shows, and what is typed."""

    def __init__(self, program: subprocess.Popen[bytes], terminal: int) -> None:
        self.program, self._terminal, self.shown = program, terminal, ""

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            self._wait_for_more()
            self.shown += os.read(self._terminal, 4096).decode()

    def _wait_for_more(self) -> None:
        assert select.select([self._terminal], [], [], 20)[0], self.shown

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def end(self) -> int:
        """Its exit code, once it has shown all it had to."""
        try:
            while True:
                self._wait_for_more()
                self.shown += os.read(self._terminal, 4096).decode()
        except OSError:
            pass  # how Linux says that nobody has the terminal open any more
        return self.program.wait(timeout=PATIENCE_S)


@contextmanager
def on_terminal(arguments: list[str], folder: Path) -> Iterator[Terminal]:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    environ = {**os.environ, "OLLAMAOPS_STATE_DIR": str(folder / "state")}
    command = [sys.executable, "-c", _ON_TERMINAL, *_PROGRAM, *arguments]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environ,
        start_new_session=True,
    ) as program:
        os.close(theirs)
        try:
            yield Terminal(program, ours)
        finally:
            program.kill()
            os.close(ours)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        yield sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ollamaops.yaml").write_text(yaml.safe_dump({"models": ["llama3.2:3b"]}))
    return tmp_path


def tags(host: Sandbox) -> set[str]:
    return {
        model["name"] for model in requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    }


@pytest.mark.parametrize("keys, arguments", [(CTRL_C, []), (CTRL_C * 2, []), (CTRL_C, ["--sandbox"])])
def test_ctrl_c_at_the_question_ends_at_once_and_changes_nothing(
    keys: bytes, arguments: list[str], host: Sandbox, folder: Path
) -> None:
    with on_terminal(["apply", *arguments], folder) as terminal:
        terminal.read_until("[y/N]")
        terminal.type(keys)
        assert (terminal.end(), tags(host)) == (130, set()), terminal.shown
    assert "press Ctrl-C again" not in terminal.shown


def test_sigterm_at_the_question_ends_143(host: Sandbox, folder: Path) -> None:
    with on_terminal(["apply"], folder) as terminal:
        terminal.read_until("[y/N]")
        terminal.program.terminate()
        assert (terminal.end(), tags(host)) == (143, set()), terminal.shown


@pytest.mark.parametrize("keys", [b"\n", b"what?\nno\n", b"\x04"])
def test_only_a_yes_is_a_yes(keys: bytes, host: Sandbox, folder: Path) -> None:
    with on_terminal(["apply"], folder) as terminal:
        terminal.read_until("Do this on 1 host? [y/N]")
        terminal.type(keys)
        assert (terminal.end(), tags(host)) == (1, set())
    assert "nothing was changed" in terminal.shown
    assert ("answer y or n" in terminal.shown) == keys.startswith(b"what")


def test_a_yes_does_what_was_shown(host: Sandbox, folder: Path) -> None:
    with on_terminal(["apply"], folder) as terminal:
        terminal.read_until("[y/N]")
        terminal.type(b"YES\n")
        assert (terminal.end(), tags(host)) == (0, {"llama3.2:3b"})


@pytest.mark.parametrize("keys, code", [(CTRL_C, 130), (b"n\n", 1), (b"y\n", 0)])
def test_prune_asks_before_it_deletes(
    keys: bytes, code: int, host: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMAOPS_STATE_DIR", str(folder / "state"))
    manifest = folder / "ollamaops.yaml"
    assert run(["apply", "-y", "-f", str(manifest)]) == 0
    manifest.write_text(yaml.safe_dump({"models": []}))
    with on_terminal(["prune", "--force", "empty-manifest"], folder) as terminal:
        terminal.read_until("Delete 1 model? [y/N]")
        terminal.type(keys)
        assert terminal.end() == code, terminal.shown
    assert tags(host) == (set() if code == 0 else {"llama3.2:3b"})
