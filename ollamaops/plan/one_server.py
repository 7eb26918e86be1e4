"""Whether an address belongs to one server, and whether two addresses do, told from what answers say.

A router or a load-balanced Service in front of several servers gives now the one's answer, now the other's. What
tells it from a server that somebody changes are answers that come back: whoever writes a manifest again gives it
another time, so a server does not list again what it listed before a change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, groupby
from typing import TypeVar

from msgspec import Struct

from ollamaops.plan.actions import Note, Refusal

RULE = "one_server"
_TURNS = 4
Answer = TypeVar("Answer")


class Row(Struct, frozen=True, order=True):
    """One line of `/api/tags`: a name, its digest, and when its manifest was written, to the nanosecond."""

    name: str
    digest: str
    modified_at: str


Rows = frozenset[Row]


def contradiction(answers: Sequence[Answer]) -> tuple[Answer, Answer] | None:
    """Two answers that took turns, both twice: one, the other, the one, the other. None if there are none.

    Once is not enough: a list that is read while a manifest is written misses that model (all servers up to 0.33).
    """
    for one, other in combinations(dict.fromkeys(answers), 2):
        turns = [answer for answer, _ in groupby(answer for answer in answers if answer in (one, other))]
        if len(turns) >= _TURNS:
            return turns[0], turns[1]
    return None


def told_by_versions(versions: Sequence[str]) -> str:
    """What versions that were asked for one after the other tell of several servers; "" if nothing."""
    found = contradiction(versions)
    return f"it is Ollama {found[0]} and Ollama {found[1]} in turn" if found else ""


def told_by_listings(listings: Sequence[Rows]) -> str:
    """What lists of models that were asked for one after the other tell of several servers; "" if nothing."""
    found = contradiction(listings)
    if found is None:
        return ""
    one, other = ({row.name: row for row in listing} for listing in found)
    if lacking := sorted(one.keys() ^ other.keys()):
        return f"'{lacking[0]}' is listed by one answer and not by the next"
    differing = sorted(name for name in one if one[name] != other[name])
    return f"'{differing[0]}' is another one in each answer"


def refusal_of(host: str, evidence: str) -> Refusal:
    """The refusal to change what is not one server."""
    return Refusal(
        rule=RULE,
        host=host,
        message=f"several servers answer at this address: {evidence}",
        hint="give each server an entry of its own under hosts:, with its own address, "
        f"or use --force {RULE} for this run",
    )


def note_of(refusal: Refusal) -> Note:
    """The same, of a host that was changed before it was known."""
    return Note(host=refusal.host, message=refusal.message, hint=refusal.hint, unresolved=True)


def suspects(listings: Mapping[str, Rows], addresses: Mapping[str, Collection[str]]) -> frozenset[str]:
    """The hosts that may be the server of another entry: they have an address or a line of their lists in common.

    No more than that, because hosts that were made from one disk image list the same too.
    """
    sharing: dict[object, set[str]] = {}
    for host, listing in listings.items():
        for mark in (*listing, *addresses.get(host, ())):
            sharing.setdefault(mark, set()).add(host)
    return frozenset(host for hosts in sharing.values() if len(hosts) > 1 for host in hosts)


def hosts_of_one_server(before: Mapping[str, Rows], now: Mapping[str, Rows]) -> tuple[tuple[str, ...], ...]:
    """The hosts that turn out to be one server: what is new on one is on the other too, of the same moment."""
    having: dict[Row, list[str]] = {}
    for host in sorted(now):
        for row in now[host]:
            having.setdefault(row, []).append(host)
    groups = (
        tuple(hosts)
        for row, hosts in having.items()
        if len(hosts) > 1 and any(row not in before[host] for host in hosts)
    )
    return tuple(sorted(dict.fromkeys(groups)))


def note_of_same(host: str, hosts: Collection[str]) -> Note:
    """What to say of a host that is the same server as other entries."""
    others = ", ".join(f"'{other}'" for other in hosts if other != host)
    return Note(
        host=host,
        message=f"this is the server of {others} too: what was done for one entry was done to the other",
        hint="keep one entry for it under hosts:",
        unresolved=True,
    )
