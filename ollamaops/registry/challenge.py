"""What a 401 asks for: the WWW-Authenticate header as values, and the URL that hands out a token.

Follows RFC 9110 §11.6.1 and the token protocol of the CNCF distribution registry. One header may carry several
challenges, and commas stand both between them and between their parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from msgspec import Struct

_GAP = re.compile(r"[\s,]*")
_PARAMETER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")
_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ESCAPED = re.compile(r"\\(.)")


class Challenge(Struct, frozen=True):
    """One way to authenticate that the server offers; `scheme` and the parameters' names are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges of a WWW-Authenticate header, in order; what cannot be read ends the list."""
    found: list[tuple[str, dict[str, str]]] = []
    place = _GAP.match(header, 0)
    while place is not None and place.end() < len(header):
        parameter = _PARAMETER.match(header, place.end())
        word = parameter or _SCHEME.match(header, place.end())
        if word is None or (parameter and not found):
            break
        if parameter:
            found[-1][1][parameter[1].lower()] = parameter[3] or _ESCAPED.sub(r"\1", parameter[2] or "")
        else:
            found.append((word[0].lower(), {}))
        place = _GAP.match(header, word.end())
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def token_url(challenge: Challenge, *, default_scope: str) -> str | None:
    """Where to ask for the token of a Bearer challenge; None when its realm is not an http(s) URL.

    A scope with spaces asks for several resources and is sent as several parameters, as Ollama does.
    """
    try:
        realm = urlsplit(challenge.parameters.get("realm", ""))
        is_usable = realm.scheme in ("http", "https") and bool(realm.hostname) and realm.port != 0
    except ValueError:
        return None
    if not is_usable:
        return None
    query = parse_qsl(realm.query, keep_blank_values=True)
    if service := challenge.parameters.get("service"):
        query.append(("service", service))
    scopes = challenge.parameters.get("scope", "").split() or [default_scope]
    query += [("scope", scope) for scope in scopes]
    return urlunsplit((realm.scheme, realm.netloc.rpartition("@")[2], realm.path, urlencode(query), ""))
