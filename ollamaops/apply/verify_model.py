"""Opening a model that has just been pulled or made, and what is said when that does not work.

Decides nothing: contents.py knows damage from a server that is too old for the model. The fact a reader would miss:
a pull or create that succeeded proves nothing, because servers look into the weights only when they are shown.
"""

from __future__ import annotations

from functools import partial

from ollamaops.errors import ProtocolError
from ollamaops.observe.contents import Unreadable, examine
from ollamaops.observe.session import Seen, Workbench
from ollamaops.ollama.contents import Contents


def open_model(bench: Workbench, seen: Seen) -> Contents | Unreadable:
    """What is in the model, or why nobody can tell. RemoteError when the host does not say."""
    show = partial(bench.client.show, seen.name)
    return examine(partial(bench.patiently, show), seen.digest, bench.client.features())


def build_damaged_error(bench: Workbench, seen: Seen, hint: str) -> ProtocolError:
    """The error for a model whose files are broken."""
    return ProtocolError(
        f"{bench.spec.name}: '{seen.name}' cannot be opened: its weights on the host are damaged",
        host=bench.spec.name,
        hint=hint,
    )


def build_unreadable_error(bench: Workbench, seen: Seen, flaw: Unreadable) -> ProtocolError:
    """The error for a model that the server does not understand, in its words: nothing is removed for that."""
    version = bench.client.features().version
    return ProtocolError(
        f"{bench.spec.name}: '{seen.name}' cannot be opened: {flaw.words}",
        host=bench.spec.name,
        hint=f"it is kept as it is; it may need a newer Ollama than {version}: upgrade this host",
    )
