"""Processes of `ollamaops` that cost little to start, so that a test can afford to kill many of them.

A `ForkServer` is one process that has imported the program once and forks for every run asked of it; each run is a
process of its own with the program's own entry, files and signals. Only its clock is another one: where the program
waits before it tries something again, it waits a fraction of the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from patience import PATIENCE_S

# Events at which something begins or ends.
BOUNDARIES = ("action_started", "action_ended", "round_ended")
# How much faster than real time the program waits.
_HURRY = 25
# Reads a line of JSON from stdin for each run, and forks for it. Says the child's pid, what the child writes, and how
# it ended. The child is reaped before that is said, so that no run takes it for alive.
_KEEPER = f"""
import json, os, signal, sys
import ollamaops.cli.apply, ollamaops.cli.plan, ollamaops.cli.rollback
from ollamaops.cli.main import main
from ollamaops.http.cancel import CancelToken

wait = CancelToken.wait
CancelToken.wait = lambda token, timeout=None: wait(token, timeout and timeout / {_HURRY})

class Deadly:
    def __init__(self, stream, left):
        self.stream, self.left = stream, left

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.stream.write(text)
        self.stream.flush()
        self.left -= any('"event": "' + event + '"' in text for event in {BOUNDARIES!r})
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def say(line):
    os.write(1, (line + "\\n").encode())

for line in sys.stdin:
    arguments, last_event = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(1, 2)
        if last_event:
            sys.stderr = Deadly(sys.stderr, last_event)
        main(arguments)
    say(f"pid {{child}}")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    say(f"\\nended {{code}}")
"""


@dataclass
class Run:
    """One process that was started. `said` is all that it wrote, line by line; `code` is negative for a signal."""

    code: int
    said: list[str] = field(default_factory=list)

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def __str__(self) -> str:
        return "\n".join([f"exit {self.code}", *self.said])


class ForkServer:
    """Starts runs, one at a time. A context manager."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        measured = ("COV_CORE", "COVERAGE")  # what is killed has nothing to report
        environ = {key: value for key, value in os.environ.items() if not key.startswith(measured)}
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environ, "PYTHONPATH": str(root)},
        )
        self._changed = threading.Condition()
        self._pid: int | None = None  # of the run that is under way, 0 before it is known

    def run(self, arguments: Sequence[str], *, last_event: int = 0) -> Run:
        """The program with these arguments, to its end.

        With `--log-format json` it is killed by telling the boundary of that number, counted from 1.
        """
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._note(0)
        self._keeper.stdin.write(json.dumps([list(arguments), last_event]) + "\n")
        self._keeper.stdin.flush()
        said: list[str] = []
        for line in map(str.rstrip, self._keeper.stdout):
            word, _, rest = line.partition(" ")
            if word == "pid":
                self._note(int(rest))
            elif word == "ended":
                self._note(None)
                return Run(int(rest), said)
            elif line:
                said.append(line)
        raise AssertionError("the fork server ended: " + "\n".join(said))

    def kill(self) -> None:
        """kill -9 for the run that is under way, if one is, from any thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._pid != 0, 60)
            if self._pid is not None:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(self._pid, signal.SIGKILL)

    def _note(self, pid: int | None) -> None:
        with self._changed:
            self._pid = pid
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(PATIENCE_S)
        self._keeper.stdout.close()
