"""The inventory: ranges of hosts, addresses, label selectors, and which model goes where.

Every host has the label `host`, its own name, unless the manifest gives it another. Labels are compared as numbers or
as sizes when both sides are, so that `vram>=24GiB` is true of `48GiB`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from typing import Literal, TypeVar, assert_never

from ollamaops.errors import InvalidValue
from ollamaops.manifest.types import AbsentSpec, HostSpec, Manifest, ModelSpec, Requirement, Selector
from ollamaops.units import parse_size

MAX_RANGE = 1000
DEFAULT_PORT = 11434
LOCAL_HOST = "local"

_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_RANGE = re.compile(r"\[([0-9]{1,9}):([0-9]{1,9})\]")
_RANGE_HINT = "write it like lab-[01:20], with {} where the number goes in the url"


def expand_range(pattern: str) -> tuple[tuple[str, str], ...]:
    """(name, number) of each host in `lab-[01:20]`, or the name itself with the number "" if it is not a range.

    Both ends belong to the range; a first number with leading zeros gives the width. InvalidValue for a name or
    a range that cannot be, or one of more than 1000 hosts.
    """
    match = _RANGE.search(pattern)
    names = _names_in(pattern, match) if match else ((pattern, ""),)
    if not _HOST_NAME.fullmatch(names[0][0]):
        hint = _RANGE_HINT if "[" in pattern else "use letters, digits, '-', '_' and '.'"
        raise InvalidValue(f"'{pattern}' is not a host name", hint=hint)
    return names


def _names_in(pattern: str, match: re.Match[str]) -> tuple[tuple[str, str], ...]:
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise InvalidValue(f"'{pattern}' has no hosts: {match[1]} is more than {match[2]}", hint=_RANGE_HINT)
    if last - first >= MAX_RANGE:
        raise InvalidValue(f"'{pattern}' has {last - first + 1} hosts: {MAX_RANGE} are allowed in one range")
    width = len(match[1]) if match[1].startswith("0") else 1
    before, after = pattern[: match.start()], pattern[match.end() :]
    numbers = [f"{number:0{width}d}" for number in range(first, last + 1)]
    return tuple((f"{before}{number}{after}", number) for number in numbers)


def parse_url(text: str) -> str:
    """`scheme://host:port[/path]`, normalized: lower case, the port always there, no slash at the end.

    Without a scheme it is http and port 11434, as for `ollama` itself. InvalidValue for anything that is not a
    server's address. The message never repeats the text, which may have a password in it.
    """
    return _read_url(text.strip(), strict=True)


def parse_ollama_host(text: str) -> str:
    """The URL that a client reaches for `OLLAMA_HOST`, read as Ollama reads it (envconfig, all versions).

    Without a scheme http and port 11434; `http://` port 80, `https://` port 443; a path is kept; spaces and
    quotes around it are dropped; a port that is not a number becomes the default. InvalidValue as for `parse_url`.
    """
    return _read_url(text.strip(" \t\r\n\"'"), strict=False)


_URL_HINT = "write it like http://gpu-1.lan:11434 or https://gpu-1.lan/ollama"
_NETLOC = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]*))(?::(?P<port>[^:]*))?"
    r"|(?P<bare6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)"
)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_LISTENING = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to reach, not to bind


def _read_url(bare: str, *, strict: bool) -> str:
    scheme, found, rest = bare.partition("://") if "://" in bare else ("http", "", bare)
    netloc, _, path = rest.partition("/")
    default = {"http": 80, "https": 443}.get(scheme.lower())
    match = _NETLOC.fullmatch(netloc)
    if default is None:
        raise InvalidValue("not a URL that begins with http:// or https://", hint=_URL_HINT)
    if "@" in netloc:
        hint = "use auth: {basic: {user: …, password: {env: …}}}"
        raise InvalidValue("a URL with a user or a password in it", hint=hint)
    if match is None or not _PATH.fullmatch(path) or (strict and not netloc):
        raise InvalidValue("not the URL of a server", hint=_URL_HINT)
    port = _port(match["port"] or "", default if found else DEFAULT_PORT, strict=strict)
    host = _reachable_host(match["v6"] or match["bare6"] or match["name"])
    return f"{scheme.lower()}://{host}:{port}/{path}".rstrip("/")


def _port(text: str, default: int, *, strict: bool) -> int:
    if text.isascii() and text.isdecimal() and int(text[:9]) <= 65535:
        return int(text)
    if text and strict:
        raise InvalidValue("a URL whose port is not a number from 0 to 65535", hint=_URL_HINT)
    return default


def _reachable_host(name: str) -> str:
    """An address to listen on everywhere (0.0.0.0, ::, none) is reached at the loopback address."""
    host = _LISTENING.get(name, name).lower()
    if ":" not in host:
        return host
    try:
        return f"[{IPv6Address(host)}]"
    except ValueError:
        raise InvalidValue("not the URL of a server: the IPv6 address is not valid", hint=_URL_HINT) from None


_KEY = r"[A-Za-z0-9_][A-Za-z0-9_./-]*"
_VALUE = r"\s*[^\s,()<>=!]+\s*"
_CONDITION = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<lacking>{_KEY})"
    rf"|(?P<among>{_KEY})\s+(?P<set>in|notin)\s*\((?P<choices>{_VALUE}(?:,{_VALUE})*)\)"
    rf"|(?P<key>{_KEY})\s*(?:(?P<sign>==|=|!=|>=|<=|>|<)\s*(?P<value>[^\s,()<>=!]+))?)\s*(?:,|\Z)"
)
_SIGNS: Mapping[str, Literal["=", "!=", ">", ">=", "<", "<="]] = {
    "=": "=",
    "==": "=",
    "!=": "!=",
    ">": ">",
    ">=": ">=",
    "<": "<",
    "<=": "<=",
}
_SELECTOR_HINT = (
    "write it like vram>=24GiB,site!=lyon; also gpu, !gpu, site in (paris, lyon), site notin (lyon)"
)


def parse_selector(text: str) -> Selector:
    """The conditions in `vram>=24GiB,site!=lyon`, all of which must hold; none in an empty text.

    InvalidValue for what is not a selector.
    """
    conditions: list[Requirement] = []
    position = 0
    while position < len(text.rstrip()):
        match = _CONDITION.match(text, position)
        if match is None:
            raise InvalidValue(f"'{text}' is not a label selector", hint=_SELECTOR_HINT)
        conditions.append(_requirement(match))
        position = match.end()
    return tuple(conditions)


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        return Requirement(match["lacking"], "absent")
    if match["set"]:
        choices = tuple(choice.strip() for choice in match["choices"].split(","))
        return Requirement(match["among"], "in" if match["set"] == "in" else "notin", choices)
    if match["sign"]:
        return Requirement(match["key"], _SIGNS[match["sign"]], (match["value"],))
    return Requirement(match["key"], "exists")


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether labels meet every condition. A label that is not there meets only `!=`, `notin` and `!key`."""
    return all(_holds(condition, labels.get(condition.key)) for condition in selector)


