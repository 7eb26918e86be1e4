"""A process that is killed in the middle of an apply: the next run converges, and nothing was lost."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from live_host import BASE, a_host, an_absence, assert_converged, small_manifest

_KILLED = 137
# Applies the pickled case of stdin, and dies without any goodbye at the event of the given number.
_VICTIM = """
import os, pickle, sys
from ollamaops.apply.upstream import Upstreams
from ollamaops.plan.actions import Plan
from ollamaops.reconcile import Surroundings, apply_hosts, plan_hosts
from ollamaops.registry.client import RegistryClient
from ollamaops.state.ledger import Ledger

left = int(sys.argv[2])

def die(event):
    global left
    left -= 1
    if left == 0:
        os._exit(137)

cases = pickle.load(sys.stdin.buffer)
around = Surroundings(ledger=Ledger(sys.argv[1]), upstreams=Upstreams(RegistryClient), emit=die)
apply_hosts(plan_hosts(cases, around), cases, around)
"""


@pytest.mark.parametrize("version", ["0.3.4", "0.6.8", "0.33.0-rc2"])
@pytest.mark.parametrize("event", [2, 4, 7, 10, 13, 16])
def test_a_run_that_is_killed_is_finished_by_the_next(version: str, event: int, tmp_path: Path) -> None:
    with a_host(version) as host:
        host.stranger.pull("all-minilm")
        for copy in ("theirs", "old-bot:v1", "bot"):
            host.stranger.copy("all-minilm", copy)
        before = host.stranger.tags()
        absent = [an_absence("old-bot:*")]
        killed = subprocess.run(
            [sys.executable, "-c", _VICTIM, str(host.state), str(event)],
            input=pickle.dumps(host.cases(small_manifest(), absent)),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert killed.returncode == _KILLED, killed.stderr.decode()
        assert before["theirs:latest"] == host.stranger.tags()["theirs:latest"]
        assert "bot:latest" in host.stranger.tags()  # the old one or the new one, but never none

        assert_converged(host, host.apply(small_manifest(), absent))
        assert host.plan(small_manifest(), absent).actions == ()
        assert host.requests_sent == 2
        after = host.stranger.tags()
        assert after.keys() == {
            BASE,
            "all-minilm:latest",
            "theirs:latest",
            "bot:latest",
            "chat:latest",
            "legal:latest",
        }
        assert after["theirs:latest"] == before["theirs:latest"]
