"""The front door of the library: what other programs may rely on.

::

    from ollamaops import load_manifest, make_plan, apply_plan

    manifest = load_manifest(["ollamaops.yaml"])
    plan = make_plan(manifest, state_dir="state")
    report = apply_plan(plan, manifest, state_dir="state")

Names are imported when they are first used, so that `import ollamaops` costs nothing. Two functions are not
called `plan` and `apply`, because those are the names of rooms of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ollamaops.about import __version__ as __version__

if TYPE_CHECKING:
    from ollamaops.changes import apply_plan, prune, rollback, verify
    from ollamaops.engine import drift, make_plan
    from ollamaops.errors import OllamaopsError
    from ollamaops.manifest.load import load_manifest
    from ollamaops.manifest.types import Manifest
    from ollamaops.ollama.client import OllamaClient
    from ollamaops.plan.actions import Plan
    from ollamaops.plan.results import RunReport

_WHERE = {
    "Manifest": "ollamaops.manifest.types",
    "OllamaClient": "ollamaops.ollama.client",
    "OllamaopsError": "ollamaops.errors",
    "Plan": "ollamaops.plan.actions",
    "RunReport": "ollamaops.plan.results",
    "apply_plan": "ollamaops.changes",
    "drift": "ollamaops.engine",
    "load_manifest": "ollamaops.manifest.load",
    "make_plan": "ollamaops.engine",
    "prune": "ollamaops.changes",
    "rollback": "ollamaops.changes",
    "verify": "ollamaops.changes",
}

__all__ = [
    "Manifest",
    "OllamaClient",
    "OllamaopsError",
    "Plan",
    "RunReport",
    "apply_plan",
    "drift",
    "load_manifest",
    "make_plan",
    "prune",
    "rollback",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'ollamaops' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
