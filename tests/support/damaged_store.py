"""Damage to the store of a sandbox, as a full disk, a careless shell or an old backup does it.

`blob_of` gives the file of a layer; then do to it what is to be tried, while the sandbox serves::

    blob_of(host.sandbox, "bot").unlink()                              # the weights are gone
    cut(blob_of(host.sandbox, "bot"))                                  # … or cut off in their header
    cut(blob_of(host.sandbox, "bot"), keep=-1)                         # … or lack their last byte
    blob_of(host.sandbox, "bot", "system").write_text("be unkind")     # edited in place: every digest stays the same

Models that share a blob share the damage. `host.sandbox.restart(as_version="0.5.7")` goes on with the same store at
the same address as another version, and `one_address.py` puts several sandboxes behind one address.

How servers take it: a model whose weights are gone stays in tags, its show is a 404, HEAD of the blob too. One that
was cut off says `unexpected EOF` in show and create, or fails when it is loaded. A file that exists is never written
again, neither by a pull nor by an upload; a file that is missing is. From 0.23.2 on show answers from memory until
the manifest's digest changes or the server starts anew, so it notices nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ollamaops.sandbox.model_name import parse_name
from ollamaops.sandbox.server import Sandbox


def blob_of(sandbox: Sandbox, model: str, kind: str = "model") -> Path:
    """The file of a model's layer: `model` (the weights), `system`, `template`, `params` …, or of its `config`."""
    store = sandbox.store
    manifest = json.loads(store.read_manifest(parse_name(model)))
    layers = {layer["mediaType"].rpartition(".")[2]: layer for layer in manifest["layers"] or ()}
    return store.blob_path((layers | {"config": manifest["config"]})[kind]["digest"])


def cut(path: Path, keep: int = 64) -> None:
    """Leave only the first bytes of a file; a negative number is how many are lost."""
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
