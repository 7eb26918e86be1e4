"""Whether an action may begin right now: not when the maintenance window has closed, not while its model is in use.

Decides about the moment alone; what the plan as a whole may do was plan/guard.py's. The fact a reader would miss: an
action that has begun is never stopped here, so a running pull finishes after its window has closed.
"""

from __future__ import annotations

from datetime import datetime

from ollamaops.errors import Cancelled, RefusedError
from ollamaops.names import ModelName
from ollamaops.observe.guard_facts import clocks_of, names_loaded
from ollamaops.observe.session import Workbench
from ollamaops.plan.actions import Action, CopyModel, CreateModel, DeleteModel, PullModel
from ollamaops.plan.guard import CHANGING, describe_moment, is_open, next_opening

LOOKS_AT_BUSY = 300
PAUSE_S = 2.0


def await_turn(bench: Workbench, action: Action) -> None:
    """Return when the action may begin. RefusedError when it may not; Cancelled; RemoteError."""
    if isinstance(action, CHANGING) and "windows" not in bench.lifted:
        _require_window(bench)
    is_aside = isinstance(action, CreateModel) and action.aside is not None
    is_ours = action.model in bench.resident  # it is in memory whether anybody uses it or not: see guard.py
    touches = isinstance(action, PullModel | CreateModel | CopyModel | DeleteModel) and not (
        is_aside or is_ours
    )
    if touches and bench.policy.busy == "wait" and "busy" not in bench.lifted:
        _await_idle(bench, action.model)


def _require_window(bench: Workbench) -> None:
    windows = bench.policy.windows
    clocks = clocks_of(windows, datetime.fromisoformat(bench.now()))
    opening = next_opening(windows, clocks)
    if opening is not None and not is_open(windows, clocks):
        raise RefusedError(
            "the maintenance window has closed",
            hint=f"run again when the next one opens: {describe_moment(opening)}",
        )


def _await_idle(bench: Workbench, name: ModelName) -> None:
    for _ in range(LOOKS_AT_BUSY):
        if name not in bench.patiently(lambda: names_loaded(bench.client)):
            return
        if bench.cancel.wait(PAUSE_S):
            raise Cancelled("stopped while waiting for a model to be idle")
    raise RefusedError(
        f"'{name}' is in use, and was so for {LOOKS_AT_BUSY * PAUSE_S:g} s",
        hint="unload it, or use --force busy for this run",
    )
