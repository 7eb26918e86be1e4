"""`ollamaops import`: a manifest from a live server."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ollamaops.cli import exits
from ollamaops.cli.options import Shared, command_with_shared, read_option
from ollamaops.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from ollamaops.manifest.types import Manifest, ModelSpec
    from ollamaops.plan.importing import Imported


@command_with_shared(
    name="import",
    formats=("text",),
    epilog="\b\nExamples:\n  ollamaops import > ollamaops.yaml\n"
    "  ollamaops import http://gpu-1.lan:11434 --out gpu-1.yaml",
)
@click.argument("url", required=False, metavar="[URL]")
@click.option("--out", metavar="FILE", help="Write to FILE instead of stdout; never overwrites.")
def command(shared: Shared, url: str | None, out: str | None) -> int:
    """Write a manifest from a live server. Planning with it on that server finds nothing to do.

    The server is URL, or the host of the manifest given with -f, or OLLAMA_HOST. Writes to no server.
    """
    from ollamaops.cli.context import open_scene
    from ollamaops.cli.printing import write
    from ollamaops.observe.host import Eyes, look_at_all
    from ollamaops.observe.import_facts import with_origins
    from ollamaops.observe.memory import ledger_of
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
        case, around = scene.cases[0], scene.around
        with around.open_client(case.spec, around.cancel) as client:
            observed = look_at_all(client, case.spec, around.cancel)
            eyes = Eyes(
                spec=case.spec,
                client=client,
                cancel=around.cancel,
                ledger=ledger_of(case, client, around),
                registries=around.registries,
            )
            observed = with_origins(eyes, observed, ask_registry=case.options.ask_registry)
        declared = next(host for host in scene.manifest.hosts if host.name == case.spec.name)
        text = render_manifest(_readable(import_host(observed)), host=declared, version=observed.version)
    if out is None:
        write(text)
        return exits.DONE
    try:
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return exits.DONE


def _readable(imported: Imported) -> Imported:
    """The same, with what no manifest may say (a NUL in a text, an inherited system prompt that is cleared) left
    unsaid: such a model is only named."""
    from ollamaops.manifest.types import Pull

    specs = (
        spec if _reads_back(spec) else replace(spec, source=Pull(ref=spec.name)) for spec in imported.specs
    )
    return replace(imported, specs=tuple(specs))


def _reads_back(spec: ModelSpec) -> bool:
    """Whether the entry, written and loaded again, declares the same."""
    from ollamaops.manifest.load import load_manifest
    from ollamaops.manifest.types import Build, HostSpec, Pull
    from ollamaops.plan.importing import Imported
    from ollamaops.report.manifest_text import render_manifest

    if isinstance(spec.source, Pull):
        return True
    text = render_manifest(Imported(specs=(spec,)), host=HostSpec(name="h", url="http://h"), version="0")
    try:
        (again,) = load_manifest(["-"], stdin=BytesIO(text.encode()), environ={}).models
    except (ManifestError, UnicodeEncodeError):
        return False
    sources = (
        replace(source, parameters=dict.fromkeys(source.parameters)) if isinstance(source, Build) else source
        for source in (spec.source, again.source)
    )
    return next(sources) == next(sources)


def _hosts_only(shared: Shared, url: str | None) -> Manifest:
    """A manifest that declares nothing: for the host at URL, of the files given with -f, or of OLLAMA_HOST."""
    import os

    from ollamaops.cli.context import load
    from ollamaops.manifest.hosts import LOCAL_HOST, parse_ollama_host
    from ollamaops.manifest.types import HostSpec, Manifest

    if shared.files and url is None:
        return replace(load(shared), models=(), absent=(), warnings=())
    given = url or os.environ.get("OLLAMA_HOST", "")
    address = read_option("URL" if url else "OLLAMA_HOST", given, parse_ollama_host)
    host = HostSpec(name=LOCAL_HOST, url=address)
    return Manifest(root=Path(), files=(), hosts=(host,), models=())
