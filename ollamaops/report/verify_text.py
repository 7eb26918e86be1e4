"""How models met their expectations, as text and JSON.

Failures quote what a model said, so every text passes through `clean` like a server's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ollamaops.plan.codec import Json
from ollamaops.plan.expectations import Verdict
from ollamaops.plan.results import HostVerdicts, code_of_verdicts
from ollamaops.report.lines import Line, join_lines, render_lines
from ollamaops.report.words import Paint, plural, without_host
from ollamaops.units import format_duration


def render_verdicts(
    hosts: Sequence[HostVerdicts],
    *,
    color: bool = False,
    width: int | None = None,
    not_proven: Sequence[str] = (),
) -> str:
    """A line per model, or per failure of it, what was not proven, and the counts."""
    paint = Paint(color)
    lines = [line for host in hosts for line in _lines(host)]
    lines += [Line(mark="note", subject="not proven", text=what) for what in not_proven]
    return join_lines([*render_lines(lines, paint, width), paint("bold", summarize_verdicts(hosts))])


def _lines(host: HostVerdicts) -> Iterator[Line]:
    for verdict in host.verdicts:
        yield from _verdict_lines(host.host, verdict)
    if host.unreached:
        text = f"not reached: {without_host(host.host, host.unreached.error)}"
        yield Line(mark="trouble", hosts=(host.host,), text=text, hint=host.unreached.hint)


def _verdict_lines(host: str, verdict: Verdict) -> Iterator[Line]:
    subject, hosts = str(verdict.model), (host,)
    if verdict.is_met:
        yield Line(mark="passed", subject=subject, hosts=hosts, text=_render_met(verdict))
    if verdict.error:
        text = f"not known: {without_host(host, verdict.error)}"
        yield Line(mark="unknown", subject=subject, hosts=hosts, text=text, hint=verdict.hint)
    for failure in verdict.failures:
        yield Line(mark="failed", subject=subject, hosts=hosts, text=str(failure), hint=failure.hint)


def _render_met(verdict: Verdict) -> str:
    """`2 expectations met; loaded in 3.2s, 41 tokens a second`"""
    speed = f", {verdict.tokens_per_s:.0f} tokens a second" if verdict.tokens_per_s else ""
    if not verdict.expectations:
        return f"answers; loaded in {format_duration(verdict.load_s)}{speed}"
    return f"{plural(verdict.expectations, 'expectation')} met; loaded in {format_duration(verdict.load_s)}{speed}"


def summarize_verdicts(hosts: Sequence[HostVerdicts]) -> str:
    """The last line: `3 models tested on 2 hosts: 2 passed, 1 failed; 1 host not reached`."""
    verdicts = [verdict for host in hosts for verdict in host.verdicts]
    unreached = sum(1 for host in hosts if host.unreached)
    if not verdicts and not unreached:
        return "nothing to verify: no model is declared for these hosts"
    passed, unknown = (
        sum(verdict.is_met for verdict in verdicts),
        sum(bool(verdict.error) for verdict in verdicts),
    )
    failed = len(verdicts) - passed - unknown
    counts = [f"{passed} passed"]
    counts += [f"{count} {what}" for count, what in ((failed, "failed"), (unknown, "unknown")) if count]
    tested = f"{plural(len(verdicts), 'model')} tested on {plural(len(hosts) - unreached, 'host')}"
    away = f"; {plural(unreached, 'host')} not reached" if unreached else ""
    return f"{tested}: {', '.join(counts)}{away}"


def verdicts_to_json(hosts: Sequence[HostVerdicts], not_proven: Sequence[str] = ()) -> dict[str, Json]:
    """`hosts`: each with `host`, `reached`, `error` and `models`, a model with `passed` and its `failures`;
    `not_proven`, in words."""
    return {
        "format": "ollamaops-test",
        "version": 1,
        "not_proven": list(not_proven),
        "passed": code_of_verdicts(hosts) == 0,
        "hosts": [
            {
                "host": host.host,
                "reached": host.unreached is None,
                "error": host.unreached.error if host.unreached else None,
                "models": [_verdict_to_json(verdict) for verdict in host.verdicts],
            }
            for host in hosts
        ],
    }


def _verdict_to_json(verdict: Verdict) -> Json:
    return {
        "model": str(verdict.model),
        "passed": verdict.is_met,
        "error": verdict.error or None,
        "expectations": verdict.expectations,
        "load_s": verdict.load_s,
        "tokens_per_s": verdict.tokens_per_s,
        "seconds": verdict.seconds,
        "failures": [
            {"what": failure.what, "message": failure.message, "hint": failure.hint}
            for failure in verdict.failures
        ],
    }
