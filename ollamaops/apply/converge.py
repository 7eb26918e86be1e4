"""One host's cycle: carry out the agreed plan, look again, and do what the look still finds, up to three rounds.

After applying, models that this run touched are looked into again; what is remembered of them is not trusted.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from ollamaops.apply.perform import perform
from ollamaops.apply.plan_host import look_and_plan
from ollamaops.apply.remember import mark_doubtful, release
from ollamaops.apply.scheduler import execute
from ollamaops.apply.versions import sweep_leftovers
from ollamaops.errors import Cancelled, OllamaopsError, RemoteError
from ollamaops.events import RoundEnded, Skipped, Succeeded
from ollamaops.names import ModelName
from ollamaops.observe.memory import load_evictions
from ollamaops.observe.one_server import signs_of_several
from ollamaops.observe.run import HostTask, Run, desired_of
from ollamaops.observe.session import HostSession, session_of, unreached
from ollamaops.observe.verify import verify_model
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    Difference,
    HostPlan,
    LoadModel,
    Note,
    PullModel,
    UnloadModel,
    UnreachedHost,
    UploadBlob,
    id_of,
)
from ollamaops.plan.expectations import Expectation
from ollamaops.plan.guard import CHANGING, changes_of
from ollamaops.plan.one_server import RULE, note_of, refusal_of
from ollamaops.plan.residency import residents_of
from ollamaops.plan.results import ActionResult, HostReport, as_verdict
from ollamaops.plan.rollback import narrowed
from ollamaops.plan.versions import names_of

MAX_ROUNDS = 3


def reconcile_host(task: HostTask, agreed: HostPlan, run: Run, *, exact: bool = False) -> HostReport:
    """Carry out `agreed` on one host, then look again and correct what the first round could not know.

    `exact` leaves the correcting to the next run: the plan is carried out as it was agreed to.
    """
    began = time.monotonic()
    try:
        client = run.open_client(task.spec, run.cancel)
    except OllamaopsError as error:
        skipped = Skipped(because="the host was not reached")
        return HostReport(
            host=agreed.host,
            plan=agreed,
            results=tuple(ActionResult(action=action, outcome=skipped) for action in agreed.actions),
            unreached=unreached(agreed.host, run, error),
        )
    with client:
        report = _Cycle(session_of(task, client, run), agreed).run(exact=exact)
    return replace(report, seconds=time.monotonic() - began)


class _Cycle:
    """The rounds of one host. `report` holds what has been done, whatever happens next."""

    def __init__(self, host: HostSession, agreed: HostPlan) -> None:
        self._host, self._agreed = host, agreed
        self._host.spare = frozenset(agreed.unmanaged)
        self._report = HostReport(host=agreed.host, plan=agreed)

    def run(self, *, exact: bool) -> HostReport:
        """All rounds, and the report. A failed look does not lose what was done before it."""
        host = self._host
        try:
            if host.run.options.release:
                release(host)
            seen = self._do_rounds(exact=exact)
            if isinstance(seen, UnreachedHost):
                return replace(self._report, unreached=seen)
            self._check_repaired()
            if seen.leftovers:
                stands = {*seen.unchanged, *seen.rolled_back}
                tidied = sweep_leftovers(host, host.task.models, stands=stands)
                self._report = replace(self._report, tidied=tidied)
        except Cancelled:
            pass
        except OllamaopsError as error:
            return _without_verdict(self._report, error)
        return self._report

    def _do_rounds(self, *, exact: bool) -> HostPlan | UnreachedHost:
        """Do and look until nothing is left to do; what the last look found."""
        todo = self._agreed.actions
        while True:
            self._carry_out(todo)
            self._host.cancel.check()
            seen = self._look_again()
            if isinstance(seen, UnreachedHost) or seen.refusals or self._report.refused or exact:
                return seen
            todo = follow_ups(seen, self._report, declared=names_of(self._host.task.models))
            if not todo or self._report.rounds == MAX_ROUNDS:
                return seen

    def _carry_out(self, actions: Sequence[Action]) -> None:
        host = self._host
        host.uploads = {action.digest: action for action in actions if isinstance(action, UploadBlob)}
        results = execute(
            actions, lambda action: perform(host, action), parallel=host.spec.parallel, cancel=host.cancel
        )
        self._report = replace(
            self._report, results=self._report.results + results, rounds=self._report.rounds + 1
        )

    def _look_again(self) -> HostPlan | UnreachedHost:
        """The plan that a fresh look gives; the report learns what it says."""
        host, report = self._host, self._report
        try:
            seen = look_and_plan(
                host,
                costs=False,
                distrust=frozenset(host.touched),
                made=_made(report.results),
                residency_done=_residency_done(report.results),
            )
        except RemoteError as error:
            return unreached(host.name, host.run, error)
        seen = as_verdict(narrowed(seen, self._agreed))
        self._report = replace(with_verdict(report, seen), evicted=self._evicted(seen))
        try:
            self._check_one_server(seen)
        except RemoteError as error:
            return unreached(host.name, host.run, error)
        lasting = {difference.model for note in seen.notes for difference in note.lasting}
        mark_doubtful(host, ({action.model for action in changes_of(seen)} | lasting) & host.touched)
        host.emit(
            RoundEnded(
                **host.stamp(),
                round=report.rounds,
                remaining=tuple(map(id_of, seen.actions)),
                lasting=sum(bool(note.lasting) for note in seen.notes),
                unknown=sum(note.unresolved for note in seen.notes),
            )
        )
        return seen

    def _check_one_server(self, seen: HostPlan) -> None:
        """After a change a look at one of several servers says nothing of the others. RemoteError."""
        found = [refusal for refusal in seen.refusals if refusal.rule == RULE]
        has_tried = any(isinstance(result.action, CHANGING) for result in self._report.results)
        if not found and has_tried and RULE not in self._host.run.options.force:
            evidence = signs_of_several(self._host)
            found = [refusal_of(seen.host, evidence)] if evidence else []
        if found:
            notes = (*self._report.notes, note_of(found[0]))
            self._report = replace(self._report, notes=notes, verified=False, refused=True)

    def _check_repaired(self) -> None:
        """What was made again because it was broken has to load now. RemoteError, Cancelled."""
        if not self._host.run.options.repair:
            return
        mended = dict.fromkeys(
            result.action.model
            for result in self._report.results
            if isinstance(result.outcome, Succeeded) and not isinstance(result.action, DeleteModel)
            if any(why.kind == "damaged" for why in result.action.because)
        )
        for name in mended:
            for failure in verify_model(self._host, name, (Expectation(),)).failures:
                note = Note(
                    host=self._host.name,
                    model=name,
                    message=f"repaired, and still: {failure.message}",
                    hint="look at the server's log",
                    lasting=(
                        Difference(
                            host=self._host.name, model=name, kind="damaged", observed=failure.message
                        ),
                    ),
                )
                self._report = replace(self._report, notes=(*self._report.notes, note), verified=False)

    def _evicted(self, seen: HostPlan) -> dict[ModelName, tuple[ModelName, ...]] | None:
        """What was loaded, and of which the look says that it is not as declared all the same."""
        task = self._host.task
        if task.targets or not any(model.resident for model in task.models):
            return None
        loaded = (
            _residency_done(self._report.results) | load_evictions(self._host.run.ledger, seen.host).keys()
        )
        residents = residents_of(desired_of(task))
        gone = {note.model for note in seen.notes if note.unresolved} & loaded & set(residents)
        return {
            name: tuple(other for other in residents if other != name) for name in residents if name in gone
        }


def _made(results: Sequence[ActionResult]) -> frozenset[ModelName]:
    """Models that were built from uploads the server has checked, and did not stay aside."""
    done = [result.action for result in results if isinstance(result.outcome, Succeeded)]
    switched = {action.source for action in done if isinstance(action, CopyModel)}
    return frozenset(
        action.model
        for action in done
        if isinstance(action, CreateModel) and (action.aside is None or action.aside in switched)
    )


def _residency_done(results: Iterable[ActionResult]) -> frozenset[ModelName]:
    """Models that were loaded or unloaded, which is not done twice in a run."""
    return frozenset(
        result.action.model
        for result in results
        if isinstance(result.action, LoadModel | UnloadModel) and isinstance(result.outcome, Succeeded)
    )


def with_verdict(report: HostReport, seen: HostPlan) -> HostReport:
    """The report with what a fresh look says: what still differs, what could not be found out."""
    remaining = tuple(difference for action in seen.actions for difference in action.because)
    verified = not remaining and not any(note.unresolved or note.lasting for note in seen.notes)
    return replace(report, remaining=remaining, notes=seen.notes, verified=verified)


def _without_verdict(report: HostReport, error: OllamaopsError) -> HostReport:
    note = Note(
        host=report.host,
        message=f"the last look failed: {error}",
        hint=error.hint,
        unresolved=True,
    )
    return replace(report, notes=(*report.notes, note), verified=False)


def follow_ups(
    seen: HostPlan, report: HostReport, *, declared: Collection[ModelName] = ()
) -> tuple[Action, ...]:
    """What a further round may do of what a fresh look asks for.

    Nothing that was tried before, nothing about a model with which something failed, nothing that needs any of
    those, and no deletion that nobody agreed to. Uploads, and pulls of bases that are not `declared`, come along
    with whoever needs them.
    """
    tried = {id_of(result.action) for result in report.results if not isinstance(result.action, UploadBlob)}
    spoiled = {result.action.model for result in report.results if not isinstance(result.outcome, Succeeded)}
    agreed = {id_of(action) for action in report.plan.actions}
    banned: set[str] = set()
    for action in seen.actions:
        action_id = id_of(action)
        is_new_deletion = isinstance(action, DeleteModel) and action_id not in agreed
        needs_banned = not banned.isdisjoint(action.needs)
        if action_id in tried or action.model in spoiled or is_new_deletion or needs_banned:
            banned.add(action_id)
    allowed = [action for action in seen.actions if id_of(action) not in banned]
    wanted = {need for action in allowed for need in action.needs}
    return tuple(
        action for action in allowed if id_of(action) in wanted or not _only_supports(action, declared)
    )


def _only_supports(action: Action, declared: Collection[ModelName]) -> bool:
    """Whether the action is there for the sake of others."""
    match action:
        case UploadBlob():
            return True
        case PullModel():
            return action.model not in declared
        case _:
            return False
