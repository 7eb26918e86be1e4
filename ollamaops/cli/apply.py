"""`ollamaops apply`: make the servers as declared, and look again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ollamaops.cli import exits
from ollamaops.cli.options import FORMATS, Shared, command_with_shared, planning_options, wait_option

if TYPE_CHECKING:
    from ollamaops.cli.context import Scene
    from ollamaops.http.cancel import CancelToken
    from ollamaops.plan.actions import Plan


@command_with_shared(
    name="apply",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops apply\n  ollamaops apply -y --host 'gpu-*'\n  ollamaops apply plan.json",
)
@click.argument("saved", required=False, metavar="[PLAN]")
@click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
@planning_options
@wait_option
def command(
    shared: Shared,
    saved: str | None,
    yes: bool,
    prune: str | None,
    no_prune: bool,
    force: tuple[str, ...],
    verify_weights: bool,
    locked: bool,
    release: bool,
    wait: str | None,
) -> int:
    """Make the servers match the manifest: plan, ask, do it, look again.

    PLAN is a file written by `plan --out`; then exactly that is done, without asking, and it is refused when a
    fact it relies on has changed. Ctrl-C stops cleanly; run again to continue. One run at a time changes a host:
    a second one is refused and told who has it, or waits (--wait).
    """
    from ollamaops.cli.context import open_scene

    if not (yes or saved or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: use -y, or apply a saved plan")
    scope = "none" if no_prune else prune
    with open_scene(
        shared,
        force=force,
        verify_weights=verify_weights,
        prune=scope,
        require_lock=locked,
        release=release,
        wait=wait,
    ) as scene:
        return _apply(scene, saved, yes=yes, force=force, release=release)


def _apply(scene: Scene, saved: str | None, *, yes: bool, force: tuple[str, ...], release: bool) -> int:
    from ollamaops.cli.context import holding
    from ollamaops.cli.showing import show_plan, show_run

    if scene.is_reading():  # it will all be needed, and there is time
        import ollamaops.apply.converge
        import ollamaops.cli.carrying
        import ollamaops.report.progress  # noqa: F401
    shared = scene.shared
    with holding(scene):
        plan = _agree(scene, saved)
        if shared.output in (None, "text") or plan.refusals:
            show_plan(shared, plan, warnings=scene.manifest.warnings)
        if plan.refusals:
            return exits.REFUSED
        if plan.actions and not (yes or saved) and not _confirm(plan, scene.around.cancel):
            click.echo("nothing was changed", err=True)
            return exits.ERROR
        is_idle = not plan.actions and not any(host.leftovers for host in plan.hosts) and not release
        if is_idle and shared.output in (None, "text"):
            return exits.code_of_plan(plan, detailed=False)
        from ollamaops.cli.carrying import carry_out

        report, code = carry_out(scene, plan, "apply", force)
        show_run(shared, report)
        return code


def _agree(scene: Scene, saved: str | None) -> Plan:
    """The plan to carry out: a fresh one, or the saved one if all its facts still hold."""
    from ollamaops.engine import check_facts, plan_hosts

    if saved is None:
        return plan_hosts(scene.cases, scene.around)
    from ollamaops.cli.saving import load_plan

    plan = load_plan(saved, scene)
    return check_facts(plan, scene.cases, scene.around)


def _confirm(plan: Plan, cancel: CancelToken) -> bool:
    from ollamaops.cli.signals import confirm

    hosts = len({action.host for action in plan.actions})
    where = "1 host" if hosts == 1 else f"{hosts} hosts"
    return confirm(f"\nDo this on {where}?", cancel)
