"""Proving a new version of a model on its host, and what becomes of it: it counts from then on, or it goes.

What is asked is probe.py's; what an answer is worth is plan/verdicts.py's. The fact a reader would miss: a model
that was pulled for the first time and fails is removed, but only if we remember that this very content is ours.
"""

from __future__ import annotations

from ollamaops.apply.versions import discard_next, settle, take_back
from ollamaops.errors import OllamaopsError, RemoteError
from ollamaops.observe.host import Glance
from ollamaops.observe.session import Seen, Workbench
from ollamaops.observe.verify import examine
from ollamaops.plan.actions import VerifyModel
from ollamaops.plan.expectations import Expectation, Verdict

MOST_TOLD = 3


class NotAsExpected(OllamaopsError):
    """A model was asked, and does not do what is expected of it. What was there before stays, or is back."""

    exit_code = 5


def prove(bench: Workbench, action: VerifyModel) -> bool:
    """Hold the new content to the action's expectations; False: nothing has changed. NotAsExpected; RemoteError."""
    seen = bench.require(action.at, bench.tags(), "to prove")
    glance = Glance(spec=bench.spec, client=bench.client, cancel=bench.cancel)
    verdict = examine(glance, seen.name, action.expectations or (Expectation(),))
    if not verdict.is_met:
        raise _not_as_expected(bench, action, verdict, _reject(bench, action, seen))
    if action.at == action.model:
        bench.remember_verified(action, seen)
        settle(bench, action, keep=action.keep)
    return False


def _not_as_expected(
    bench: Workbench, action: VerifyModel, verdict: Verdict, what_became: str
) -> NotAsExpected:
    told = "; ".join(map(str, verdict.failures[:MOST_TOLD]))
    more = len(verdict.failures) - MOST_TOLD
    hint = next((failure.hint for failure in verdict.failures if failure.hint), None)
    return NotAsExpected(
        f"{bench.spec.name}: '{action.model}' is not as expected: {told}"
        + (f"; and {more} more" if more > 0 else "")
        + f"; {what_became}",
        hint=hint or "change what it is made from, or what is expected of it",
    )


def _reject(bench: Workbench, action: VerifyModel, seen: Seen) -> str:
    """Undo what can be undone, and say how things are now."""
    try:
        if action.at == action.model:
            return _reject_pulled(bench, action, seen)
        if action.at.is_aside:
            discard_next(bench, action.model)
        return _say_old(bench, action)
    except RemoteError as error:
        return f"it could not be taken back, which the next run does: {error}"


def _say_old(bench: Workbench, action: VerifyModel) -> str:
    is_there = action.model in bench.tags()
    return "the version that was there stays" if is_there else "there was none before, and there is none now"


def _reject_pulled(bench: Workbench, action: VerifyModel, seen: Seen) -> str:
    if take_back(bench, action.model):
        bench.touched.add(action.model)
        bench.mark_doubtful({action.model})
        return "the previous version is back"
    record = bench.ledger.load(bench.spec.memory_key).get(action.model.key)
    if record is None or record.status != "unverified" or record.digest != seen.digest:
        return "it stays as it is, because nothing is known of a previous version"
    with bench.changing:
        bench.patiently(lambda: bench.client.delete(seen.name))
    bench.forget(action)
    return "it was removed, because there was none before"
