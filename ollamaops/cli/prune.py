"""`ollamaops prune`: delete what nobody declares any more."""

from __future__ import annotations

import sys

import click

from ollamaops.cli import exits
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, force_option, wait_option


@command_with_shared(
    name="prune",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops prune --list\n  ollamaops prune --host gpu-1\n"
    "  ollamaops prune --prune 'scratch/*,*:test' -y",
)
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
@click.option(
    "--list", "only_list", is_flag=True, help="Only list what would be deleted; writes to no server."
)
@click.option(
    "--prune",
    metavar="SCOPE",
    default="",
    help="What may be deleted: owned, or GLOB,… (what policy.prune says, else owned).",
)
@force_option
@wait_option
def command(
    shared: Shared, yes: bool, only_list: bool, prune: str, force: tuple[str, ...], wait: str | None
) -> int:
    """Delete models that are no longer declared: list them, ask, delete.

    Owned is what ollamaops pulled, created or copied itself. Nothing is deleted on a host where other changes are
    pending, because what is undeclared may be all that still works there: apply first, or use --force pending.
    """
    from contextlib import ExitStack

    from ollamaops.cli.carrying import carry_out
    from ollamaops.cli.context import holding, open_scene
    from ollamaops.cli.showing import show_plan, show_run
    from ollamaops.cli.signals import confirm
    from ollamaops.engine import plan_hosts
    from ollamaops.report.words import plural

    if not (yes or only_list or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: use -y, or --list")
    with ExitStack() as stack:
        scene = stack.enter_context(
            open_scene(shared, force=force, prune=prune, prune_only=True, costs=False, wait=wait)
        )
        if not only_list:
            stack.enter_context(holding(scene))
        plan = plan_hosts(scene.cases, scene.around)
        if shared.output in (None, "text") or only_list or plan.refusals:
            show_plan(shared, plan, warnings=scene.manifest.warnings)
        if only_list or plan.refusals or not plan.actions:
            return exits.code_of_plan(plan, detailed=False)
        question = f"\nDelete {plural(len(plan.actions), 'model')}?"
        if not (yes or confirm(question, scene.around.cancel)):
            click.echo("nothing was changed", err=True)
            return exits.ERROR
        report, code = carry_out(scene, plan, "prune", force)
    show_run(shared, report)
    return code
