"""One writer at a time: taking the locks of all hosts of a run, and waiting for those that another run has.

`lock_hosts` takes the locks in the state folder before anything is planned. `lock_ledgers` takes those on hosts that
keep their own ledger, before anything is done, because taking one writes to the host. A lock on a host expires after
LEASE_S, so it is renewed while a long pull goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial

from msgspec.structs import replace

from ollamaops.errors import Cancelled, OllamaopsError, RefusedError, RemoteError, StateError
from ollamaops.events import Noted
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.ledger_model import server_ledger
from ollamaops.observe.run import HostTask, Run, for_each
from ollamaops.state.locks import HostLock, LockOwner, where_am_i, who_am_i
from ollamaops.state.server_ledger import ServerLedger

LEASE_S = 300.0
PAUSE_S = 0.5
MOST_AT_ONCE = 32

Take = Callable[[], LockOwner | None]


@contextmanager
def lock_hosts(specs: Collection[HostSpec], run: Run) -> Iterator[None]:
    """Within the block no other run that shares the state folder changes these hosts.

    RefusedError names who has a host, at once or after `options.wait_s` seconds; StateError when locks cannot
    be used.
    """
    owner = _me(run)
    by_key = {spec.memory_key: spec for spec in specs}
    with ExitStack() as stack:
        for key in sorted(by_key):  # in one order, so that two runs that wait never wait for each other
            lock = HostLock(run.ledger.folder, key)
            stack.callback(lock.release)
            _take(by_key[key].name, partial(lock.take, owner), run)
        yield


@contextmanager
def lock_ledgers(tasks: Sequence[HostTask], run: Run, *, lease_s: float = LEASE_S) -> Iterator[Run]:
    """The run with the ledgers that hosts keep themselves, writable because their locks are ours.

    RefusedError names who has a host, StateError a ledger that cannot be used. A host that does not answer gets no
    lock, and its ledger is written without one should it come back.
    """
    on_servers = [task.spec for task in tasks if task.state == "server"]
    if not on_servers:
        yield run
        return
    with ExitStack() as stack:
        opened = {spec.name: _open(spec, run, stack) for spec in on_servers}
        ledgers = {name: ledger for name, ledger in opened.items() if ledger is not None}

        def take(name: str) -> None:
            owner = replace(_me(run), expires_at=_end(run, lease_s))
            try:
                _take(name, partial(ledgers[name].take, owner), run)
            except StateError as error:
                if not isinstance(error.__cause__, RemoteError):
                    raise

        for_each(ledgers, take, jobs=MOST_AT_ONCE, threads="lock")  # each one takes a second
        stack.enter_context(_renewing(ledgers.values(), run, lease_s))
        yield replace(run, server_ledgers=ledgers)


def _open(spec: HostSpec, run: Run, stack: ExitStack) -> ServerLedger | None:
    """The ledger on one host, not asked for anything yet; None when its secrets cannot be read."""
    try:
        client = stack.enter_context(run.open_client(spec, run.cancel))
    except OllamaopsError:
        return None
    ledger = server_ledger(client, run, writing=True)
    stack.callback(_release, ledger, spec.name, run)
    return ledger


def _release(ledger: ServerLedger, host: str, run: Run) -> None:
    try:
        ledger.settle()
        ledger.release()
    except StateError as error:
        run.emit(Noted(**run.stamp(host), level="warning", message=str(error)))


@contextmanager
def _renewing(ledgers: Collection[ServerLedger], run: Run, lease_s: float) -> Iterator[None]:
    """Within the block the locks do not run out."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            for ledger in ledgers:
                with suppress(StateError):  # a lock that was lost stops the next write, which says so
                    ledger.renew(_end(run, lease_s))

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _take(host: str, take: Take, run: Run) -> None:
    """Until it is ours, or RefusedError after `options.wait_s` seconds."""
    wait_s = run.options.wait_s
    deadline = time.monotonic() + wait_s
    other = take()
    if other is not None and wait_s > 0:
        message = f"waiting for the lock, which another run has: {other}"
        run.emit(Noted(**run.stamp(host), level="info", message=message))
    while other is not None and time.monotonic() < deadline:
        if run.cancel.wait(PAUSE_S):
            raise Cancelled("stopped while waiting for a lock")
        other = take()
    if other is not None:
        waited = f" after {wait_s:g} s" if wait_s > 0 else ""
        raise RefusedError(
            f"{host}: another run has the lock{waited}: {other}", hint="wait for it to end, with --wait 10m"
        )


def _me(run: Run) -> LockOwner:
    return LockOwner(
        token=run.run_id, who=who_am_i(), process=os.getpid(), since=run.now(), place=where_am_i()
    )


def _end(run: Run, lease_s: float) -> str:
    return (run.moment() + timedelta(seconds=lease_s)).isoformat()
