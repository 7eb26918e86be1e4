"""Whether a model can be opened, and what is in it: an answer of `/api/show` → Contents or Unreadable.

A server that cannot show a model may just be too old for it (a pull does not parse templates, show does:
ollama#11706), so a model counts as damaged only if the server says so in known words. A successful pull or create
proves nothing, because servers look into the weights only when they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ollamaops.errors import AnswerError, ProtocolError
from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents, Unreadable, contents_of
from ollamaops.ollama.features import Features
from ollamaops.ollama.wire import ShownModel

# weights gone: 404; damaged or not understood: 500; a name that this version cannot address: 400, or refused by our
# own client (0)
_CANNOT_BE_OPENED: Final = frozenset({0, 400, 404, 500})

# what Go says of a file that has gone, is cut short, or is not what it should be; not of one that it may not open
_GONE: Final = re.compile(r"no such file or directory|the system cannot find", re.IGNORECASE)
_DAMAGE: Final = re.compile(
    r"invalid file magic"
    r"|(?:^|[^\"]: |^unexpected |[^\"]: unexpected )EOF$"
    r"|[\\/](?:blobs|manifests)[\\/].*(?:no such file or directory|the system cannot find)"
    r"|^invalid character .* looking for beginning of value$"
    r"|^unexpected end of JSON input$",
    re.IGNORECASE,
)
_OF_A_TEMPLATE: Final = re.compile(r"^template\b", re.IGNORECASE)


REPAIR_HINT: Final = (
    "ollamaops apply --repair brings it back, and deletes all that shares a broken file for it"
)


def read_contents(show: Callable[[], ShownModel], digest: str, features: Features) -> Contents | Unreadable:
    """What `show` finds in the model whose tags digest is `digest`, or why it cannot be opened.

    RemoteError for everything that says nothing about the model: no connection, a proxy in between, no permission.
    """
    try:
        return contents_of(show(), digest, features)
    except AnswerError as error:
        if error.status not in _CANNOT_BE_OPENED:
            raise
        return Unreadable(_words_of(error), is_damaged=is_damage(error), is_gone=_is_gone(error))


def look_into(show: Callable[[], ShownModel], digest: str, features: Features) -> Contents | None:
    """As `read_contents`; None when the model cannot be opened, for whatever reason."""
    found = read_contents(show, digest, features)
    return None if isinstance(found, Unreadable) else found


def is_damage(error: AnswerError) -> bool:
    """Whether the server says that a file of a model is gone or broken."""
    if error.status == 404:
        return True
    return not _OF_A_TEMPLATE.match(error.text) and _DAMAGE.search(error.text) is not None


def _is_gone(error: AnswerError) -> bool:
    """Whether a file is missing, so that fetching it mends the model; a broken one has to be removed first."""
    return error.status == 404 or _GONE.search(error.text) is not None


def _words_of(error: AnswerError) -> str:
    return error.text or (f"HTTP {error.status}" if error.status else str(error))


def short_digest(digest: str | None) -> str:
    """The first 12 digits, or that the model is not there."""
    return digest[:12] if digest else "not there"


def build_damaged_error(host: str, model: ModelName, hint: str) -> ProtocolError:
    """The error for a model whose files are broken."""
    return ProtocolError(
        f"{host}: '{model}' cannot be opened: its weights on the host are damaged", host=host, hint=hint
    )


def build_unreadable_error(
    host: str, model: ModelName, flaw: Unreadable, features: Features
) -> ProtocolError:
    """The error for a model that the server does not understand, in its words: nothing is removed for that."""
    return ProtocolError(
        f"{host}: '{model}' cannot be opened: {flaw.words}",
        host=host,
        hint=f"it is kept as it is; it may need a newer Ollama than {features.version}: upgrade this host",
    )
