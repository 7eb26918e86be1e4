"""Where the facts about a host are kept: in the ledger of the state folder, or on the host itself.

Decides which store a look at a host uses; leaves the stores to state/. The fact a reader would miss: a store on a
host may only be written to by a run that has the host's lock (holding.py); to everybody else it is read-only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ollamaops.errors import InvalidName, StateError
from ollamaops.names import ModelName
from ollamaops.observe.run import HostCase, Surroundings
from ollamaops.ollama.client import OllamaClient
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import LedgerStore

if TYPE_CHECKING:
    from ollamaops.state.server_ledger import ServerLedger

RUNS_TO_ASK = 20


def facts_of(case: HostCase, client: OllamaClient, around: Surroundings) -> LedgerStore:
    """The store of what is remembered of the case's host."""
    if case.state == "local":
        return around.ledger
    return around.held.get(case.spec.name) or server_ledger(client, around, writing=False)


def recall_evictions(ledger: Ledger, host: str) -> Mapping[ModelName, frozenset[ModelName]]:
    """Models that did not stay in memory after the last run on that host (by name) had loaded them, each with what
    was declared resident beside it. The history in the state folder knows; without it nothing was."""
    with suppress(StateError, ValueError, AttributeError, TypeError, InvalidName):
        for run in ledger.runs(RUNS_TO_ASK):
            found = json.loads(run.hosts).get(host, {}).get("evicted")
            if found is not None:
                parse = ModelName.parse
                return {parse(name): frozenset(map(parse, beside)) for name, beside in found.items()}
    return {}


def server_ledger(client: OllamaClient, around: Surroundings, *, writing: bool) -> ServerLedger:
    """The ledger on the client's host."""
    from ollamaops.observe.ledger_model import LedgerModel
    from ollamaops.state.server_ledger import ServerLedger

    return ServerLedger(LedgerModel(client), writing=writing, now=around.moment, pause=around.cancel.wait)
