"""`ollamaops plan`: what apply would do, and why."""

from __future__ import annotations

import click

from ollamaops.cli.context import open_engine
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, planning_options
from ollamaops.cli.saving import read_key, save_plan
from ollamaops.cli.showing import show_plan
from ollamaops.plan.actions import Plan
from ollamaops.plan.results import code_of_plan
from ollamaops.report.words import plural


@command_with_shared(
    name="plan",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops plan\n  ollamaops plan --out plan.json && ollamaops apply plan.json\n"
    "  ollamaops plan -l site=paris --target qwen3:32b --detailed-exitcode",
)
@click.option("--out", metavar="FILE", help="Save the plan; `ollamaops apply FILE` does exactly that.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 when something would change.")
@planning_options
def command(
    shared: Shared,
    out: str | None,
    detailed_exitcode: bool,
    plan_key: str | None,
    prune: str | None,
    no_prune: bool,
    force: tuple[str, ...],
    verify_weights: bool,
    locked: bool,
    release: bool,
) -> int:
    """Show what apply would do, and why. Writes to no server.

    Each line says what, where, why and what it costs. Exit 0, 2 with --detailed-exitcode when something would
    change, 3 when a host could not be reached or something differs that apply cannot change, 4 when a safety rule
    refuses.
    """

    with open_engine(
        shared,
        force=force,
        verify_weights=verify_weights,
        prune="none" if no_prune else prune,
        require_lock=locked,
        release=release,
    ) as engine:
        plan = engine.plan()
        if out:
            save_plan(plan, engine, out, read_key(plan_key))
            _tell_saved(shared, plan, out)
    show_plan(shared, engine.run.hidden.hide(plan), warnings=engine.manifest.warnings)
    return code_of_plan(plan, detailed=detailed_exitcode)


def _tell_saved(shared: Shared, plan: Plan, path: str) -> None:
    """On stderr, so that the plan itself can be piped on."""
    if shared.quiet or shared.log_format == "json":
        return
    what = plural(len(plan.actions), "action")
    click.echo(f"saved {what} to {path}; to do exactly that: ollamaops apply {path}", err=True)
