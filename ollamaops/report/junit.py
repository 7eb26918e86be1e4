"""Drift and verdicts as JUnit reports: one test case per model and host, which CI systems show as they show tests."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from ollamaops.plan.actions import Plan
from ollamaops.plan.results import HostVerdicts
from ollamaops.report.status_text import Cell, build_status
from ollamaops.report.words import clean

_FOOT = "  </testsuite>\n"


def drift_to_junit(plan: Plan) -> str:
    """JUnit XML: in sync passes, drift fails, unknown (and an unreached host) is an error, unmanaged is skipped."""
    suites = [
        (
            host.host,
            [(str(name), row[host.host]) for name, row in build_status(plan).items() if host.host in row],
        )
        for host in plan.hosts
    ]
    suites += [(host.host, [("host", Cell(state="unknown", why=(host.error,)))]) for host in plan.unreached]
    return _document("ollamaops", (line for host, cases in suites for line in _suite(host, cases)))


def verdicts_to_junit(hosts: Sequence[HostVerdicts]) -> str:
    """JUnit XML: a suite per host, a case per model; a host that was not reached is an error of its suite."""
    return _document("ollamaops test", (line for host in hosts for line in _suite_of_verdicts(host)))


def _suite(host: str, cases: list[tuple[str, Cell]]) -> Iterator[str]:
    states = [cell.state for _, cell in cases]
    failures = sum(state in ("missing", "drifted", "unwanted") for state in states)
    errors, skipped = states.count("unknown"), states.count("unmanaged")
    yield _head(host, tests=len(cases), failures=failures, errors=errors, skipped=skipped)
    for name, cell in cases:
        yield f'    <testcase classname="{_escape(host)}" name="{_escape(name)}">{_verdict(cell)}</testcase>\n'
    yield _FOOT


def _suite_of_verdicts(host: HostVerdicts) -> Iterator[str]:
    lost, failed = int(host.unreached is not None), sum(bool(verdict.failures) for verdict in host.verdicts)
    errors = lost + sum(bool(verdict.error) for verdict in host.verdicts)
    name = _escape(host.host)
    yield _head(host.host, tests=len(host.verdicts) + lost, failures=failed, errors=errors, skipped=0)
    for verdict in host.verdicts:
        failures = "".join(f'<failure message="{_escape(str(failure))}"/>' for failure in verdict.failures)
        failures += f'<error message="{_escape(verdict.error)}"/>' if verdict.error else ""
        yield (
            f'    <testcase classname="{name}" name="{_escape(str(verdict.model))}" '
            f'time="{verdict.seconds:.3f}">{failures}</testcase>\n'
        )
    if host.unreached:
        error = _escape(f"not reached: {host.unreached.error}")
        yield f'    <testcase classname="{name}" name="host"><error message="{error}"/></testcase>\n'
    yield _FOOT


def _document(name: str, suites: Iterable[str]) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="{name}">\n{"".join(suites)}</testsuites>\n'


def _head(host: str, *, tests: int, failures: int, errors: int, skipped: int) -> str:
    counts = f'tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}"'
    return f'  <testsuite name="{_escape(host)}" {counts}>\n'


def _verdict(cell: Cell) -> str:
    why = _escape(": ".join([cell.state, *filter(None, ["; ".join(cell.why)])]))
    match cell.state:
        case "in sync" | "held":
            return ""
        case "unmanaged":
            return "<skipped/>"
        case "unknown":
            return f'<error message="{why}"/>'
        case _:
            return f'<failure message="{why}"/>'


def _escape(text: str) -> str:
    """Safe in XML 1.0: markup escaped, controls written as escapes."""
    return html.escape(clean(text).replace("\ufffe", "").replace("\uffff", ""))
