"""What came back, and what its head means: which error a status is, and how long Retry-After asks to wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from msgspec import Struct

from ollamaops.errors import AccessDenied, AnswerError, InvalidRequest, NotFound, ServerFault, TooManyRequests

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_KINDS: Final[Mapping[int, type[AnswerError]]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    408: ServerFault,  # the server waited for the request in vain (RFC 9110 §15.5.9)
    425: ServerFault,  # too early (RFC 8470)
    429: TooManyRequests,
    499: ServerFault,  # nginx: the client went away, as a proxy between us and the server does
}


class Answer(Struct, frozen=True):
    """A complete answer. `url` is where it came from after redirects; the `body` of an error is only its start."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


def error_kind(status: int) -> type[AnswerError]:
    """The class of error that an HTTP status outside 2xx is, when nothing but the status is known."""
    return _KINDS.get(status) or (InvalidRequest if 300 <= status < 500 else ServerFault)


def parse_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds that Retry-After asks to wait (RFC 9110 §10.2.3: seconds or a date); None if unreadable."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
