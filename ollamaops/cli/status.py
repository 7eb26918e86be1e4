"""`ollamaops status`: every model on every host."""

from __future__ import annotations

from ollamaops.cli.options import Shared, command_with_shared


@command_with_shared(
    name="status", epilog="\b\nExamples:\n  ollamaops status\n  ollamaops status -l site=paris -o json"
)
def command(shared: Shared) -> int:
    """Show every model on every host: in sync, missing, differing, unmanaged or unknown. Writes to no server."""
    from ollamaops.cli.context import open_scene
    from ollamaops.cli.exits import code_of_plan
    from ollamaops.cli.printing import color_and_width, emit
    from ollamaops.engine import plan_hosts
    from ollamaops.report.status_text import render_status, status_to_json

    with open_scene(shared, costs=False, guarded=False) as scene:
        plan = plan_hosts(scene.cases, scene.around)
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_status(plan, color=color, width=width, verbose=shared.verbose > 0),
            "json": lambda: status_to_json(plan),
        },
    )
    return code_of_plan(plan, detailed=False)
