"""What rolling models of one host back takes: one copy each, from the version that was kept.

Decides which kept version it is and what becomes of the current one, which is kept in its turn. The fact a reader
would miss: the switch moves no weights, and what it leaves behind is held until the entry changes (holds.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from ollamaops.names import NamePattern
from ollamaops.plan.actions import CopyModel, Difference, Fact, HostPlan, Note
from ollamaops.plan.asides import MOST_KEPT, kept_of
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.holds import hold_of
from ollamaops.plan.observed import ObservedHost


def plan_rollback(
    desired: DesiredHost, observed: ObservedHost, targets: Sequence[NamePattern], *, version: int = 1
) -> HostPlan:
    """Switch every declared model that a target means to its kept version: 1 is the one before the current one."""
    meant = [
        model
        for model in desired.models
        if not model.implicit and any(target.matches(model.name) for target in targets)
    ]
    found = [_roll_back(desired.host, model, observed, version) for model in meant]
    return HostPlan(
        host=desired.host,
        actions=tuple(each for each in found if isinstance(each, CopyModel)),
        notes=tuple(each for each in found if isinstance(each, Note)),
        server_version=observed.version,
    )


def _roll_back(host: str, model: DesiredModel, observed: ObservedHost, version: int) -> CopyModel | Note:
    name, kept = model.name, kept_of(model.name, version)
    own, digest = observed.models.get(name), observed.asides.get(kept)
    if digest is None:
        count = sum(kept_of(name, i + 1) in observed.asides for i in range(MOST_KEPT))
        has = f"{count} {'is' if count == 1 else 'are'} kept" if count else "none is kept"
        return Note(
            host=host,
            model=name,
            message=f"cannot be rolled back by {version}: {has}",
            hint="keep_previous: N in its entry keeps them from the next change on",
            unresolved=True,
        )
    now = own.digest if own else ""
    change = Difference(host=host, model=name, kind="content", desired=digest, observed=now)
    return CopyModel(
        host=host,
        model=name,
        source=kept,
        because=(change,),
        expects=(Fact(name, now or None),),
        keep=max(1, model.spec.keep_previous),
        hold=hold_of(model),
        retries=model.spec.retries,
    )
