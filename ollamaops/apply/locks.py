"""One writer at a time: holding the locks of all hosts of a run, and waiting for those that another run has.

`holding_hosts` takes the locks in the state folder, before anything is planned; `holding_ledgers` those on hosts that
keep their own ledger, before anything is done, because taking one writes to the host. The fact a reader would miss: a
lock on a host ends by itself after LEASE_S, so somebody has to renew it while a long pull goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ollamaops.errors import Cancelled, OllamaopsError, RefusedError, RemoteError, StateError
from ollamaops.events import Noted
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.memory import server_ledger
from ollamaops.observe.run import HostCase, Surroundings
from ollamaops.state.locks import HostLock, LockOwner, where_am_i, who_am_i

if TYPE_CHECKING:
    from ollamaops.state.server_ledger import ServerLedger

LEASE_S = 300.0
PAUSE_S = 0.5

Take = Callable[[], LockOwner | None]


@contextmanager
def holding_hosts(
    specs: Collection[HostSpec], folder: Path, around: Surroundings, *, run_id: str, wait_s: float = 0.0
) -> Iterator[None]:
    """Within the block no other run that shares the state folder changes these hosts.

    RefusedError names who has a host, at once or after `wait_s` seconds; StateError when locks cannot be used.
    """
    holder = _me(run_id, around)
    by_key = {spec.memory_key: spec for spec in specs}
    with ExitStack() as stack:
        for key in sorted(by_key):  # in one order, so that two runs that wait never wait for each other
            lock = HostLock(folder, key)
            stack.callback(lock.release)
            _take(by_key[key].name, partial(lock.take, holder), around, run_id, wait_s)
        yield


@contextmanager
def holding_ledgers(
    cases: Sequence[HostCase], around: Surroundings, *, lease_s: float = LEASE_S
) -> Iterator[Surroundings]:
    """The surroundings in which the ledgers that hosts keep themselves can be written, their locks being ours.

    RefusedError names who has a host, StateError a ledger that cannot be used. A host that does not answer gets no
    lock, and its ledger is written without one should it come back.
    """
    kept = {case.spec.name: case for case in cases if case.state == "server"}
    if not kept:
        yield around
        return
    with ExitStack() as stack:
        ledgers = {name: _open(case, around, stack) for name, case in kept.items()}
        held = {name: ledger for name, ledger in ledgers.items() if ledger is not None}
        _take_all(held, kept, around, lease_s)
        stack.enter_context(_renewing(held.values(), around, lease_s))
        yield replace(around, held=held)


def _open(case: HostCase, around: Surroundings, stack: ExitStack) -> ServerLedger | None:
    """The ledger on one host, not asked for anything yet; None when its secrets cannot be read."""
    try:
        client = stack.enter_context(around.open_client(case.spec, around.cancel))
    except OllamaopsError:
        return None
    ledger = server_ledger(client, around, writing=True)
    stack.callback(_let_go, ledger, case, around)
    return ledger


def _take_all(
    held: Mapping[str, ServerLedger], cases: Mapping[str, HostCase], around: Surroundings, lease_s: float
) -> None:
    """Side by side, since taking each one takes a second."""

    def take(name: str) -> None:
        options = cases[name].options
        holder = replace(_me(options.run_id, around), expires_at=_end(around, lease_s))
        try:
            _take(name, partial(held[name].take, holder), around, options.run_id, options.wait_s)
        except StateError as error:
            if not isinstance(error.__cause__, RemoteError):
                raise

    if held:
        with ThreadPoolExecutor(max_workers=min(32, len(held)), thread_name_prefix="lock") as pool:
            list(pool.map(take, held))


def _let_go(ledger: ServerLedger, case: HostCase, around: Surroundings) -> None:
    try:
        ledger.settle()
        ledger.release()
    except StateError as error:
        _tell(around, case.options.run_id, case.spec.name, str(error), warning=True)


@contextmanager
def _renewing(ledgers: Collection[ServerLedger], around: Surroundings, lease_s: float) -> Iterator[None]:
    """Within the block the locks do not run out."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            for ledger in ledgers:
                with suppress(StateError):  # a lock that was lost stops the next write, which says so
                    ledger.renew(_end(around, lease_s))

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _take(host: str, take: Take, around: Surroundings, run_id: str, wait_s: float) -> None:
    """Until it is ours, or RefusedError after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    other = take()
    if other is not None and wait_s > 0:
        _tell(around, run_id, host, f"waiting for the lock, which another run has: {other}")
    while other is not None and time.monotonic() < deadline:
        if around.cancel.wait(PAUSE_S):
            raise Cancelled("stopped while waiting for a lock")
        other = take()
    if other is not None:
        waited = f" after {wait_s:g} s" if wait_s > 0 else ""
        raise RefusedError(
            f"{host}: another run has the lock{waited}: {other}", hint="wait for it to end, with --wait 10m"
        )


def _me(run_id: str, around: Surroundings) -> LockOwner:
    return LockOwner(
        token=run_id, who=who_am_i(), process=os.getpid(), since=around.now(), place=where_am_i()
    )


def _end(around: Surroundings, lease_s: float) -> str:
    end: datetime = around.moment() + timedelta(seconds=lease_s)
    return end.isoformat()


def _tell(around: Surroundings, run_id: str, host: str, message: str, *, warning: bool = False) -> None:
    level: Literal["info", "warning"] = "warning" if warning else "info"
    around.emit(Noted(run_id=run_id, at=around.now(), host=host, level=level, message=message))
