"""Pretend servers for one command: `--sandbox`, and where their models and what is remembered of them lie.

By default that is a folder of the user's own, one for each current folder: a checkout is somebody's input, and could
have prepared what we write to and delete in.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace
from platformdirs import user_cache_path

from ollamaops.errors import UsageError
from ollamaops.files.output import inside_its_folder
from ollamaops.manifest.disk import reason_of
from ollamaops.manifest.types import HostSpec, Tls

SERVED, _STATE = ".served", ".state"  # no host's name begins with a dot


def default_sandbox() -> Path:
    """The user's own folder for the pretend servers of the current folder."""
    here = Path(os.path.realpath("."))
    key = hashlib.sha256(os.fsencode(here)).hexdigest()[:16]
    return user_cache_path("ollamaops") / "sandbox" / f"{here.name}-{key}"


def state_of(sandbox: str) -> Path:
    """Where the runs on pretend servers are remembered: beside their models."""
    return inside_its_folder(Path(sandbox) / _STATE)


def in_sandboxes(
    stack: ExitStack, store: Path, hosts: Sequence[HostSpec], endpoints: dict[str, str]
) -> tuple[HostSpec, ...]:
    """The same hosts, each replaced by a pretend server with a store of its own. UsageError."""
    try:
        from ollamaops.sandbox.server import Sandbox
    except ImportError as error:
        raise UsageError(
            f"--sandbox needs {error.name}, which is not installed", hint="pip install 'ollamaops[sandbox]'"
        ) from error
    replaced = []
    for host in hosts:
        named = store / re.sub(r"[^A-Za-z0-9_.-]", "_", host.name)
        folder = inside_its_folder(named)
        try:
            running = stack.enter_context(Sandbox(store=folder, registry=True))
        except OSError as error:
            raise UsageError(
                f"--sandbox: no pretend server can be run in {named}: {reason_of(error)}",
                hint="name a new folder, or one that it has made: --sandbox=DIR",
            ) from error
        endpoints.setdefault("registry.ollama.ai", running.url)
        identity = f"sandbox:{folder.resolve()}"
        replaced.append(
            replace(host, url=running.url, auth=None, headers={}, tls=Tls(), proxy=None, identity=identity)
        )
    return tuple(replaced)
