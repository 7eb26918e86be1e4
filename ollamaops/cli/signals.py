"""Ctrl-C in two stages: the first stops scheduling and cancels streams, the second stops waiting.

SIGTERM acts like the first Ctrl-C, and the process then ends 143 instead of 130. At a question there is nothing to
stop cleanly: the first signal ends the command. A main thread that waits for a lock may not notice a signal until the
wait ends, so a separate thread listens to the pipe that Python's signal handler writes to.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from ollamaops import exits
from ollamaops.errors import Cancelled
from ollamaops.http.cancel import CancelToken

_CODES = {signal.SIGINT: exits.INTERRUPTED, signal.SIGTERM: exits.TERMINATED}
_ANSWERS = {"y": True, "yes": True, "n": False, "no": False, "": False}
_received: list[int] = []
_at_question = threading.Event()


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
        if not _at_question.is_set():
            os.write(2, b"\nstopping; press Ctrl-C again to stop without waiting\n")
        token.cancel()


def confirm(question: str, cancel: CancelToken) -> bool:
    """The answer to a question on the terminal: only yes is yes. Cancelled at once when somebody asks to stop.

    Reading the answer starts when there is one: a signal that came a moment before a read would not end it.
    """
    _at_question.set()
    ours, waker = socket.socketpair()
    try:
        with ours, waker, cancel.calling(lambda: _wake(waker)):
            while True:
                click.echo(f"{question} [y/N]: ", nl=False, err=True)
                heard, _, _ = select.select([sys.stdin, ours], [], [])
                if ours in heard:
                    click.echo(err=True)
                    raise Cancelled("stopped at a question")
                answer = sys.stdin.readline()
                if answer.strip().lower() in _ANSWERS:
                    return _ANSWERS[answer.strip().lower()]
                click.echo("answer y or n", err=True)
    finally:
        _at_question.clear()


def _wake(waker: socket.socket) -> None:
    with suppress(OSError):  # the question may have been answered by now
        waker.send(b"!")


def exit_code() -> int:
    """130 or 143, by the first signal that came."""
    return _CODES[signal.Signals(_received[0])] if _received else exits.INTERRUPTED