# sign → the results of a three-way comparison for which it holds
_ORDERS: Mapping[str, tuple[int, ...]] = {"=": (0,), ">": (1,), ">=": (0, 1), "<": (-1,), "<=": (-1, 0)}
_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{1,15})?")


def _holds(condition: Requirement, value: str | None) -> bool:
    match condition.operator:
        case "exists":
            return value is not None
        case "absent":
            return value is None
        case "in":
            return value is not None and any(_compare("=", value, choice) for choice in condition.values)
        case "notin":
            return value is None or not any(_compare("=", value, choice) for choice in condition.values)
        case "!=":
            return value is None or not _compare("=", value, condition.values[0])
        case "=" | ">" | ">=" | "<" | "<=":
            return value is not None and _compare(condition.operator, value, condition.values[0])
        case _:
            assert_never(condition.operator)


def _compare(sign: str, left: str, right: str) -> bool:
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return _order(float(left), float(right)) in _ORDERS[sign]
    if is_size(left) and is_size(right):
        return _order(parse_size(left), parse_size(right)) in _ORDERS[sign]
    if sign != "=" and is_size(left) != is_size(right):
        return False  # a size is neither more nor less than a word
    return _order(left, right) in _ORDERS[sign]


def is_size(text: str) -> bool:
    """Whether a label or what it is compared with counts as a number or a size."""
    try:
        return bool(_NUMBER.fullmatch(text)) or parse_size(text) >= 0
    except InvalidValue:
        return False


_Ordered = TypeVar("_Ordered", float, str)


def _order(left: _Ordered, right: _Ordered) -> int:
    return (left > right) - (left < right)


def labels_of(host: HostSpec) -> Mapping[str, str]:
    """The host's labels, `host` (its name) among them."""
    return {"host": host.name, **host.labels}


def models_on(host: HostSpec, manifest: Manifest) -> tuple[ModelSpec, ...]:
    """The models that should be on this host, in the order of the manifest."""
    return tuple(model for model in manifest.models if matches(model.where, labels_of(host)))


def absent_on(host: HostSpec, manifest: Manifest) -> tuple[AbsentSpec, ...]:
    """The removals that are meant for this host, in the order of the manifest."""
    return tuple(absent for absent in manifest.absent if matches(absent.where, labels_of(host)))


def select_hosts(manifest: Manifest, host_globs: Sequence[str], selector: Selector) -> tuple[HostSpec, ...]:
    """The hosts whose name matches any of the globs (none: all) and whose labels meet the selector."""
    return tuple(
        host
        for host in manifest.hosts
        if (not host_globs or any(fnmatchcase(host.name, glob) for glob in host_globs))
        and matches(selector, labels_of(host))
    )
