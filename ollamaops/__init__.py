"""The front door of the library: what other programs, and our own command line, may rely on.

::

    from ollamaops import load_manifest, make_plan, apply_plan

    manifest = load_manifest(["ollamaops.yaml"])
    plan = make_plan(manifest, state_dir="state")
    report = apply_plan(plan, manifest, state_dir="state")

Names are imported when they are first used, so that `import ollamaops` costs nothing. The two functions are not
called `plan` and `apply`, because those are the names of rooms of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ollamaops.about import __version__ as __version__

if TYPE_CHECKING:
    from ollamaops.errors import OllamaopsError
    from ollamaops.library import apply_plan, make_plan
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
    "apply_plan": "ollamaops.library",
    "load_manifest": "ollamaops.manifest.load",
    "make_plan": "ollamaops.library",
}

__all__ = [
    "Manifest",
    "OllamaClient",
    "OllamaopsError",
    "Plan",
    "RunReport",
    "apply_plan",
    "load_manifest",
    "make_plan",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'ollamaops' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
