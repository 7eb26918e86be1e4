"""`ollamaops sandbox serve`: a pretend Ollama server on its own."""

from __future__ import annotations

from pathlib import Path

import click

from ollamaops import exits
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.sandboxes import SERVED, default_sandbox
from ollamaops.errors import UsageError
from ollamaops.files.output import inside_its_folder
from ollamaops.manifest.disk import reason_of
from ollamaops.ollama.features import ServerVersion
from ollamaops.sandbox.fault_script import FaultScript, load_faults


@click.group(name="sandbox", epilog="\b\nExamples:\n  ollamaops sandbox serve --port 11435")
def command() -> None:
    """Run a pretend Ollama server: to try manifests, for CI without GPUs, to inject faults.

    Its models are tiny and say nothing sensible; everything else behaves like a real server.
    """


@command_with_shared(
    name="serve",
    formats=("text",),
    epilog="\b\nExamples:\n  ollamaops sandbox serve --port 11435\n"
    "  ollamaops sandbox serve --as-version 0.5.7 --faults faults.yaml\n"
    "  OLLAMA_HOST=127.0.0.1:11435 ollamaops apply",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=11435,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--store",
    metavar="DIR",
    help="Folder for its models (one in your user cache for each current folder).",
)
@click.option(
    "--as-version",
    metavar="V",
    help="Behave like this version of Ollama (default: the newest). 0.3.4, 0.5.7, 0.6.8, 0.12.11, 0.32.15 and "
    "0.33.0-rc2 were recorded; versions in between follow from them.",
)
@click.option(
    "--variant",
    type=click.Choice(["tomorrow", "minimal", "minimal-501"]),
    help="tomorrow: what is announced for Ollama (several rows of one name in /api/tags, lists of manifests in the "
    "registry, fields and status lines that nobody knows yet, no quantization of GGUF). minimal: an "
    "Ollama-compatible server without create, copy and blobs (404). minimal-501: the same, answering 501.",
)
@click.option("--faults", metavar="FILE", help="Inject the faults described in this YAML file.")
def serve(
    shared: Shared,
    port: int,
    bind: str,
    store: str | None,
    as_version: str | None,
    variant: str | None,
    faults: str | None,
) -> int:
    """Serve until Ctrl-C."""
    try:
        from ollamaops.sandbox.behavior import NEWEST, as_variant, behavior_for
        from ollamaops.sandbox.fault_injection import with_faults
        from ollamaops.sandbox.server import run_forever
    except ImportError as error:
        raise UsageError(
            f"the sandbox needs {error.name}, which is not installed", hint="pip install 'ollamaops[sandbox]'"
        ) from error
    wrap = with_faults(_load(faults)) if faults else None
    version = as_version or NEWEST
    if not ServerVersion.parse(version).is_known:
        raise UsageError(f"--as-version: '{version}' is no version of Ollama", hint="such as 0.12.11")
    behavior = as_variant(behavior_for(version), variant) if variant else None
    folder = inside_its_folder(Path(store)) if store else default_sandbox() / SERVED
    try:
        run_forever(bind, port, folder, version, wrap, behavior)
    except OSError as error:
        if error.filename:
            raise UsageError(
                f"--store: cannot keep models in {store or folder}: {reason_of(error)}",
                hint="choose another --store",
            ) from error
        raise UsageError(
            f"cannot serve on {bind}:{port}: {error.strerror}",
            hint="choose another --port, 0 for any free one",
        ) from error
    return exits.DONE


def _load(path: str) -> FaultScript:
    try:
        return load_faults(Path(path))
    except OSError as error:
        raise UsageError(f"--faults: cannot read {path}: {reason_of(error)}") from error


command.add_command(serve)
