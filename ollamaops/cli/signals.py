"""Ctrl-C in two stages: the first stops scheduling and cancels streams, the second stops waiting.

SIGTERM is like the first Ctrl-C, and the process then ends 143 instead of 130. The fact a reader would miss: a main
thread that waits for a lock may not notice a signal until the wait ends, so a thread of its own listens to the pipe
that Python's signal handler writes to.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ollamaops.cli import exits
from ollamaops.ollama.cancel import CancelToken

_CODES = {signal.SIGINT: exits.INTERRUPTED, signal.SIGTERM: exits.TERMINATED}
_received: list[int] = []


@contextmanager
def cancel_on_signals() -> Iterator[CancelToken]:
    """A token that SIGINT and SIGTERM cancel. Outside the main thread nothing is installed."""
    token = CancelToken()
    if threading.current_thread() is not threading.main_thread():
        yield token
        return
    _received.clear()
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    listener = threading.Thread(target=_listen, args=(ours, token), name="signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in _CODES}
    wakeup_before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield token
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        pythons.close()
        listener.join()
        ours.close()


def _listen(pipe: socket.socket, token: CancelToken) -> None:
    """Each byte is the number of a signal; the pipe ends when nothing is left to listen for."""
    while heard := pipe.recv(1):
        if heard[0] not in _CODES:
            continue
        _received.append(heard[0])
        if len(_received) > 1:
            os.write(2, b"\nstopped without waiting; run again to continue\n")
            os._exit(exit_code())
        os.write(2, b"\nstopping; press Ctrl-C again to stop without waiting\n")
        token.cancel()


def exit_code() -> int:
    """130 or 143, by the first signal that came."""
    return _CODES[signal.Signals(_received[0])] if _received else exits.INTERRUPTED
