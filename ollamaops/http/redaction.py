"""Taking our secrets out of what others say: a server, or a proxy before it, may send back what it was sent.

An echo need not be literal, so the forms in which JSON, HTML and URLs write a value are hidden as well. A short value
is hidden as a whole word only, or the header `X-Team: a` would leave no word readable.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

BLOT = "***"
_SHORT = 8  # characters


class Redaction:
    """Hides `secrets` in texts. Its own `repr` shows none."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret.strip() for form in _forms_of(secret.strip())}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(_pattern_of, longest_first))) if forms else None

    def __repr__(self) -> str:
        return f"Redaction({'none' if self._pattern is None else BLOT})"

    def hide(self, text: str) -> str:
        """The text with `***` in place of every secret."""
        return text if self._pattern is None else self._pattern.sub(BLOT, text)

    def hide_in(self, value: object) -> object:
        """A JSON value with every secret hidden in its texts, keys left as they are."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {key: self.hide_in(inner) for key, inner in value.items()}
        return [self.hide_in(inner) for inner in value] if isinstance(value, list) else value


def secrets_of_headers(headers: Mapping[str, str]) -> Iterator[str]:
    """Every value, and what it is made of: the token after `Bearer`, user and password behind `Basic` (RFC 7617)."""
    for value in headers.values():
        yield value
        scheme, _, credentials = value.partition(" ")
        if credentials and scheme.lower() in ("bearer", "basic", "token"):
            yield credentials
        if credentials and scheme.lower() == "basic":
            yield from _secrets_of_basic(credentials)


def secrets_of_proxy(url: str) -> Iterator[str]:
    """User and password in the URL of a proxy, as written and as they are sent."""
    user_info, separator, _ = urlsplit(url).netloc.rpartition("@")
    if separator:
        yield user_info
        plain = unquote(user_info)
        yield from secrets_of_headers({"": "Basic " + base64.b64encode(plain.encode()).decode()})


def _secrets_of_basic(credentials: str) -> Iterator[str]:
    try:
        pair = base64.b64decode(credentials, validate=True).decode()
    except ValueError:
        return
    yield pair
    yield pair.partition(":")[2]


def _forms_of(secret: str) -> set[str]:
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return {secret, *escaped, html.escape(secret), quote(secret, safe=""), quote(secret), quote_plus(secret)}


def _pattern_of(form: str) -> str:
    return re.escape(form) if len(form) >= _SHORT else rf"(?<!\w){re.escape(form)}(?!\w)"
