"""What is legal in a manifest but surely not meant: values that no host can have, or not yet.

Decides what is worth a warning; nothing here is ever refused. The fact a reader would miss: a newer server may know
more than this list of capabilities, which is why an unknown one is no error.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollamaops.manifest.hosts import is_size, labels_of
from ollamaops.manifest.problems import Findings, did_you_mean
from ollamaops.manifest.types import HostSpec, ModelSpec

# types/model/capability.go of Ollama 0.33
CAPABILITIES = frozenset(
    ("completion", "tools", "insert", "vision", "embedding", "thinking", "image", "audio")
)
_ORDERING = frozenset((">", ">=", "<", "<="))


def warn_of_labels(models: Sequence[ModelSpec], hosts: Sequence[HostSpec], warnings: Findings) -> None:
    """A label that is no size never meets `vram>=24GiB`."""
    asked = {
        condition.key
        for model in models
        for condition in model.where
        if condition.operator in _ORDERING and is_size(condition.values[0])
    }
    for host in hosts:
        for key in sorted(asked & labels_of(host).keys()):
            if not is_size(labels_of(host)[key]):
                message = f"label '{key}' of host '{host.name}' is no number or size, but where: compares it with one"
                warnings.add(host.place, message, "write it like 24GiB")


def warn_of_capabilities(models: Sequence[ModelSpec], warnings: Findings) -> None:
    """A capability that no server up to 0.33 lists."""
    for model in models:
        for expectation in model.expect:
            listed = expectation.get("capabilities")
            for name in listed if isinstance(listed, list) else ():
                if name not in CAPABILITIES:
                    message = f"expect: no Ollama up to 0.33 lists the capability '{name}'"
                    warnings.add(model.place, message + did_you_mean(str(name), CAPABILITIES))
