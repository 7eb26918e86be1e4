"""Recording what a run does: its plan and outcomes in the ledger, each action as a line of the audit log.

The start is recorded before anything is done, each action as it ends. A run that cannot be recorded continues and
says so once. Planning never reads the history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from ollamaops.apply.saved_plan import declaration_digest
from ollamaops.errors import OllamaopsError, StateError
from ollamaops.events import ActionEnded, Event, Interrupted, Noted, Outcome, Skipped
from ollamaops.files.git import commit_of
from ollamaops.names import ModelName
from ollamaops.observe.run import HostTask, Run
from ollamaops.plan.actions import Plan, id_of
from ollamaops.plan.codec import Json, plan_to_json, value_to_json
from ollamaops.plan.results import ActionResult, HostReport, RunReport, outcome_name
from ollamaops.state.audit import AuditLog
from ollamaops.state.locks import who_am_i
from ollamaops.state.records import UNFINISHED, RunRecord


class Recorder:
    """What is written down of one run. Use `run` for the run: it listens in."""

    def __init__(self, record: RunRecord, run: Run, *, is_kept: bool) -> None:
        self.record = record
        self._is_kept = is_kept
        self._ledger = run.ledger
        self._audit = AuditLog(run.ledger.folder)
        self._outer, self._hidden = run, run.hidden
        self._has_complained = False
        self.run = replace(run, emit=self._listen)

    def start(self) -> None:
        """Keep that the run has begun."""
        self._keep_record()

    def finish(self, report: RunReport, exit_code: int) -> None:
        """Keep how the run ended, and a line for every action that was never begun."""
        for result in report.results:
            if isinstance(result.outcome, Skipped) or result.outcome == Interrupted():
                self._append(result.action.host, id_of(result.action), self._outer.now(), result.outcome)
        self.record = replace(
            self.record,
            hosts=json.dumps({host.host: _host_to_json(host) for host in report.hosts}),
            outcomes=json.dumps([_result_to_json(result) for result in report.results]),
        )
        self.end(exit_code)
        if self._is_kept:
            self._keep_evictions(report)

    def end(self, exit_code: int) -> None:
        """Keep the exit code of a run, if no other was kept before."""
        if not self.record.is_finished:
            self.record = replace(self.record, exit_code=exit_code, ended_at=self._outer.now())
            self._keep_record()

    def _listen(self, event: Event) -> None:
        if isinstance(event, ActionEnded) and event.outcome != Interrupted():
            self._append(event.host, event.action_id, event.at, event.outcome)
        self._outer.emit(self._hidden.hide(event))

    def _append(self, host: str, action_id: str, at: str, outcome: Outcome) -> None:
        record = self.record
        head = {"at": at, "run": record.run_id, "command": record.command, "who": record.who}
        origin = {"manifest": record.manifest_digest, "commit": record.commit}
        hidden = self._hidden.hide(outcome)
        entry = {**head, **origin, "host": host, "action": action_id, **_outcome_to_json(hidden)}
        try:
            self._audit.append(entry)
        except StateError as error:
            self._complain(error)

    def _keep_record(self) -> None:
        if not self._is_kept:
            return
        try:
            self._ledger.record_run(self.record)
        except StateError as error:
            self._complain(error)

    def _keep_evictions(self, report: RunReport) -> None:
        try:
            for host in report.hosts:
                if host.evicted is not None:
                    self._ledger.remember_evictions(host.host, host.evicted)
        except StateError as error:
            self._complain(error)

    def _complain(self, error: StateError) -> None:
        if not self._has_complained:
            self._has_complained = True
            message = f"this run is not written down: {error}"
            self._outer.emit(Noted(**self._outer.stamp(), level="warning", message=message))


@contextmanager
def recorded(
    plan: Plan, tasks: Sequence[HostTask], run: Run, *, command: str, folder: Path
) -> Iterator[Recorder]:
    """Within the block a run is written down; the block calls `finish`, unless it ends in an error.

    A run that has nothing to do leaves no trace.
    `folder` is the manifest's; `command` what the user asked for, without anything secret.
    """
    record = RunRecord(
        run_id=run.run_id,
        at=run.now(),
        command=command,
        hosts="{}",
        manifest_digest=declaration_digest(tasks),
        exit_code=UNFINISHED,
        plan=json.dumps(plan_to_json(run.hidden.hide(plan))),
        outcomes="[]",
        who=who_am_i(),
        commit=commit_of(folder),
    )
    recorder = Recorder(record, run, is_kept=bool(plan.actions))
    recorder.start()
    try:
        yield recorder
    except OllamaopsError as error:
        recorder.end(error.exit_code)
        raise
    finally:
        recorder.end(1)


def _result_to_json(result: ActionResult) -> Json:
    return {"host": result.action.host, "action": id_of(result.action), **_outcome_to_json(result.outcome)}


def _outcome_to_json(outcome: Outcome) -> dict[str, Json]:
    body = value_to_json(outcome)
    assert isinstance(body, dict), "an outcome has fields"
    return {"result": outcome_name(outcome), **body}


def _host_to_json(report: HostReport) -> Json:
    return {
        "verified": report.verified,
        "rounds": report.rounds,
        "seconds": report.seconds,
        "server_version": report.plan.server_version,
        "unreached": report.unreached.error if report.unreached else None,
        **({} if report.evicted is None else {"evicted": _evicted_to_json(report.evicted)}),
    }


def _evicted_to_json(evicted: Mapping[ModelName, Sequence[ModelName]]) -> Json:
    return {str(name): [str(other) for other in beside] for name, beside in evicted.items()}
