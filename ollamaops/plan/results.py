"""How a run ended, as values: every action with its outcome, and what a fresh look found afterwards.

Here is the one definition of "as declared" and of the exit code; report/ only says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.events import Failed, Interrupted, Outcome, Refused, Skipped, Succeeded
from ollamaops.exits import CHANGES, DONE, ERROR, INTERRUPTED, PARTIAL, REFUSED, UNEXPECTED, worst
from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    Action,
    Difference,
    HostPlan,
    Note,
    Plan,
    UnreachedHost,
    continues_another,
    id_of,
    is_check,
)
from ollamaops.plan.expectations import Verdict

_NAMES: Mapping[type[Outcome], str] = {
    Succeeded: "succeeded",
    Failed: "failed",
    Skipped: "skipped",
    Refused: "refused",
    Interrupted: "interrupted",
}


class ActionResult(Struct, frozen=True, kw_only=True):
    """One action and how it ended. Every action of a plan gets exactly one of these."""

    action: Action
    outcome: Outcome


class HostReport(Struct, frozen=True, kw_only=True):
    """One host's cycle. `plan` is the first round's; `remaining` is what a last fresh look still found.

    `unreached` is set when the host did not answer, before or after; `rounds` counts apply-and-look-again. `tidied`
    are names of our own that runs which were stopped had left behind, and that are gone now. `evicted` are
    models that were loaded and did not stay in memory, each with the residents beside it; None: only some models
    were looked at. `refused`: while it was changed, it turned out that it must not be.
    """

    host: str
    plan: HostPlan
    results: tuple[ActionResult, ...] = ()
    remaining: tuple[Difference, ...] = ()
    notes: tuple[Note, ...] = ()
    unreached: UnreachedHost | None = None
    tidied: tuple[ModelName, ...] = ()
    evicted: Mapping[ModelName, tuple[ModelName, ...]] | None = None
    rounds: int = 0
    verified: bool = False
    refused: bool = False
    seconds: float = 0.0

    @property
    def is_as_declared(self) -> bool:
        """Whether the host is known to be as declared: all done, looked at again, and nothing left to tell."""
        if self.unreached or self.remaining or any(note.unresolved or note.lasting for note in self.notes):
            return False
        if any(not isinstance(result.outcome, Succeeded) for result in self.results):
            return False
        return self.verified or not self.results

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known to be wrong, and still something could not be found out."""
        if self.unreached or self.remaining or any(note.lasting for note in self.notes):
            return False
        are_all_done = all(isinstance(result.outcome, Succeeded) for result in self.results)
        return are_all_done and any(note.unresolved for note in self.notes)


class RunReport(Struct, frozen=True, kw_only=True):
    """A whole apply: the plan that was agreed to, and what became of it on each host."""

    run_id: str
    plan: Plan
    hosts: tuple[HostReport, ...]
    interrupted: bool = False
    interrupted_code: int = INTERRUPTED
    seconds: float = 0.0

    @property
    def is_as_declared(self) -> bool:
        """Whether every host is known to be as declared, those included that the plan did not reach."""
        return not self.plan.unreached and all(host.is_as_declared for host in self.hosts)

    @property
    def exit_code(self) -> int:
        """What the process ends with, and the history keeps."""
        if self.interrupted:
            return self.interrupted_code
        outcomes = [result.outcome for result in self.results]
        if any(isinstance(outcome, Failed) and outcome.exit_code == UNEXPECTED for outcome in outcomes):
            return UNEXPECTED
        if any(host.refused for host in self.hosts):
            return REFUSED
        return DONE if self.is_as_declared else PARTIAL

    @property
    def results(self) -> tuple[ActionResult, ...]:
        """All results of all hosts, in order."""
        return tuple(result for host in self.hosts for result in host.results)


def code_of_drift(plan: Plan, *, detailed: bool = True) -> int:
    """The exit code of a command that only tells what differs; `detailed` lets differences count. `plan` is a
    verdict: what only an action would find out is unknown."""
    is_unknown = plan.unresolved or any(map(is_check, plan.actions))
    return worst(
        DONE,
        CHANGES if detailed and _differs(plan) else DONE,
        PARTIAL if plan.unreached or is_unknown else DONE,
    )


def code_of_plan(plan: Plan, *, detailed: bool = False) -> int:
    """The exit code of a command that plans: partial where carrying it out leaves something that differs, or is not
    known. `detailed` lets pending changes count."""
    return worst(
        DONE,
        CHANGES if detailed and _differs(plan) else DONE,
        PARTIAL if plan.unreached or plan.unresolved or plan.lasting else DONE,
        REFUSED if plan.refusals else DONE,
    )


def _differs(plan: Plan) -> bool:
    return bool(plan.lasting) or any(
        not (is_check(action) or continues_another(action)) for action in plan.actions
    )


def as_verdict(plan: HostPlan) -> HostPlan:
    """What the plan says of the host as it is: without the pulls that only look for something newer than what
    stands."""
    idle = {id_of(action) for action in plan.actions if is_check(action) and _stands(plan, action)}
    return replace(
        plan,
        actions=tuple(
            action
            for action in plan.actions
            if id_of(action) not in idle
            and not (continues_another(action) and not idle.isdisjoint(action.needs))
        ),
    )


def _stands(plan: HostPlan, action: Action) -> bool:
    return all(why.model in plan.unchanged for why in action.because)


def count_outcomes(results: tuple[ActionResult, ...]) -> dict[str, int]:
    """How many `succeeded`, `failed`, `skipped`, `refused`, `interrupted`; all five keys are always there."""
    counts = dict.fromkeys(_NAMES.values(), 0)
    for result in results:
        counts[outcome_name(result.outcome)] += 1
    return counts


def outcome_name(outcome: Outcome) -> str:
    """`succeeded`, `failed`, `skipped`, `refused` or `interrupted`."""
    return _NAMES[type(outcome)]


class HostVerdicts(Struct, frozen=True, kw_only=True):
    """How one host's models met their expectations. `unreached` says why there are no more of them."""

    host: str
    verdicts: tuple[Verdict, ...] = ()
    unreached: UnreachedHost | None = None


def code_of_verdicts(hosts: Iterable[HostVerdicts]) -> int:
    """The exit code of `ollamaops test`: without a single host that was reached nothing is known."""
    hosts = tuple(hosts)
    verdicts = [verdict for host in hosts for verdict in host.verdicts]
    are_all_lost = bool(hosts) and not verdicts and all(host.unreached for host in hosts)
    is_partial = any(host.unreached for host in hosts) or any(verdict.error for verdict in verdicts)
    return worst(
        DONE,
        ERROR if are_all_lost else DONE,
        UNEXPECTED if any(verdict.failures for verdict in verdicts) else DONE,
        PARTIAL if is_partial else DONE,
    )
