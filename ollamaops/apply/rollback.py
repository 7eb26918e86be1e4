"""Rolling back on one host: what it takes, and letting go of what was rolled back.

What is switched to what is plan/rollback.py's; the switch itself is a copy like any other. The fact a reader would
miss: nothing is looked into and no registry is asked, so that the way back is open when little else works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollamaops.apply.plan_host import guarded, unreached
from ollamaops.errors import OllamaopsError, RemoteError
from ollamaops.names import ModelName, NamePattern
from ollamaops.observe.host import Glance
from ollamaops.observe.memory import ledger_of
from ollamaops.observe.run import HostCase, Surroundings, desired_of
from ollamaops.plan.actions import HostPlan, UnreachedHost
from ollamaops.plan.rollback import plan_rollback
from ollamaops.state.records import NO_FINGERPRINT, LedgerStore


def survey_rollback(case: HostCase, around: Surroundings, version: int) -> HostPlan | UnreachedHost:
    """What rolling the case's targets back takes; Cancelled is raised."""
    try:
        client = around.open_client(case.spec, around.cancel)
    except OllamaopsError as error:
        return unreached(case, around, error)
    with client:
        glance = Glance(spec=case.spec, client=client, cancel=around.cancel)
        try:
            observed = glance.models()
        except RemoteError as error:
            return unreached(case, around, error)
        desired = desired_of(case)
        plan = plan_rollback(desired, observed, case.options.targets, version=version)
        return guarded(case, glance, plan, desired, observed, around)


def release_host(case: HostCase, around: Surroundings) -> tuple[ModelName, ...]:
    """Forget what the case's targets are held at; the models that were. RemoteError, StateError."""
    with around.open_client(case.spec, around.cancel) as client:
        return release(ledger_of(case, client, around), case.spec.memory_key, case.options.targets)


def release(ledger: LedgerStore, host: str, targets: Sequence[NamePattern] = ()) -> tuple[ModelName, ...]:
    """Forget what models of the host are held at, all or those that a target means; the models that were."""
    known = {ModelName.parse(key): record for key, record in ledger.load(host).items()}
    released = {
        name: replace(record, status="doubted", fingerprint=NO_FINGERPRINT, entry="")
        for name, record in known.items()
        if record.status == "rolled_back" and (not targets or any(target.matches(name) for target in targets))
    }
    if released:
        ledger.remember(host, {name.key: record for name, record in released.items()})
    return tuple(sorted(released))
