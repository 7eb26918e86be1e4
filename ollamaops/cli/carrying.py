"""Carrying a plan out, watched and written down: what apply and prune have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ollamaops.apply.history import recorded
from ollamaops.cli import exits
from ollamaops.cli.context import Scene, listening
from ollamaops.cli.signals import exit_code
from ollamaops.engine import apply_hosts
from ollamaops.plan.actions import Plan
from ollamaops.plan.results import RunReport


def carry_out(scene: Scene, plan: Plan, command: str, force: Sequence[str] = ()) -> tuple[RunReport, int]:
    """What became of the plan, and the exit code. The run is kept in the history as `command`."""
    asked = " ".join([command, *(f"--force {rule}" for rule in force)])
    folder = scene.manifest.root
    with (
        listening(scene) as around,
        recorded(plan, scene.cases, around, command=asked, folder=folder) as recorder,
    ):
        report = apply_hosts(plan, scene.cases, recorder.around)
        code = exit_code() if report.interrupted else exits.code_of_run(report)
        recorder.finish(report, code)
    return report, code
