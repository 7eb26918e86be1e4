"""`ollamaops version`: which program, which servers."""

from __future__ import annotations

import platform

import click

from ollamaops import exits
from ollamaops.about import __version__
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import emit
from ollamaops.errors import RemoteError


@command_with_shared(
    name="version", epilog="\b\nExamples:\n  ollamaops version\n  ollamaops version --servers -o json"
)
@click.option("--servers", is_flag=True, help="Also ask the hosts of the manifest.")
def command(shared: Shared, servers: bool) -> int:
    """Show the version of ollamaops, and with --servers that of every host."""

    own = {"ollamaops": __version__, "python": platform.python_version()}
    found = _ask_hosts(shared) if servers else {}
    lines = [
        f"ollamaops {own['ollamaops']} (Python {own['python']})",
        *(f"{n}: {v}" for n, v in found.items()),
    ]
    emit(
        shared,
        {"text": lambda: "\n".join(lines), "json": lambda: {**own, **({"hosts": found} if servers else {})}},
    )
    return exits.PARTIAL if any(text.startswith("not reached") for text in found.values()) else exits.DONE


def _ask_hosts(shared: Shared) -> dict[str, str]:

    found: dict[str, str] = {}
    with open_engine(shared) as engine:
        for host in engine.hosts:
            try:
                found[host.name] = f"Ollama {engine.version_of(host)}"
            except RemoteError as error:
                found[host.name] = f"not reached: {error}"
    return found
