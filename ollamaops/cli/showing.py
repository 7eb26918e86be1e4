"""Plans and runs on stdout, in the asked format; shared by several commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ollamaops.cli.options import Shared
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.errors import Problem
from ollamaops.plan.actions import Plan
from ollamaops.plan.results import RunReport
from ollamaops.report.json_output import plan_report_to_json, run_to_json
from ollamaops.report.markdown_html import (
    render_plan_html,
    render_plan_markdown,
    render_run_html,
    render_run_markdown,
)
from ollamaops.report.plan_text import render_plan
from ollamaops.report.problem_text import render_problems
from ollamaops.report.run_text import render_run


def show_plan(shared: Shared, plan: Plan, *, warnings: Sequence[Problem] = ()) -> None:
    """A plan on stdout, the manifest's warnings on stderr."""
    warn(shared, warnings)
    color, width = color_and_width(shared)

    def as_text() -> str:

        return render_plan(plan, color=color, width=width, verbose=shared.verbose > 0)

    def as_json() -> object:

        return plan_report_to_json(plan)

    def as_markdown() -> str:

        return render_plan_markdown(plan)

    def as_html() -> str:

        return render_plan_html(plan)

    emit(shared, {"text": as_text, "json": as_json, "markdown": as_markdown, "html": as_html})


def show_run(shared: Shared, report: RunReport) -> None:
    """A run's report on stdout; what succeeded is named again only if no progress has shown it."""

    unseen = shared.quiet or shared.progress == "none"
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_run(
                report, color=color, width=width, verbose=shared.verbose > 0 or unseen
            ),
            "json": lambda: run_to_json(report),
            "markdown": lambda: render_run_markdown(report),
            "html": lambda: render_run_html(report),
        },
    )


def warn(shared: Shared, warnings: Sequence[Problem]) -> None:
    """Warnings about the user's files, on stderr."""
    if warnings and not shared.quiet:
        sys.stderr.write(render_problems(warnings, level="warning"))
