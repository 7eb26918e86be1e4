"""`ollamaops history`: what was done when, by whom, from what, and how it ended."""

from __future__ import annotations

from typing import Any

import click

from ollamaops import exits
from ollamaops.cli.context import open_ledger
from ollamaops.cli.options import (
    Commands,
    Shared,
    command_with_shared,
    offer_formats,
    shared_options,
    take_shared,
)
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.errors import UsageError
from ollamaops.report.history_text import (
    render_run_diff,
    render_run_record,
    render_runs,
    run_diff_to_json,
    run_record_to_json,
    runs_to_json,
)
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import RunRecord

LATEST = "latest"


@click.group(
    name="history",
    cls=Commands,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  ollamaops history\n  ollamaops history show latest\n"
    "  ollamaops history diff 3f2a 91bc -o json",
)
@click.option(
    "-n",
    "--last",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Show the last N runs.",
)
@shared_options
@click.pass_context
def command(context: click.Context, /, last: int, **given: Any) -> int | None:
    """Show what was done when, by whom, from which manifest and git commit, and how it ended.

    Every run that changes a server is kept in the state folder; `audit.jsonl` beside it has one line per action.
    RUN is an id, the beginning of one, or `latest`.
    """
    inner, _ = take_shared(given)
    outer = context.obj if isinstance(context.obj, Shared) else Shared()
    context.obj = shared = inner.over(outer)
    if context.invoked_subcommand is not None:
        return None

    runs = open_ledger(shared).runs(last)
    color, _width = color_and_width(shared)
    emit(shared, {"text": lambda: render_runs(runs, color=color), "json": lambda: runs_to_json(runs)})
    return exits.DONE


@command_with_shared(
    name="show",
    epilog="\b\nExamples:\n  ollamaops history show latest\n  ollamaops history show 3f2a -o json   # with its plan",
)
@click.argument("run")
def show(shared: Shared, run: str) -> int:
    """Show one run in full: every action and what became of it."""

    found = _find(open_ledger(shared), run)
    color, _ = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_run_record(found, color=color),
            "json": lambda: run_record_to_json(found),
        },
    )
    return exits.DONE


@command_with_shared(name="diff", epilog="\b\nExamples:\n  ollamaops history diff 3f2a latest")
@click.argument("old", metavar="RUN")
@click.argument("new", metavar="RUN")
def diff(shared: Shared, old: str, new: str) -> int:
    """Show what the second run was and did differently from the first."""

    ledger = open_ledger(shared)
    first, second = _find(ledger, old), _find(ledger, new)
    color, _ = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_run_diff(first, second, color=color),
            "json": lambda: run_diff_to_json(first, second),
        },
    )
    return exits.DONE


def _find(ledger: Ledger, run: str) -> RunRecord:
    """The one run that is meant; UsageError if that is none or several."""
    found = ledger.runs(1) if run == LATEST else ledger.find_runs(run)
    if len(found) == 1:
        return found[0]
    exact = [each for each in found if each.run_id == run]
    if exact:
        return exact[0]
    if found:
        named = ", ".join(each.run_id for each in found[:5])
        raise UsageError(
            f"'{run}' is the beginning of {len(found)} runs: {named}", hint="write more of the id"
        )
    raise UsageError(f"no run '{run}' is known", hint="list them with: ollamaops history")


offer_formats(command, ("text", "json"))
command.add_command(show)
command.add_command(diff)
