"""`ollamaops import`: a manifest from a live server."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import click
from msgspec.structs import replace

from ollamaops import exits
from ollamaops.cli.context import load, open_engine
from ollamaops.cli.options import Shared, command_with_shared, read_option
from ollamaops.cli.printing import write
from ollamaops.errors import OllamaopsError, UsageError
from ollamaops.files.output import write_output
from ollamaops.manifest.hosts import LOCAL_HOST, parse_ollama_host
from ollamaops.manifest.load import load_manifest
from ollamaops.manifest.types import Build, HostSpec, Manifest, ModelSpec, Pull
from ollamaops.plan.importing import Imported, import_host
from ollamaops.report.manifest_text import render_manifest


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

    if out and os.path.lexists(out):
        raise UsageError(f"{out} is already there", hint="choose another file")
    with open_engine(shared, manifest=_hosts_only(shared, url)) as engine:
        if len(engine.hosts) != 1:
            names = ", ".join(host.name for host in engine.hosts)
            raise UsageError(
                f"import reads one host, not {len(engine.hosts)}: {names}", hint="choose it with --host"
            )
        observed = engine.observe_all(engine.hosts[0])
        declared = next(host for host in engine.manifest.hosts if host.name == engine.hosts[0].name)
        text = render_manifest(_readable(import_host(observed)), host=declared, version=observed.version)
    if out is None:
        write(text)
        return exits.DONE
    try:
        write_output(Path(out), text, is_new=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return exits.DONE


def _readable(imported: Imported) -> Imported:
    """The same, with what no manifest may say (a NUL in a text, an inherited system prompt that is cleared) left
    unsaid: such a model is only named."""

    specs = (
        spec if _reads_back(spec) else replace(spec, source=Pull(ref=spec.name)) for spec in imported.specs
    )
    return replace(imported, specs=tuple(specs))


def _reads_back(spec: ModelSpec) -> bool:
    """Whether the entry, written and loaded again, declares the same."""

    if isinstance(spec.source, Pull):
        return True
    try:
        text = render_manifest(Imported(specs=(spec,)), host=HostSpec(name="h", url="http://h"), version="0")
        (again,) = load_manifest(["-"], stdin=BytesIO(text.encode()), environ={}).models
    except (OllamaopsError, UnicodeEncodeError):
        return False
    sources = (
        replace(source, parameters=dict.fromkeys(source.parameters)) if isinstance(source, Build) else source
        for source in (spec.source, again.source)
    )
    return next(sources) == next(sources)


def _hosts_only(shared: Shared, url: str | None) -> Manifest:
    """A manifest that declares nothing: for the host at URL, of the files given with -f, or of OLLAMA_HOST."""

    if shared.files and url is None:
        return replace(load(shared), models=(), absent=(), warnings=())
    given = url or os.environ.get("OLLAMA_HOST", "")
    address = read_option("URL" if url else "OLLAMA_HOST", given, parse_ollama_host)
    host = HostSpec(name=LOCAL_HOST, url=address)
    return Manifest(root=Path(), files=(), hosts=(host,), models=())
