"""What happened, as frozen values. A sink is any callable that takes one Event.

The engine emits events and knows nothing of who listens: live progress, plain lines, JSON logs and tests are all
sinks. Every event names its run, its moment (UTC, RFC 3339), its host and, where there is one, its action; the
id of an action is the one in the plan (`gpu-1/pull/llama3.2:3b`). Outcomes live here too: how one action ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct, field


class Succeeded(Struct, frozen=True, kw_only=True):
    """The action was done and its result was seen on the host. `changed` is False when nothing had to move."""

    seconds: float = 0.0
    changed: bool = True


class Failed(Struct, frozen=True, kw_only=True):
    """The action was tried and did not work. `error` is one line for people, `hint` what to do about it."""

    error: str
    hint: str | None = None
    exit_code: int = 3
    seconds: float = 0.0


class Skipped(Struct, frozen=True, kw_only=True):
    """The action was never tried, `because` something it needs did not succeed."""

    because: str


class Refused(Struct, frozen=True, kw_only=True):
    """The action was not tried: a fact it depends on has changed, or a rule said no."""

    because: str
    hint: str | None = None


class Interrupted(Struct, frozen=True, kw_only=True):
    """The action was not started, or was stopped halfway, because somebody asked to stop."""

    started: bool = False


Outcome = Succeeded | Failed | Skipped | Refused | Interrupted


class Stamp(Struct, frozen=True, kw_only=True):
    """What every event carries. `at` is UTC in RFC 3339 with milliseconds."""

    run_id: str
    at: str
    host: str = ""
    action_id: str = ""


class HostObserved(Stamp, frozen=True, kw_only=True):
    """A host answered: its version, how many models it has, and how many requests it took to learn that."""

    version: str
    models: int
    requests: int


class HostUnreached(Stamp, frozen=True, kw_only=True):
    """A host did not answer; its state is unknown."""

    error: str
    hint: str | None = None


class ActionStarted(Stamp, frozen=True, kw_only=True):
    """An action began. `verb` and `subject` are what a progress line shows (`pull`, `llama3.2:3b`)."""

    verb: str
    subject: str


class Progressed(Stamp, frozen=True, kw_only=True):
    """A long action moved on. `layer` is the short digest of what moves, `""` for a step without bytes."""

    status: str
    layer: str = ""
    completed_bytes: int = 0
    total_bytes: int = 0


class Retrying(Stamp, frozen=True, kw_only=True):
    """An attempt failed in a way that may pass; the next one starts after `wait_s` seconds."""

    attempt: int
    attempts: int
    wait_s: float
    error: str


class ActionEnded(Stamp, frozen=True, kw_only=True):
    """An action ended, in exactly one outcome."""

    outcome: Outcome


class RoundEnded(Stamp, frozen=True, kw_only=True):
    """A fresh look after applying: `remaining` names what is still to do, `lasting` counts what differs and cannot be
    changed, `unknown` what could not be found out. Nothing of these: the host is as declared."""

    round: int
    lasting: int = 0
    unknown: int = 0
    remaining: tuple[str, ...] = field(default=())


class Noted(Stamp, frozen=True, kw_only=True):
    """Something worth a line that is neither progress nor an outcome."""

    level: Literal["info", "warning"]
    message: str


Event = (
    HostObserved | HostUnreached | ActionStarted | Progressed | Retrying | ActionEnded | RoundEnded | Noted
)
Sink = Callable[[Event], None]


def discard(event: Event) -> None:
    """A sink that listens to nothing."""
