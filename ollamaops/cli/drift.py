"""`ollamaops drift`: is everything as declared?"""

from __future__ import annotations

import click

from ollamaops.cli.context import open_engine
from ollamaops.cli.options import FORMATS, Shared, command_with_shared
from ollamaops.cli.printing import write_file
from ollamaops.cli.showing import show_plan
from ollamaops.plan.results import code_of_drift
from ollamaops.report.junit import drift_to_junit


@command_with_shared(
    name="drift",
    formats=FORMATS,
    epilog="\b\nExamples:\n  ollamaops drift --junit report.xml\n"
    "  ollamaops drift -o json   # from cron: exit 2 when something differs",
)
@click.option(
    "--prune",
    is_flag=False,
    flag_value="",
    metavar="[SCOPE]",
    help="Count undeclared models as drift: --prune=owned for those that ollamaops made or pulled, "
    "--prune=GLOB,… by name.",
)
@click.option(
    "--no-prune", is_flag=True, help="Do not count undeclared models as drift, whatever the policy says."
)
@click.option(
    "--verify-weights", is_flag=True, help="Count weights as drift if only their header could be compared."
)
@click.option("--junit", metavar="FILE", help="Also write a JUnit report: one test case per model and host.")
def command(
    shared: Shared, prune: str | None, no_prune: bool, verify_weights: bool, junit: str | None
) -> int:
    """Tell whether the servers are as declared. Writes to no server.

    Exit 0 when they are, 2 when something differs, 3 when a host could not be reached.
    """
    with open_engine(shared, prune="none" if no_prune else prune, verify_weights=verify_weights) as engine:
        plan = engine.drift()
    if junit is not None:
        write_file(junit, drift_to_junit(plan))
    show_plan(shared, plan)
    return code_of_drift(plan)
