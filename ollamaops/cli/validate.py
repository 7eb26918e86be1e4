"""`ollamaops validate`: every problem of every file, without touching a server."""

from __future__ import annotations

import sys

from ollamaops import exits
from ollamaops.cli.context import load
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import emit, write
from ollamaops.errors import ManifestError
from ollamaops.report.problem_text import problems_to_json, render_problems
from ollamaops.report.words import plural


@command_with_shared(
    name="validate",
    epilog="\b\nExamples:\n  ollamaops validate\n  ollamaops validate -f models/ -e staging -o json",
)
def command(shared: Shared) -> int:
    """Check manifests and Modelfiles; touches no server.

    Prints every problem with file, line and column. Exit 0 when there is none, 65 otherwise.
    """

    try:
        manifest = load(shared, asks_hosts=False)
    except ManifestError as error:
        if shared.output != "json":
            raise
        problems = problems_to_json(error.problems)
        emit(shared, {"json": lambda: {"valid": False, "problems": problems}})
        return exits.INVALID
    if shared.output == "json":
        warnings = problems_to_json(manifest.warnings)
        emit(shared, {"json": lambda: {"valid": True, "warnings": warnings}})
        return exits.DONE
    if manifest.warnings:
        sys.stderr.write(render_problems(manifest.warnings, level="warning"))
    if not shared.quiet:
        models, hosts = len(manifest.models) + len(manifest.absent), len(manifest.hosts)
        counts = f"{plural(models, 'model')} for {plural(hosts, 'host')}"
        write(f"valid: {counts} in {', '.join(manifest.files)}")
    return exits.DONE
