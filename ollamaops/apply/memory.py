"""Where the facts about a host are kept: in the ledger of the state folder, or on the host itself.

Decides which store a look at a host uses; leaves the stores to state/. The fact a reader would miss: a store on a
host may only be written to by a run that has the host's lock (holding.py); to everybody else it is read-only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ollamaops.apply.case import HostCase, Surroundings
from ollamaops.ollama.client import OllamaClient
from ollamaops.state.facts import FactStore

if TYPE_CHECKING:
    from ollamaops.state.server_ledger import ServerLedger


def facts_of(case: HostCase, client: OllamaClient, around: Surroundings) -> FactStore:
    """The store of what is remembered of the case's host."""
    if case.state == "local":
        return around.ledger
    return around.held.get(case.spec.name) or server_ledger(client, around, writing=False)


def server_ledger(client: OllamaClient, around: Surroundings, *, writing: bool) -> ServerLedger:
    """The ledger on the client's host."""
    from ollamaops.apply.server_shelf import ServerShelf
    from ollamaops.state.server_ledger import ServerLedger

    return ServerLedger(ServerShelf(client), writing=writing, now=around.moment, pause=around.cancel.wait)
