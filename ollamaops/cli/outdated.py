"""`ollamaops outdated`: what registries have that is newer than the hosts' models."""

from __future__ import annotations

import click

from ollamaops import exits
from ollamaops.cli.context import open_engine, read_lock
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.errors import UsageError
from ollamaops.lockfile.lock import Lock
from ollamaops.observe.outdated import find_outdated
from ollamaops.report.outdated_text import outdated_to_json, render_outdated


@command_with_shared(
    name="outdated",
    epilog="\b\nExamples:\n  ollamaops outdated\n  ollamaops outdated -l site=paris -v\n"
    "  ollamaops outdated --detailed-exitcode -o json",
)
@click.option(
    "--detailed-exitcode", is_flag=True, help="Exit 2 when a model is outdated or gone from its registry."
)
def command(shared: Shared, detailed_exitcode: bool) -> int:
    """Show what changed upstream for every pulled model on every host, and of what kind. Pulls nothing.

    Says which of weights, template, parameters, system prompt and license changed, and how many bytes an update would
    download. Models with update: never are left out. Exit 3 when a host or a registry could not be asked; a registry
    that says it has no such model or tag (any more) has been asked.
    """

    if shared.no_registry:
        raise UsageError("outdated has to ask registries", hint="leave out --no-registry")
    with open_engine(shared) as engine:
        hosts, unreached = find_outdated(engine.declared, engine.run, read_lock(shared) or Lock())
        engine.run.cancel.check()
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_outdated(
                hosts, unreached, color=color, width=width, verbose=shared.verbose > 0
            ),
            "json": lambda: outdated_to_json(hosts, unreached),
        },
    )
    found = [model for host in hosts for model in host.models]
    has_changed = any(model.state in ("outdated", "gone") for model in found)
    return exits.worst(
        exits.DONE,
        exits.CHANGES if detailed_exitcode and has_changed else exits.DONE,
        exits.DONE if not unreached and all(model.is_answered for model in found) else exits.PARTIAL,
    )
