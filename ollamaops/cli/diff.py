"""`ollamaops diff MODEL`: field by field, how a model differs from its declaration."""

from __future__ import annotations

from dataclasses import replace

import click

from ollamaops.cli.options import Shared, command_with_shared, read_option


@command_with_shared(
    name="diff",
    epilog="\b\nExamples:\n  ollamaops diff support-bot\n  ollamaops diff support-bot --host gpu-1 -o json",
)
@click.argument("model")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 when it differs.")
def command(shared: Shared, model: str, detailed_exitcode: bool) -> int:
    """Show field by field how MODEL differs from its declaration, on every host. Writes to no server."""
    from ollamaops.cli.context import open_scene
    from ollamaops.cli.exits import code_of_plan
    from ollamaops.cli.printing import color_and_width, emit
    from ollamaops.engine import plan_hosts
    from ollamaops.names import ModelName
    from ollamaops.plan.codec import plan_to_json
    from ollamaops.report.diff_text import render_diff

    name = read_option("MODEL", model, ModelName.parse)
    with open_scene(replace(shared, targets=(str(name),)), costs=False, guarded=False) as scene:
        plan = plan_hosts(scene.cases, scene.around)
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_diff(plan, name, color=color, width=width),
            "json": lambda: plan_to_json(plan),
        },
    )
    return code_of_plan(plan, detailed=detailed_exitcode)
