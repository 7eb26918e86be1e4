"""`ollamaops init`: a first manifest to start from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ollamaops import exits
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import write
from ollamaops.errors import UsageError
from ollamaops.files.output import write_output
from ollamaops.manifest.schema import manifest_schema

MANIFEST = """\
# yaml-language-server: $schema=./ollamaops.schema.json
# What your Ollama servers should have. See `ollamaops plan`, then `ollamaops apply`.
version: 1

# hosts:                      # none given: OLLAMA_HOST, else http://127.0.0.1:11434
#   gpu-1: {url: "http://gpu-1.lan:11434", labels: {vram: 24GiB}}

models:
  - llama3.2:3b               # pulled when it is missing

  - name: assistant           # derived from it, with your own words
    from: llama3.2:3b
    system: You are a helpful assistant. Answer in one paragraph.
    parameters: {temperature: 0.3, num_ctx: 8192}
"""


@command_with_shared(
    name="init",
    formats=("text",),
    epilog="\b\nExamples:\n  ollamaops init\n  ollamaops init models/\n  ollamaops plan --sandbox",
)
@click.argument("folder", default=".", metavar="[FOLDER]")
def command(shared: Shared, folder: str) -> int:
    """Write a first manifest, ollamaops.yaml, and its schema into FOLDER. Never overwrites a manifest."""

    target = Path(folder) / "ollamaops.yaml"
    if os.path.lexists(target):
        raise UsageError(f"{target} is already there", hint="edit it, or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_output(target, MANIFEST, is_new=True)
        schema = json.dumps(manifest_schema(), indent=2, ensure_ascii=False)
        write_output(target.parent / "ollamaops.schema.json", schema + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    if not shared.quiet:
        write(f"wrote {target} and ollamaops.schema.json beside it\nnext: ollamaops plan --sandbox")
    return exits.DONE
