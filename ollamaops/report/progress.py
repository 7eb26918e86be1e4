"""Progress while a run is under way: a live display, plain lines, JSON lines, or nothing.

A display never stops the work it shows: a closed or broken stream only makes it silent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from types import TracebackType
from typing import Literal, Protocol, Self

from ollamaops.events import ActionEnded, Event, Progressed
from ollamaops.report.json_output import event_to_json
from ollamaops.report.progress_board import Board, render_event, render_flow, seconds_of
from ollamaops.report.words import Paint, Stream, fit_encoding

ProgressKind = Literal["auto", "plain", "none", "rich"]

_EVERY_S = 10.0  # a layer gets a line after this long …
_EVERY_SHARE = 0.1  # … or this much of it, but never sooner than
_NOT_SOONER_S = 1.0


class ProgressSink(Protocol):
    """A sink for events that is entered before the run and left after it, however it ends."""

    def __call__(self, event: Event) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_sink(
    kind: ProgressKind,
    stream: Stream,
    environ: Mapping[str, str],
    *,
    color: bool = False,
    as_json: bool = False,
) -> ProgressSink:
    """The sink that fits `--progress` and the stream: `auto` is a live display on terminals, else plain lines.

    `as_json` (from `--log-format json`) makes JSON lines of every event, whatever `kind` says.
    """
    if as_json:
        return JsonLines(stream)
    if kind == "none":
        return Silence()
    if kind == "rich" or (kind == "auto" and stream.isatty() and environ.get("TERM") != "dumb"):
        # loaded when it is chosen, as a command is: rich is slow to import, and most runs draw nothing
        live: ProgressSink = import_module("ollamaops.report.live_display").open_display(stream, color=color)
        return live
    return PlainProgress(stream, Paint(color))


class _Entered:
    """A sink that needs nothing done around a run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Silence(_Entered):
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """Let the event pass."""


@dataclass(slots=True)
class _Shown:
    """What was last said of a layer: when, and how many bytes."""

    at_s: float
    completed_bytes: int


class _Lines:
    """Writes whole lines from several threads; goes silent when the stream is gone."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._is_gone = False

    def write(self, line: str) -> None:
        if self._is_gone:
            return
        try:
            self._stream.write(fit_encoding(line, self._encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, a closed file
            self._is_gone = True


class PlainProgress(_Entered):
    """A line per event; of a layer on the move one line per 10 s, or per tenth of it if that is slower than 1 s."""

    def __init__(self, stream: Stream, paint: Paint | None = None) -> None:
        self._lines, self._paint, self._lock = _Lines(stream), paint or Paint(), Lock()
        self._board = Board()
        self._shown: dict[tuple[str, str], _Shown] = {}

    def __call__(self, event: Event) -> None:
        """Say the event, if it is due. Safe from any thread."""
        with self._lock:
            self._board.take(event)
            if isinstance(event, ActionEnded):
                self._shown = {key: shown for key, shown in self._shown.items() if key[0] != event.action_id}
            if not isinstance(event, Progressed):
                text, style = render_event(event)
                self._lines.write(self._paint(style, text) if style else text)
            elif self._is_due(event):
                self._lines.write(self._render_progress(event))

    def _is_due(self, event: Progressed) -> bool:
        """Whether the layer has moved enough, by the events' own time. The first reading is only remembered."""
        key, now = (event.action_id, event.layer), _Shown(seconds_of(event), event.completed_bytes)
        last = self._shown.setdefault(key, now)
        waited_s, moved = now.at_s - last.at_s, now.completed_bytes - last.completed_bytes
        enough = event.total_bytes and moved >= _EVERY_SHARE * event.total_bytes and waited_s >= _NOT_SOONER_S
        is_due = bool(enough) or waited_s >= _EVERY_S
        if is_due or moved < 0:  # a part that starts again is measured from there
            self._shown[key] = now
        return is_due

    def _render_progress(self, event: Progressed) -> str:
        text, style = render_event(event)
        flow = self._board.flow(event)
        moved = f": {render_flow(flow, flow.rate)}" if flow and event.total_bytes else ""
        return self._paint(style or "dim", text + moved)


class JsonLines(_Entered):
    """One JSON object per event and line, in ASCII."""

    def __init__(self, stream: Stream) -> None:
        self._lines, self._lock = _Lines(stream), Lock()

    def __call__(self, event: Event) -> None:
        """Write the event. Safe from any thread."""
        with self._lock:
            self._lines.write(json.dumps(event_to_json(event)))


class OnDemand:
    """A sink that opens another one for the first event, so that a command with nothing to show starts no display."""

    def __init__(self, build: Callable[[], ProgressSink]) -> None:
        self._build, self._lock = build, Lock()
        self._opened: ProgressSink | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        """Pass the event on. Safe from any thread."""
        with self._lock:
            if self._opened is None:
                self._opened = self._build().__enter__()
        self._opened(event)
