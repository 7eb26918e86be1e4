"""`ollamaops test`: do the models do what the manifest expects of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ollamaops.cli import exits
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.errors import UsageError

if TYPE_CHECKING:
    from ollamaops.cli.context import Fleet
    from ollamaops.manifest.types import ModelSpec
    from ollamaops.names import ModelName
    from ollamaops.plan.results import HostVerdicts


@command_with_shared(
    name="test",
    epilog="\b\nExamples:\n  ollamaops test\n  ollamaops test support-bot --host 'gpu-*'\n"
    "  ollamaops test --junit report.xml",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--junit", metavar="FILE", help="Also write a JUnit report.")
def command(shared: Shared, models: tuple[str, ...], junit: str | None) -> int:
    """Check models against their `expect:` on every host that has them. Loads models, changes none.

    MODEL is a name or a glob. Exit 0 when everything is as expected, 5 when something is not, 3 when a host could
    not be reached.
    """
    from ollamaops.cli.context import load, open_fleet
    from ollamaops.cli.printing import color_and_width, emit, write_file
    from ollamaops.observe.verify_hosts import Trials, try_hosts
    from ollamaops.report.verify_text import render_verdicts, verdicts_to_json

    asked = replace(shared, targets=(*shared.targets, *models))
    with open_fleet(asked, load(asked)) as fleet:
        trials = Trials(cancel=fleet.cancel, jobs=shared.jobs or 8)
        if not shared.quiet and shared.progress != "none":
            trials = replace(trials, on_model=_tell)
        hosts = try_hosts(trials, fleet.hosts, _wanted(asked, fleet))
    if junit is not None:
        from ollamaops.report.junit import verdicts_to_junit

        write_file(junit, verdicts_to_junit(hosts))
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_verdicts(hosts, color=color, width=width),
            "json": lambda: verdicts_to_json(hosts),
        },
    )
    return _exit_code(hosts)


def _tell(host: str, model: ModelName) -> None:
    """On stderr, because loading a model can take minutes."""
    click.echo(f"{model} on {host}: asking", err=True)


def _wanted(shared: Shared, fleet: Fleet) -> Mapping[str, Sequence[ModelSpec]]:
    """Host → its models with expectations, as far as they were asked for."""
    from ollamaops.cli.context import targets_of
    from ollamaops.manifest.hosts import models_on

    targets = targets_of(shared, fleet.manifest, fleet.hosts)
    wanted = {
        host.name: [
            model
            for model in models_on(host, fleet.manifest)
            if model.expect and (not targets or any(target.matches(model.name) for target in targets))
        ]
        for host in fleet.hosts
    }
    if targets and not any(wanted.values()) and not shared.allow_no_match:
        raise UsageError(
            "nothing to test: none of these models has expectations", hint="say in expect: what they must do"
        )
    return wanted


def _exit_code(hosts: Sequence[HostVerdicts]) -> int:
    return exits.worst(
        exits.DONE,
        exits.UNEXPECTED
        if any(not verdict.is_met for host in hosts for verdict in host.verdicts)
        else exits.DONE,
        exits.PARTIAL if any(host.unreached for host in hosts) else exits.DONE,
    )
