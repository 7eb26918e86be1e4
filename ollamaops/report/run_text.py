"""How a run ended, as lines and as text for people.

What succeeded is left out unless asked for, because progress has already shown it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import assert_never

from msgspec.structs import replace

from ollamaops.events import Failed, Interrupted, Refused, Skipped, Succeeded
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    UploadBlob,
    VerifyModel,
    continues_another,
    subject_of,
    verb_of,
)
from ollamaops.plan.results import ActionResult, HostReport, RunReport, count_outcomes
from ollamaops.report.differences import render_difference
from ollamaops.report.lines import Line, Mark, group_lines, join_lines, render_lines
from ollamaops.report.plan_text import (
    leftover_lines,
    mark_of,
    note_line,
    refusal_line,
    render_counts,
    unreached_lines,
)
from ollamaops.report.words import Paint, plural, without_host
from ollamaops.units import format_duration

PAST: Mapping[str, str] = {
    "pull": "pulled",
    "upload": "uploaded",
    "create": "created",
    "copy": "copied",
    "delete": "deleted",
    "push": "pushed",
    "verify": "verified",
    "load": "loaded",
    "unload": "unloaded",
}
ROLLED_BACK = "rolled back"


def render_run(
    report: RunReport, *, color: bool = False, width: int | None = None, verbose: bool = False
) -> str:
    """The run as text: what did not work, what still differs, and the counts; `verbose` adds what worked."""
    paint = Paint(color)
    lines = render_lines(run_lines(report, verbose=verbose), paint, width)
    return join_lines([*lines, paint("bold", summarize_run(report))])


def run_lines(report: RunReport, *, verbose: bool = False) -> list[Line]:
    """Every line of the run but the last."""
    succeeded = _succeeded_lines(report.results) if verbose else ()
    failed = [line for host in report.hosts for line in _failed_lines(host.results)]
    remaining = [line for host in report.hosts for line in _remaining_lines(host)]
    tidied = [line for host in report.hosts for line in leftover_lines(host.host, host.tidied, "removed")]
    notes = [note_line(note) for host in report.hosts for note in host.notes]
    refusals = [refusal_line(refusal) for refusal in report.plan.refusals]
    unreached = unreached_lines(host.unreached for host in report.hosts if host.unreached)
    return [*succeeded, *group_lines([*failed, *remaining, *tidied, *notes, *refusals]), *unreached]


def _succeeded_lines(results: Iterable[ActionResult]) -> Iterator[Line]:
    """What worked; what worked on one host only says how long it took."""
    seconds: dict[Line, float] = {}
    for result in results:
        if isinstance(result.outcome, Succeeded) and not isinstance(result.action, UploadBlob):
            text = _render_done(result.action, has_changed=result.outcome.changed)
            mark: Mark | None = "passed" if isinstance(result.action, VerifyModel) else None
            seconds[_result_line(result, text, mark)] = result.outcome.seconds
    for line in group_lines(seconds):
        time = f" in {format_duration(seconds[line])}" if line in seconds else ""
        yield replace(line, text=line.text + time)


def _render_done(action: Action, *, has_changed: bool) -> str:
    if isinstance(action, CopyModel) and action.source.is_aside:
        return ROLLED_BACK if action.rollback_key else "switched to"
    if isinstance(action, CreateModel) and action.aside is not None:
        return "created beside the current version"
    is_idle = not has_changed and not isinstance(action, VerifyModel)
    return PAST[verb_of(action)] + (", nothing to transfer" if is_idle else "")


def _failed_lines(results: Iterable[ActionResult]) -> Iterator[Line]:
    for result in results:
        outcome, verb = result.outcome, verb_of(result.action)
        match outcome:
            case Succeeded():
                continue
            case Failed():
                time = f" after {format_duration(outcome.seconds)}" if outcome.seconds else ""
                error = without_host(result.action.host, outcome.error)
                yield _result_line(result, f"{verb} failed{time}: {error}", "failed", outcome.hint)
            case Skipped() if _is_passed_over(result):
                continue
            case Skipped():
                yield _result_line(result, f"{verb} skipped: {outcome.because}", "skipped")
            case Refused():
                yield _result_line(result, f"{verb} refused: {outcome.because}", "trouble", outcome.hint)
            case Interrupted():
                how = "stopped halfway" if outcome.started else "not started"
                yield _result_line(result, f"{verb} {how}", "skipped")
            case _:
                assert_never(outcome)


def _result_line(result: ActionResult, text: str, mark: Mark | None = None, hint: str | None = None) -> Line:
    action = result.action
    return Line(
        mark=mark or mark_of(action),
        subject=subject_of(action),
        hosts=(action.host,),
        text=text,
        hint=hint,
    )


def _remaining_lines(report: HostReport) -> Iterator[Line]:
    """What a last look found, unless an outcome has said it already."""
    told = {result.action.model for result in report.results if not isinstance(result.outcome, Succeeded)}
    for difference in report.remaining:
        if difference.model not in told:
            yield Line(
                mark="trouble",
                subject=str(difference.model),
                hosts=(report.host,),
                text=f"still differs after {plural(report.rounds, 'round')}: {render_difference(difference)}",
            )


def summarize_run(report: RunReport) -> str:
    """The last line: `done in 1m30s: 3 pulled, 1 created; 2 hosts as declared`."""
    if report.plan.refusals and not report.results:
        return f"refused by {plural(len(report.plan.refusals), 'rule')}: nothing was changed"
    is_declared = [host.is_as_declared for host in report.hosts]
    is_idle = not report.results and not any(host.tidied for host in report.hosts)
    if is_idle and all(is_declared) and not report.interrupted:
        return render_counts(report.plan)
    done = ", ".join([*_render_outcomes(report.results), *_render_tidied(report)]) or "nothing was changed"
    return f"{_render_end(report, is_declared)} {format_duration(report.seconds)}: {done}; {_render_hosts(report)}"


def _render_end(report: RunReport, is_declared: Sequence[bool]) -> str:
    if report.interrupted:
        return "interrupted (run again to continue) after"
    if all(is_declared) and not report.plan.unreached:
        return "done in"
    has_worked = any(
        isinstance(result.outcome, Succeeded) and not _is_tried(result) for result in report.results
    )
    return "partly done in" if has_worked else "failed after"


def _is_tried(result: ActionResult) -> bool:
    """Whether what was done counts only when the steps after it have worked as well."""
    action = result.action
    return isinstance(action, VerifyModel) or (isinstance(action, CreateModel) and action.aside is not None)


def _render_outcomes(results: Sequence[ActionResult]) -> Iterator[str]:
    """`3 pulled`, `1 created`, `1 failed` …; what did not happen is left out."""
    done = Counter(_count_as(result.action) for result in results if _has_changed(result))
    yield from (f"{done[word]} {word}" for word in (*PAST.values(), ROLLED_BACK) if done[word])
    counts = count_outcomes(tuple(result for result in results if not _is_passed_over(result)))
    yield from (
        f"{counts[name]} {name}" for name in ("failed", "skipped", "refused", "interrupted") if counts[name]
    )


def _render_tidied(report: RunReport) -> Iterator[str]:
    count = sum(len(host.tidied) for host in report.hosts)
    if count:
        yield f"{plural(count, 'leftover')} removed"


def _has_changed(result: ActionResult) -> bool:
    return isinstance(result.outcome, Succeeded) and result.outcome.changed and not _is_tried(result)


def _count_as(action: Action) -> str:
    """What has become of a model all in all: a switch completes what was created aside."""
    if isinstance(action, CopyModel) and action.source.is_aside:
        return ROLLED_BACK if action.rollback_key else PAST["create"]
    return PAST[verb_of(action)]


def _is_passed_over(result: ActionResult) -> bool:
    """Whether it was not done because what it continues has failed, and says so."""
    return isinstance(result.outcome, Skipped) and continues_another(result.action)


def _render_hosts(report: RunReport) -> str:
    lost = {host.host for host in report.hosts if host.unreached}
    declared = sum(host.is_as_declared for host in report.hosts)
    unknown = sum(host.is_unknown for host in report.hosts)
    others = len(report.hosts) - len(lost) - declared - unknown
    unreached = len(lost | {host.host for host in report.plan.unreached})
    counts = ((others, "not"), (unknown, "unknown"), (unreached, "not reached"))
    return ", ".join(
        [f"{plural(declared, 'host')} as declared", *(f"{count} {what}" for count, what in counts if count)]
    )
