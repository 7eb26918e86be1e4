"""`ollamaops diff MODEL`: field by field, how a model differs from its declaration."""

from __future__ import annotations

import click
from msgspec.structs import replace

from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared, read_option
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.names import ModelName
from ollamaops.plan.codec import plan_to_json
from ollamaops.plan.results import code_of_drift
from ollamaops.report.diff_text import render_diff


@command_with_shared(
    name="diff",
    epilog="\b\nExamples:\n  ollamaops diff support-bot\n  ollamaops diff support-bot --host gpu-1 -o json",
)
@click.argument("model")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 when it differs.")
def command(shared: Shared, model: str, detailed_exitcode: bool) -> int:
    """Show field by field how MODEL differs from its declaration, and which template makes its prompts.

    On every host. Writes to no server.
    """

    name = read_option("MODEL", model, ModelName.parse)
    with open_engine(replace(shared, targets=(str(name),))) as engine:
        plan = engine.drift(look_inside=True)
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_diff(plan, name, color=color, width=width),
            "json": lambda: plan_to_json(plan),
        },
    )
    return code_of_drift(plan, detailed=detailed_exitcode)
