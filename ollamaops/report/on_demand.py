"""A progress display that starts with the first thing there is to show."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ollamaops.events import Event
    from ollamaops.report.live import ProgressSink


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
