"""What apply, prune and rollback have in common: show the plan, ask, carry it out, show what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import click

from ollamaops import changes, exits
from ollamaops.cli.context import print_note, progress
from ollamaops.cli.options import Shared
from ollamaops.cli.showing import show_plan, show_run
from ollamaops.cli.signals import confirm, exit_code
from ollamaops.cli.trust import require_trusted
from ollamaops.engine import Engine
from ollamaops.events import discard
from ollamaops.plan.actions import Plan
from ollamaops.plan.results import code_of_plan


def locked(shared: Shared, engine: Engine) -> AbstractContextManager[None]:
    """The locks of the engine's hosts; waiting for one is told on stderr. RefusedError for an untrusted manifest."""
    require_trusted(shared)
    return changes.lock(engine, discard if shared.quiet else print_note)


def change_hosts(
    shared: Shared,
    engine: Engine,
    plan: Plan,
    *,
    command: str,
    is_idle: bool,
    show_first: bool,
    question: str | None = None,
    force: Sequence[str] = (),
) -> int:
    """The exit code. An idle or refused plan is only shown; `question` None asks nothing.

    The run is kept in the history as `command`, with the rules that were lifted.
    """
    if show_first or plan.refusals:
        show_plan(shared, engine.run.hidden.hide(plan), warnings=engine.manifest.warnings)
    if plan.refusals or is_idle:
        return code_of_plan(plan)
    if question is not None and not confirm(question, engine.run.cancel):
        click.echo("nothing was changed", err=True)
        return exits.ERROR
    asked = " ".join([command, *(f"--force {rule}" for rule in force)])
    with progress(shared) as sink:
        report = changes.apply(engine, plan, command=asked, emit=sink, interrupted_code=exit_code)
    show_run(shared, report)
    return report.exit_code
