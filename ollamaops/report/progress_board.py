"""What is going on right now, gathered from events: who runs, how far, how fast.

Holds the rows of a progress display and the one-line text of each event; progress.py draws them. Time comes from the
events' own `at`, never from a clock, so a replayed run shows the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from msgspec import Struct

from ollamaops.events import (
    ActionEnded,
    ActionStarted,
    Event,
    Failed,
    HostObserved,
    HostUnreached,
    Interrupted,
    Noted,
    Outcome,
    Progressed,
    Refused,
    Retrying,
    RoundEnded,
    Skipped,
    Stamp,
    Succeeded,
)
from ollamaops.report.words import Style, clean, join_names, plural, without_host
from ollamaops.units import format_duration, format_size

_WINDOW_S = 15.0  # over which a rate is taken


class Row(Struct, frozen=True, kw_only=True):
    """One row of a display. `share` is done/total from 0 to 1, None when there is nothing to measure."""

    label: str
    text: str
    share: float | None = None
    is_host: bool = False


@dataclass(slots=True)
class Flow:
    """Bytes of one layer on the move."""

    completed_bytes: int = 0
    total_bytes: int = 0
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def move(self, at_s: float, completed_bytes: int, total_bytes: int) -> None:
        """Take a new reading; one that goes back (a part that restarts) resets the speed."""
        if completed_bytes < self.completed_bytes:
            self.samples.clear()
        self.completed_bytes, self.total_bytes = completed_bytes, total_bytes
        self.samples.append((at_s, completed_bytes))
        while at_s - self.samples[0][0] > _WINDOW_S and len(self.samples) > 2:
            self.samples.popleft()

    @property
    def rate(self) -> float:
        """Bytes per second over the last seconds; 0 while it is not known."""
        if not self.samples:
            return 0.0
        (start_s, start), (end_s, end) = self.samples[0], self.samples[-1]
        return (end - start) / (end_s - start_s) if end_s > start_s else 0.0

    @property
    def is_moving(self) -> bool:
        """Whether there are bytes left to move."""
        return 0 <= self.completed_bytes < self.total_bytes


@dataclass(slots=True)
class _Running:
    """One action that has started and not ended."""

    title: str
    status: str = ""
    flows: dict[str, Flow] = field(default_factory=dict)


@dataclass(slots=True)
class _HostRows:
    running: dict[str, _Running] = field(default_factory=dict)
    ended: int = 0


class Board:
    """The state of a run as its events tell it. Not safe for threads by itself: its owner holds a lock."""

    def __init__(self) -> None:
        self._hosts: dict[str, _HostRows] = {}

    def take(self, event: Event) -> None:
        """Bring the board up to date."""
        if not event.action_id:
            return
        host = self._hosts.setdefault(event.host, _HostRows())
        match event:
            case ActionStarted():
                host.running[event.action_id] = _Running(f"{event.verb} {event.subject}")
            case Progressed():
                running = host.running.setdefault(event.action_id, _Running(title_of(event)))
                running.status = event.status
                if event.total_bytes:
                    flow = running.flows.setdefault(event.layer, Flow())
                    flow.move(seconds_of(event), event.completed_bytes, event.total_bytes)
            case ActionEnded():
                host.running.pop(event.action_id, None)
                host.ended += 1
            case _:
                pass

    def flow(self, event: Progressed) -> Flow | None:
        """The layer that the event is about, if bytes of it were seen to move."""
        running = self._hosts.get(event.host, _HostRows()).running.get(event.action_id)
        return running.flows.get(event.layer) if running else None

    def rows(self) -> list[Row]:
        """A row per host that is at work, followed by its actions and their layers."""
        return [
            row
            for name, host in self._hosts.items()
            if host.running
            for row in (
                _host_row(name, host),
                *(row for run in host.running.values() for row in _rows_of(run)),
            )
        ]


def _host_row(name: str, host: _HostRows) -> Row:
    """What the host does as a whole; its bytes only when they are more than those of one layer. Work without a host
    happens on this machine."""
    label = clean(name) or "this machine"
    flows = [flow for running in host.running.values() for flow in running.flows.values()]
    counts = f"{host.ended} done, {len(host.running)} running"
    if len(flows) < 2:
        return Row(label=label, text=counts, is_host=True)
    total = Flow(sum(flow.completed_bytes for flow in flows), sum(flow.total_bytes for flow in flows))
    rate = sum(flow.rate for flow in flows if flow.is_moving)
    text = f"{render_flow(total, rate)}; {counts}"
    return Row(label=label, text=text, share=_share(total), is_host=True)


def _rows_of(running: _Running) -> Iterator[Row]:
    moving = {layer: flow for layer, flow in running.flows.items() if flow.is_moving}
    title = f"  {clean(running.title)}"
    if not moving:
        yield Row(label=title, text=clean(running.status))
    for layer, flow in moving.items():
        label = f"{title} {clean(layer)}" if len(moving) > 1 else title
        yield Row(label=label, text=render_flow(flow, flow.rate), share=_share(flow))


def _share(flow: Flow) -> float:
    return min(flow.completed_bytes / flow.total_bytes, 1.0)


def render_flow(flow: Flow, rate: float) -> str:
    """`40 %, 812 MB of 2.0 GB, 45 MB/s, 26s left`; without the last two while nothing moves."""
    percent = int(100 * flow.completed_bytes / flow.total_bytes)
    said = f"{percent} %, {format_size(flow.completed_bytes)} of {format_size(flow.total_bytes)}"
    if rate <= 0 or not flow.is_moving:
        return said
    left = format_duration((flow.total_bytes - flow.completed_bytes) / rate)
    return f"{said}, {format_size(int(rate))}/s, {left} left"


def seconds_of(event: Stamp) -> float:
    """The event's moment in seconds since 1970; 0 when it has none that can be read."""
    try:
        return datetime.fromisoformat(event.at).timestamp()
    except ValueError:
        return 0.0


