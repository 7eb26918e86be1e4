"""Stopping from another thread: one token, which loops ask and which wakes blocked calls.

A call that waits for the network registers a callback that ends the wait: exchange.py cuts the socket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ollamaops.errors import Cancelled


class CancelToken:
    """Set once, never cleared. `is_set` and `wait` are those of threading.Event."""

    def __init__(self) -> None:
        self._event = threading.Event()
        # re-entrant: `cancel` may run in a signal handler, in the very thread that is registering a callback
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ask everyone to stop. Returns when all blocked calls have been woken."""
        self._event.set()
        with self._lock:
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until `cancel` is called, at most `timeout` seconds. Whether it was called."""
        return self._event.wait(timeout)

    def check(self, what: str = "stopped") -> None:
        """Raise Cancelled if `cancel` was called."""
        if self._event.is_set():
            raise Cancelled(what)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Within the block, `cancel` also calls `callback`, from the canceller's thread; at once if already set.

        It may be called twice.
        """
        with self._lock:
            self._callbacks.append(callback)
        try:
            if self._event.is_set():
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
