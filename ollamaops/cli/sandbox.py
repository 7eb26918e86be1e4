"""`ollamaops sandbox serve`: a pretend Ollama server on its own."""

from __future__ import annotations

from pathlib import Path

import click

from ollamaops.cli import exits
from ollamaops.cli.options import DEFAULT_SANDBOX, Shared, command_with_shared
from ollamaops.errors import UsageError


@click.group(name="sandbox")
def command() -> None:
    """Run a pretend Ollama server: for trying manifests, for CI without GPUs, for provoking faults.

    Its models are tiny and say nothing sensible; everything else behaves like a real server.
    """


@command_with_shared(
    name="serve",
    epilog="\b\nExamples:\n  ollamaops sandbox serve --port 11435\n"
    "  ollamaops sandbox serve --as-version 0.5.7 --faults faults.yaml\n"
    "  OLLAMA_HOST=127.0.0.1:11435 ollamaops apply",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=11435, show_default=True, help="0 takes a free one."
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--store", default=DEFAULT_SANDBOX, show_default=True, metavar="DIR", help="Where its models live."
)
@click.option(
    "--as-version", metavar="V", help="Pretend to be this version: 0.3.4, 0.5.7, 0.12.11 … (the newest)."
)
@click.option("--faults", metavar="FILE", help="YAML script of faults to inject.")
def serve(
    shared: Shared, port: int, bind: str, store: str, as_version: str | None, faults: str | None
) -> int:
    """Serve until Ctrl-C."""
    try:
        from ollamaops.sandbox.behaviour import NEWEST
        from ollamaops.sandbox.fault_injection import with_faults
        from ollamaops.sandbox.faults import load_faults
        from ollamaops.sandbox.server import run_forever
    except ImportError as error:
        raise UsageError(
            f"the sandbox needs {error.name}, which is not installed", hint="pip install 'ollamaops[sandbox]'"
        ) from error
    wrap = with_faults(load_faults(Path(faults))) if faults else None
    try:
        run_forever(bind, port, Path(store), as_version or NEWEST, wrap)
    except OSError as error:
        raise UsageError(
            f"cannot serve on {bind}:{port}: {error.strerror}",
            hint="choose another --port, 0 for any free one",
        ) from error
    return exits.DONE


command.add_command(serve)
