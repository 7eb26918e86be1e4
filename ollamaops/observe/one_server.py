"""Looking whether one address is one server, and whether two hosts of a run are the same one.

Both cost requests, so they are asked only where something is changed: before it and after it. A host where nothing is
to do costs none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from ollamaops.errors import OllamaopsError
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.run import Run, for_each
from ollamaops.observe.session import HostSession, rows_of
from ollamaops.observe.tags import read_tags
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.one_server import (
    Answer,
    Rows,
    contradiction,
    hosts_of_one_server,
    suspects,
    told_by_listings,
    told_by_versions,
)

_LOOKS = 3
_MOST_LOOKS = 8
_PORTS = {"http": 80, "https": 443}


def signs_of_several(host: HostSession) -> str:
    """What tells that several servers answer at the host's address; "" when nothing does. RemoteError.

    Three lists of models over fresh connections; more when they differ, and versions when there are no models.
    """
    if host.client.router:
        return f"{host.client.router} answers, which hands requests to several servers"
    listings = _answers(host, _read_rows)
    if any(listings):
        return told_by_listings(listings)
    return told_by_versions(_answers(host, lambda client: str(client.version())))


def _answers(host: HostSession, ask: Callable[[OllamaClient], Answer]) -> list[Answer]:
    """Answers over fresh connections, until they tell something or agree."""
    answers: list[Answer] = []
    while len(answers) < _MOST_LOOKS:
        host.client.transport.renew_connections()
        answers.append(host.with_retries(lambda: ask(host.client)))
        if len(answers) >= _LOOKS and (contradiction(answers) or len(set(answers)) == 1):
            break
    return answers


def _read_rows(client: OllamaClient) -> Rows:
    return rows_of(read_tags(client))


def find_same(specs: Collection[HostSpec], run: Run) -> Mapping[str, tuple[str, ...]]:
    """Of the hosts of this run those that turn out to be one server: host → all that are the same.

    Only hosts that may be the same are asked again. One that does not answer now is left out.
    """
    known = {spec.name: spec for spec in specs if spec.name in run.first_rows}
    addresses = {name: _addresses(spec) for name, spec in known.items()}
    wanted = sorted(suspects({name: run.first_rows[name] for name in known}, addresses))
    found = for_each(wanted, lambda name: _rows_now(known[name], run), jobs=run.options.jobs)
    now = {name: listing for name, listing in zip(wanted, found, strict=True) if listing is not None}
    return {host: hosts for hosts in hosts_of_one_server(run.first_rows, now) for host in hosts}


def _rows_now(spec: HostSpec, run: Run) -> Rows | None:
    with suppress(OllamaopsError), run.open_client(spec, run.cancel) as client:
        return _read_rows(client)
    return None


def _addresses(spec: HostSpec) -> frozenset[str]:
    """Address and port of every record of the host's name; none when it has no address, or a proxy is asked."""
    parts = urlsplit(spec.url)
    port = parts.port or _PORTS[parts.scheme]
    if spec.proxy:
        return frozenset()
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(" ".join(map(str, address[:2])) for *_, address in found)
