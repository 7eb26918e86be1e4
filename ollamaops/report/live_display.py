"""The live display: a bar per host and per layer on the move, finished actions scrolling by above.

Rich redraws in a thread of its own, so the board is only touched with the lock held.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ollamaops.events import ActionStarted, Event, HostObserved, Progressed
from ollamaops.report.progress_board import Board, Row, render_event
from ollamaops.report.words import Stream, Style

_REDRAWS_PER_S = 8
_BAR_WIDTH = 16
_STYLES: Mapping[Style | None, str] = {
    None: "",
    "good": "green",
    "change": "yellow",
    "bad": "red",
    "send": "cyan",
    "unknown": "magenta",
    "bold": "bold",
    "dim": "dim",
}


class _Console(Console):
    """A console that goes quiet when its reader is gone, where rich's own would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Live(Live):
    """A display whose redrawing thread survives a terminal that is gone."""

    def refresh(self) -> None:
        with suppress(OSError, ValueError):
            super().refresh()


def build_console(stream: Stream, *, color: bool) -> Console:
    """A console on `stream` that draws with or without colors."""
    return _Console(
        file=cast("IO[str]", stream), no_color=not color, highlight=False, emoji=False, markup=False
    )


class RichProgress:
    """A sink that draws on a terminal between `with` and its end, and always gives the terminal back."""

    def __init__(self, console: Console) -> None:
        self._console, self._lock, self._board = console, Lock(), Board()
        self._live = _Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone; there is nothing to give back
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Bring the display up to date. Safe from any thread."""
        with self._lock:
            self._board.take(event)
        if not isinstance(event, ActionStarted | HostObserved | Progressed):
            text, style = render_event(event)
            with suppress(OSError, ValueError):  # showing must not stop the work
                self._console.print(Text(text, _STYLES[style]), soft_wrap=True)

    def _draw(self) -> Table:
        with self._lock:
            rows = self._board.rows()
        return draw_rows(rows)


def draw_rows(rows: list[Row]) -> Table:
    """The rows as a table: label, bar, text."""
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for row in rows:
        bar = ProgressBar(total=1.0, completed=row.share, width=_BAR_WIDTH) if row.share is not None else ""
        table.add_row(Text(row.label, "bold" if row.is_host else ""), bar, Text(row.text, "dim"))
    return table


def open_display(stream: Stream, *, color: bool) -> RichProgress:
    """A live display on `stream`, not yet entered."""
    return RichProgress(build_console(stream, color=color))
