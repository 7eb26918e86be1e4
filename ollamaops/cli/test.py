"""`ollamaops test`: do the models meet what the manifest expects of them?"""

from __future__ import annotations

import click
from msgspec.structs import replace

from ollamaops.changes import verify_targets
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import color_and_width, emit, write_file
from ollamaops.cli.trust import require_trusted
from ollamaops.errors import UsageError
from ollamaops.names import ModelName
from ollamaops.plan.results import code_of_verdicts
from ollamaops.report.junit import verdicts_to_junit
from ollamaops.report.verify_text import render_verdicts, verdicts_to_json


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
    not be reached or a model gave no answer to judge, 1 when no host could be reached.
    """

    require_trusted(shared)
    asked = replace(shared, targets=(*shared.targets, *models))
    with open_engine(asked) as engine:
        has_any = any(
            model.expect and engine.is_meant(model.name) for task in engine.declared for model in task.models
        )
        if engine.targets and not has_any and not shared.allow_no_match:
            raise UsageError(
                "nothing to test: none of these models has expectations",
                hint="say in expect: what they must do",
            )
        is_silent = shared.quiet or shared.progress == "none"
        hosts = verify_targets(engine, None if is_silent else tell_asking)
    if junit is not None:
        write_file(junit, verdicts_to_junit(hosts))
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_verdicts(hosts, color=color, width=width),
            "json": lambda: verdicts_to_json(hosts),
        },
    )
    return code_of_verdicts(hosts)


def tell_asking(host: str, model: ModelName) -> None:
    """On stderr, because loading a model can take minutes."""
    click.echo(f"{model} on {host}: asking", err=True)
