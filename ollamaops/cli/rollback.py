"""`ollamaops rollback`: switch models back to the version before, without moving weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ollamaops.cli import exits
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, force_option, wait_option

if TYPE_CHECKING:
    from ollamaops.cli.context import Scene


@command_with_shared(
    name="rollback",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops rollback support-bot\n  ollamaops rollback support-bot --host gpu-1 --to 2\n"
    "  ollamaops rollback support-bot --release",
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--to",
    "version",
    type=click.IntRange(1, 20),
    default=1,
    show_default=True,
    help="Which version: 1 is the one before the current one, 2 the one before that.",
)
@click.option("--release", is_flag=True, help="End a rollback: the next apply updates the model again.")
@force_option
@wait_option
def command(
    shared: Shared,
    models: tuple[str, ...],
    version: int,
    release: bool,
    force: tuple[str, ...],
    wait: str | None,
) -> int:
    """Switch models back to the version that keep_previous has kept. No question is asked, nothing is downloaded.

    The model is then held there: plan says so, and apply leaves it alone until its entry in the manifest changes,
    or until --release. The version that was current is kept, so that a second rollback undoes the first.
    """
    from ollamaops.cli.carrying import carry_out
    from ollamaops.cli.context import holding, open_scene
    from ollamaops.cli.showing import show_plan, show_run
    from ollamaops.engine import plan_rollbacks

    asked = replace(shared, targets=(*shared.targets, *models))
    with open_scene(asked, force=force, costs=False, wait=wait) as scene, holding(scene):
        if release:
            return _release(scene)
        plan = plan_rollbacks(scene.cases, scene.around, version)
        if plan.refusals or not plan.actions:
            show_plan(shared, plan)
            nothing = exits.DONE if plan.refusals or plan.unreached else exits.ERROR
            return exits.worst(nothing, exits.code_of_plan(plan, detailed=False))
        report, code = carry_out(scene, plan, f"rollback {' '.join(models)}", force)
    show_run(shared, report)
    return exits.worst(code, exits.code_of_plan(plan, detailed=False)) if code == exits.DONE else code


def _release(scene: Scene) -> int:
    from ollamaops.engine import release_hosts

    released, unreached = release_hosts(scene.cases, scene.around)
    for host, names in released.items():
        for name in names:
            click.echo(f"{name} on {host}: released, the next apply brings it forward")
    for host, error in unreached.items():
        click.echo(f"{host}: not released: {error}", err=True)
    if not any(released.values()) and not unreached:
        click.echo("nothing was held")
    return exits.PARTIAL if unreached else exits.DONE
