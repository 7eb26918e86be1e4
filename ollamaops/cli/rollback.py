"""`ollamaops rollback`: switch models back to their previous version, without moving weights."""

from __future__ import annotations

import click
from msgspec.structs import replace

from ollamaops import exits
from ollamaops.changes import release_rollbacks
from ollamaops.cli.changing import change_hosts, locked
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, force_option, wait_option
from ollamaops.engine import Engine
from ollamaops.plan.results import code_of_plan


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

    The model then stays at that version: plan says so, and apply leaves it alone until its entry in the manifest
    changes, or until --release. The version that was current is kept, so a second rollback undoes the first.
    """
    asked = replace(shared, targets=(*shared.targets, *models))
    with open_engine(asked, force=force, wait=wait) as engine, locked(asked, engine):
        if release:
            return _release(engine)
        plan = engine.plan_rollback(version)
        is_idle = not plan.actions
        code = change_hosts(
            shared,
            engine,
            plan,
            command=f"rollback {' '.join(models)}",
            is_idle=is_idle,
            show_first=is_idle,
            force=force,
        )
    if is_idle and not plan.refusals and not plan.unreached:
        return exits.ERROR
    return exits.worst(code, code_of_plan(plan)) if code == exits.DONE else code


def _release(engine: Engine) -> int:
    released, unreached = release_rollbacks(engine)
    for host, names in released.items():
        for name in names:
            click.echo(f"{name} on {host}: released, the next apply brings it forward")
    for host, error in unreached.items():
        click.echo(f"{host}: not released: {error}", err=True)
    if not any(released.values()) and not unreached:
        click.echo("nothing was rolled back")
    return exits.PARTIAL if unreached else exits.DONE
