"""Ctrl-C in two stages: the first stops scheduling and cancels streams, the second stops waiting.

SIGTERM is like the first Ctrl-C, and the process then ends 143 instead of 130.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ollamaops.cli import exits
from ollamaops.ollama.cancel import CancelToken

_received: list[int] = []


@contextmanager
def cancel_on_signals() -> Iterator[CancelToken]:
    """A token that SIGINT and SIGTERM cancel. Outside the main thread nothing is installed."""
    token = CancelToken()
    if threading.current_thread() is not threading.main_thread():
        yield token
        return

    def handle(number: int, _: FrameType | None) -> None:
        _received.append(number)
        if len(_received) > 1:
            os.write(2, b"\nstopped without waiting; run again to continue\n")
            os._exit(exit_code())
        os.write(2, b"\nstopping; press Ctrl-C again to stop without waiting\n")
        token.cancel()

    _received.clear()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stderr.flush()


def exit_code() -> int:
    """130 or 143, by the first signal that came."""
    return exits.TERMINATED if _received and _received[0] == signal.SIGTERM else exits.INTERRUPTED
