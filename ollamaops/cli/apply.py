"""`ollamaops apply`: make the servers match the manifest, and look again."""

from __future__ import annotations

import sys

import click

from ollamaops.cli.changing import change_hosts
from ollamaops.cli.changing import locked as locked_hosts
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, planning_options, wait_option
from ollamaops.cli.saving import load_plan, read_key
from ollamaops.report.words import plural


@command_with_shared(
    name="apply",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops apply\n  ollamaops apply -y --host 'gpu-*'\n  ollamaops apply plan.json",
)
@click.argument("saved", required=False, metavar="[PLAN]")
@click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
@click.option(
    "--repair",
    is_flag=True,
    help="Also load each declared model, and bring back what is broken; the models that share it are deleted first.",
)
@planning_options
@wait_option
def command(
    shared: Shared,
    saved: str | None,
    yes: bool,
    plan_key: str | None,
    prune: str | None,
    no_prune: bool,
    force: tuple[str, ...],
    verify_weights: bool,
    locked: bool,
    release: bool,
    wait: str | None,
    repair: bool,
) -> int:
    """Make the servers match the manifest: plan, ask, do it, look again.

    PLAN is a file written by `plan --out`; then exactly that is done, without asking, and it is refused when a
    fact it relies on has changed. Ctrl-C stops cleanly; run again to continue. One run at a time changes a host:
    a second one is refused and told who has it, or waits (--wait).
    """
    if not (yes or saved or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: use -y, or apply a saved plan")
    is_text = shared.output in (None, "text")
    with (
        open_engine(
            shared,
            force=force,
            verify_weights=verify_weights,
            prune="none" if no_prune else prune,
            require_lock=locked,
            release=release,
            wait=wait,
            repair=repair,
        ) as engine,
        locked_hosts(shared, engine),
    ):
        plan = load_plan(saved, engine, read_key(plan_key)) if saved else engine.plan()
        hosts = len({action.host for action in plan.actions})
        is_idle = not plan.actions and not any(host.leftovers for host in plan.hosts) and not release
        return change_hosts(
            shared,
            engine,
            plan,
            command="apply",
            is_idle=is_idle and is_text,
            show_first=is_text,
            question=f"\nDo this on {plural(hosts, 'host')}?"
            if plan.actions and not (yes or saved)
            else None,
            force=force,
        )
