"""What is known of where a host's models came from: what `import` asks beside the host itself.

Decides whom to ask: memory first, and a registry only about names that share their content with others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ollamaops.errors import StateError
from ollamaops.observe.host import Eyes, load_memory
from ollamaops.plan.importing import names_in_doubt
from ollamaops.plan.observed import ObservedHost


def with_origins(eyes: Eyes, observed: ObservedHost, *, ask_registry: bool) -> ObservedHost:
    """`observed` with what we remember, and what registries have for the names that are still in doubt.

    A registry that does not answer is no error, nor is a ledger that cannot be read. RemoteError, Cancelled.
    """
    with suppress(StateError):
        observed = replace(observed, memory=load_memory(eyes))
    if not ask_registry:
        return observed
    return replace(observed, upstream=eyes.registries.ask(dict.fromkeys(names_in_doubt(observed), False)))
