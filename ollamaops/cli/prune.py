"""`ollamaops prune`: delete models that are no longer declared."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import click

from ollamaops.cli.changing import change_hosts, locked
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, force_option, wait_option
from ollamaops.report.words import plural


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
    if not (yes or only_list or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: use -y, or --list")
    with (
        open_engine(shared, force=force, prune=prune, wait=wait) as engine,
        nullcontext() if only_list else locked(shared, engine),
    ):
        plan = engine.plan_prune()
        return change_hosts(
            shared,
            engine,
            plan,
            command="prune",
            is_idle=only_list or not plan.actions,
            show_first=only_list or shared.output in (None, "text"),
            question=None if yes else f"\nDelete {plural(len(plan.actions), 'model')}?",
            force=force,
        )
