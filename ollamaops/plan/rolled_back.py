"""What a rollback holds: the model stays at its previous version until its entry in the manifest changes.

The fact a reader would miss: a hold is a fact of the ledger about one content, so it is void as soon as the host has
another one, whoever has seen to that.
"""

from __future__ import annotations

import hashlib

from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.observed import ObservedHost


def hold_of(model: DesiredModel) -> str:
    """What a rollback is remembered under: it holds as long as the entry says the same of content and updates."""
    spec = model.spec
    words = [model.fingerprint, str(spec.digest or ""), spec.update, *sorted(spec.accepts)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def is_held(model: DesiredModel, observed: ObservedHost) -> bool:
    """Whether the model was rolled back to what it is now, and its entry has not changed since."""
    own, memory = observed.models.get(model.name), observed.memory.get(model.name)
    if own is None or memory is None or memory.how != "held":
        return False
    return memory.digest == own.digest and memory.fingerprint == hold_of(model)
