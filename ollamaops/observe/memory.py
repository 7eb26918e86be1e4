"""Where the records about a host are kept: in the ledger of the state folder, or on the host itself.

Only a run that has the host's lock (apply/locks.py) may write to a ledger on a host; for all others it is read-only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollamaops.errors import StateError
from ollamaops.names import ModelName
from ollamaops.observe.run import HostCase, Surroundings
from ollamaops.ollama.client import OllamaClient
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import LedgerStore

if TYPE_CHECKING:
    from ollamaops.state.server_ledger import ServerLedger


def ledger_of(case: HostCase, client: OllamaClient, around: Surroundings) -> LedgerStore:
    """The ledger that knows the case's host."""
    if case.state == "local":
        return around.ledger
    return around.held.get(case.spec.name) or server_ledger(client, around, writing=False)


def load_evictions(ledger: Ledger, host: str) -> Mapping[ModelName, frozenset[ModelName]]:
    """As the ledger's own. When it cannot be used, nothing is known: a host that keeps its ledger itself goes on."""
    try:
        return ledger.load_evictions(host)
    except StateError:
        return {}


def server_ledger(client: OllamaClient, around: Surroundings, *, writing: bool) -> ServerLedger:
    """The ledger on the client's host."""
    from ollamaops.observe.ledger_model import LedgerModel
    from ollamaops.state.server_ledger import ServerLedger

    return ServerLedger(LedgerModel(client), writing=writing, now=around.moment, pause=around.cancel.wait)
