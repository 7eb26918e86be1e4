"""Drift as a JUnit report: one test case per model and host, so that CI systems show it as they show tests."""

from __future__ import annotations

import html
from collections.abc import Iterator

from ollamaops.plan.actions import Plan
from ollamaops.report.status_text import Cell, build_status
from ollamaops.report.words import clean


def render_junit(plan: Plan) -> str:
    """JUnit XML: in sync passes, drift fails, unknown (and an unreached host) is an error, unmanaged is skipped."""
    suites = [
        (
            host.host,
            [(str(name), row[host.host]) for name, row in build_status(plan).items() if host.host in row],
        )
        for host in plan.hosts
    ]
    suites += [(host.host, [("host", Cell(state="unknown", why=(host.error,)))]) for host in plan.unreached]
    body = "".join(line for host, cases in suites for line in _suite(host, cases))
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="ollamaops">\n{body}</testsuites>\n'


def _suite(host: str, cases: list[tuple[str, Cell]]) -> Iterator[str]:
    states = [cell.state for _, cell in cases]
    failures = sum(state in ("missing", "drifted", "unwanted") for state in states)
    yield (
        f'  <testsuite name="{_escape(host)}" tests="{len(cases)}" failures="{failures}" '
        f'errors="{states.count("unknown")}" skipped="{states.count("unmanaged")}">\n'
    )
    for name, cell in cases:
        yield f'    <testcase classname="{_escape(host)}" name="{_escape(name)}">{_verdict(cell)}</testcase>\n'
    yield "  </testsuite>\n"


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
