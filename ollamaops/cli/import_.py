"""`ollamaops import`: a manifest from a live server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ollamaops.cli import exits
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.errors import UsageError

if TYPE_CHECKING:
    from ollamaops.manifest.types import Manifest


@command_with_shared(
    name="import",
    epilog="\b\nExamples:\n  ollamaops import > ollamaops.yaml\n"
    "  ollamaops import http://gpu-1.lan:11434 --out gpu-1.yaml",
)
@click.argument("url", required=False, metavar="[URL]")
@click.option("--out", metavar="FILE", help="Write to FILE instead of stdout; never overwrites.")
def command(shared: Shared, url: str | None, out: str | None) -> int:
    """Write a manifest from a live server. Planning with it on that server finds nothing to do.

    The server is URL, or the host of the manifest given with -f, or OLLAMA_HOST. Writes to no server.
    """
    from ollamaops.apply.observe import look_at_all
    from ollamaops.cli.context import open_scene
    from ollamaops.cli.printing import write
    from ollamaops.plan.importing import import_host
    from ollamaops.report.manifest_text import render_manifest

    if out and Path(out).exists():
        raise UsageError(f"{out} is already there", hint="choose another file")
    with open_scene(shared, manifest=_hosts_only(shared, url)) as scene:
        if len(scene.cases) != 1:
            names = ", ".join(case.spec.name for case in scene.cases)
            raise UsageError(
                f"import reads one host, not {len(scene.cases)}: {names}", hint="choose it with --host"
            )
        spec = scene.cases[0].spec
        with scene.around.open_client(spec) as client:
            observed = look_at_all(client, spec, scene.around.cancel)
        text = render_manifest(import_host(observed), host=spec.name, url=spec.url, version=observed.version)
    if out is None:
        write(text)
        return exits.DONE
    try:
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return exits.DONE


def _hosts_only(shared: Shared, url: str | None) -> Manifest:
    """A manifest that declares nothing: for the host at URL, of the files given with -f, or of OLLAMA_HOST."""
    import os

    from ollamaops.cli.context import load
    from ollamaops.manifest.hosts import LOCAL_HOST, parse_ollama_host
    from ollamaops.manifest.types import HostSpec, Manifest

    if shared.files and url is None:
        return replace(load(shared), models=(), absent=(), warnings=())
    address = parse_ollama_host(url or os.environ.get("OLLAMA_HOST", ""))
    host = HostSpec(name=LOCAL_HOST, url=address)
    return Manifest(root=Path(), files=(), hosts=(host,), models=())
