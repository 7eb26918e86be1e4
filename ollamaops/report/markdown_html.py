"""Reports as Markdown for pull-request comments, and as HTML pages for build artifacts.

In Markdown, all foreign text stands inside a fence longer than any run of backticks in it: anywhere else GitHub turns
`@name` into a mention and `#1` into a link. In HTML everything goes through `_escape`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from ollamaops.plan.actions import Plan
from ollamaops.plan.results import RunReport
from ollamaops.report.lines import SYMBOLS, Line, render_lines
from ollamaops.report.plan_text import plan_lines, render_counts
from ollamaops.report.run_text import run_lines, summarize_run
from ollamaops.report.words import Paint, clean, clean_line

_FOLDED_FROM = 25  # lines; longer reports are folded away in a comment
_MAX_FENCED = 60_000  # characters; GitHub takes comments of 65536
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#@&])")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #ddd; padding: .3rem .6rem; vertical-align: top; }
td:first-child, pre { font-family: ui-monospace, monospace; }
pre { background: #f6f6f6; margin: .3rem 0; padding: .4rem; overflow-x: auto; }
.hint { color: #666; } .summary { font-weight: 600; }
.new td:first-child { color: #1a7f37; } .change td:first-child, .skipped td:first-child { color: #9a6700; }
.delete td:first-child, .trouble td:first-child, .failed td:first-child { color: #cf222e; }
.same { color: #666; }
"""


def render_plan_markdown(plan: Plan) -> str:
    """The plan as a Markdown comment: the counts, then its lines as a `diff` block."""
    return render_markdown("ollamaops plan", plan_lines(plan, verbose=True), render_counts(plan))


def render_run_markdown(report: RunReport) -> str:
    """The run as a Markdown comment."""
    return render_markdown("ollamaops apply", run_lines(report, verbose=True), summarize_run(report))


def render_plan_html(plan: Plan) -> str:
    """The plan as a page of its own, without scripts."""
    return render_html("ollamaops plan", plan_lines(plan, verbose=True), render_counts(plan))


def render_run_html(report: RunReport) -> str:
    """The run as a page of its own, without scripts."""
    return render_html("ollamaops apply", run_lines(report, verbose=True), summarize_run(report))


def render_markdown(title: str, lines: Iterable[Line], summary: str) -> str:
    """A heading, the summary, and the lines in a fence that nothing in them can close."""
    fenced = _fence(_cut(render_lines(lines, Paint())))
    head = f"### {_escape_markdown(title)}\n\n**{_escape_markdown(summary)}**\n"
    if fenced.count("\n") > _FOLDED_FROM:
        return f"{head}\n<details><summary>details</summary>\n\n{fenced}\n</details>\n"
    return f"{head}\n{fenced}" if fenced else head


def _fence(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    text = "\n".join(lines)
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}diff\n{text}\n{ticks}\n"


def _cut(lines: list[str]) -> list[str]:
    """As many of the lines as a comment can hold, and how many are missing."""
    room = _MAX_FENCED
    for index, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            return [*lines[:index], f"… and {len(lines) - index} more lines"]
    return lines


def _escape_markdown(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", clean(text))


def render_html(title: str, lines: Iterable[Line], summary: str) -> str:
    """A page with the summary and a table of the lines."""
    rows = "".join(_row(line) for line in lines)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{_escape(title)}</h1>\n<p class="summary">{_escape(summary)}</p>\n'
        f"<table>\n{rows}</table>\n</body>\n</html>\n"
    )


def _row(line: Line) -> str:
    details = "\n".join(html.escape(clean_line(text)) for text in line.details)
    below = (f"<pre>{details}</pre>" if details else "") + (
        f'<div class="hint">hint: {_escape(line.hint)}</div>' if line.hint else ""
    )
    return (
        f'<tr class="{line.mark}"><td>{_escape(SYMBOLS[line.mark])}</td><td>{_escape(line.subject)}</td>'
        f'<td title="{_escape(", ".join(line.hosts))}">{_escape(line.where.removeprefix("on "))}</td>'
        f"<td>{_escape(line.said)}{below}</td></tr>\n"
    )


def _escape(text: str) -> str:
    return html.escape(clean(text))
