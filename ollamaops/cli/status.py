"""`ollamaops status`: every model on every host."""

from __future__ import annotations

from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.plan.results import code_of_drift
from ollamaops.report.status_text import render_status, status_to_json


@command_with_shared(
    name="status", epilog="\b\nExamples:\n  ollamaops status\n  ollamaops status -l site=paris -o json"
)
def command(shared: Shared) -> int:
    """Show every model on every host: in sync, missing, differing, unmanaged or unknown. Writes to no server.

    With -v every model is looked into, to see which template makes its prompts.
    """

    with open_engine(shared) as engine:
        plan = engine.drift(look_inside=shared.verbose > 0)
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_status(plan, color=color, width=width, verbose=shared.verbose > 0),
            "json": lambda: status_to_json(plan),
        },
    )
    return code_of_drift(plan, detailed=False)
