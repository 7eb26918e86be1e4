"""`ollamaops verify`: do all declared models have their weights, load, answer, and do what the manifest expects?"""

from __future__ import annotations

import click
from msgspec.structs import replace

from ollamaops.changes import verify_targets
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import color_and_width, emit, write_file
from ollamaops.cli.trust import require_trusted
from ollamaops.names import ModelName
from ollamaops.observe.verify import Depth
from ollamaops.observe.verify_files import NOT_PROVEN
from ollamaops.plan.results import code_of_verdicts
from ollamaops.report.junit import verdicts_to_junit
from ollamaops.report.verify_text import render_verdicts, verdicts_to_json


@command_with_shared(
    name="verify",
    epilog="\b\nExamples:\n  ollamaops verify\n  ollamaops verify --deep --host 'gpu-*'\n"
    "  ollamaops verify support-bot -o json\n  ollamaops test --junit report.xml     the same by its former name",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--deep",
    is_flag=True,
    help="Also compare the texts of pulled models with the digests of their layers, and say what cannot be proven.",
)
@click.option("--junit", metavar="FILE", help="Also write a JUnit report.")
def command(shared: Shared, models: tuple[str, ...], deep: bool, junit: str | None) -> int:
    """Check every declared model: its weights are on the host, it loads, answers, and meets its `expect:`.

    Changes nothing, trusts no memory, and loads one model after the other on each host. MODEL is a name or a glob.
    Exit 0 when all is well, 5 when a model failed, 3 when a host could not be reached or a model gave no answer to
    judge, 1 when no host could be reached.
    """
    require_trusted(shared)
    asked = replace(shared, targets=(*shared.targets, *models))
    with open_engine(asked) as engine:
        is_silent = shared.quiet or shared.progress == "none"
        depth: Depth = "deep" if deep else "answers"
        hosts = verify_targets(engine, None if is_silent else tell_asking, depth=depth)
    if junit is not None:
        write_file(junit, verdicts_to_junit(hosts))
    color, width = color_and_width(shared)
    not_proven = NOT_PROVEN if deep else ()
    emit(
        shared,
        {
            "text": lambda: render_verdicts(hosts, color=color, width=width, not_proven=not_proven),
            "json": lambda: verdicts_to_json(hosts, not_proven=not_proven),
        },
    )
    return code_of_verdicts(hosts)


def tell_asking(host: str, model: ModelName) -> None:
    """On stderr, because loading a model can take minutes."""
    click.echo(f"{model} on {host}: asking", err=True)