def title_of(event: Stamp) -> str:
    """`pull llama3.2:3b`, read from the id of the event's action."""
    verb, _, subject = event.action_id.removeprefix(f"{event.host}/").partition("/")
    return f"{verb} {subject}".rstrip()


def render_event(event: Event) -> tuple[str, Style | None]:
    """One safe line about the event, and the style that fits it."""
    text, style = _render(event)
    about = [clean(part) for part in (event.host, title_of(event) if event.action_id else "") if part]
    return ": ".join([*about, clean(text)]), style


def _render(event: Event) -> tuple[str, Style | None]:
    match event:
        case HostObserved():
            return f"Ollama {event.version}, {plural(event.models, 'model')}", "dim"
        case HostUnreached():
            return f"not reached: {without_host(event.host, event.error)}", "bad"
        case ActionStarted():
            return "started", "dim"
        case Progressed():
            return _render_step(event), "dim"
        case Retrying():
            error = without_host(event.host, event.error)
            attempts = f"attempt {event.attempt} of {event.attempts} failed"
            return f"{attempts}: {error}; again in {format_duration(event.wait_s)}", "change"
        case ActionEnded():
            return _render_outcome(event.host, event.outcome)
        case RoundEnded() if event.remaining:
            still = f"{len(event.remaining)} still to do"
            return f"round {event.round}: {still}: {join_names(event.remaining)}", "change"
        case RoundEnded() if event.lasting or event.unknown:
            counts = ((event.lasting, "cannot be changed"), (event.unknown, "unknown"))
            rest = ", ".join(f"{count} {what}" for count, what in counts if count)
            return f"round {event.round}: nothing more to do; {rest}", "change"
        case RoundEnded():
            return f"round {event.round}: as declared", "good"
        case Noted():
            message = without_host(event.host, event.message)
            return (f"warning: {message}", "change") if event.level == "warning" else (message, None)
        case _:
            assert_never(event)


def _render_step(event: Progressed) -> str:
    """The server's word for it, with the layer unless it is in there already."""
    return event.status if event.layer in event.status else f"{event.status} {event.layer}".strip()


def _render_outcome(host: str, outcome: Outcome) -> tuple[str, Style | None]:
    match outcome:
        case Succeeded():
            moved = "" if outcome.changed else ", nothing to transfer"
            return f"done in {format_duration(outcome.seconds)}{moved}", "good"
        case Failed():
            return f"failed: {without_host(host, outcome.error)}", "bad"
        case Skipped():
            return f"skipped: {outcome.because}", "change"
        case Refused():
            return f"refused: {outcome.because}", "bad"
        case Interrupted():
            return "stopped halfway" if outcome.started else "not started", "change"
        case _:
            assert_never(outcome)
