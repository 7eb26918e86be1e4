"""Checked trees → the values of types.py: hosts, models, policy.

Decides how each written value reads as a typed one; what cannot be read is a problem, and its entry is left out.
Leaves the disk to load.py, which passes in what an entry's files hold, and the rules between keys to check.py.
Easily missed: the trees have passed schema.json, so that the kinds of nodes are known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

from ollamaops.errors import InvalidValue
from ollamaops.manifest.check import Gathered, source_kind
from ollamaops.manifest.document import Items, Node, Scalar, Table, to_plain
from ollamaops.manifest.hosts import parse_selector, parse_url
from ollamaops.manifest.parameters import Recipe, normalize_parameter
from ollamaops.manifest.problems import Findings
from ollamaops.manifest.types import (
    AbsentSpec,
    Auth,
    BasicAuth,
    BearerAuth,
    Build,
    Copy,
    HostSpec,
    Limit,
    Message,
    ModelSpec,
    ParameterValue,
    Place,
    Policy,
    Pull,
    Secret,
    SecretFromCommand,
    SecretFromEnv,
    SecretFromFile,
    Selector,
    Source,
    Tls,
    Update,
    Window,
)
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.units import parse_duration, parse_size, parse_timeout

T = TypeVar("T")


class FindPath(Protocol):
    """Gives the path of a certificate, key or secret."""

    def __call__(self, node: Scalar, *, must_exist: bool) -> Path: ...


class _Reader:
    """The scalars of one table, typed."""

    def __init__(self, table: Table, findings: Findings) -> None:
        self._table = table
        self._findings = findings

    def text(self, key: str) -> str | None:
        node = self._table.get(key)
        return node.text if isinstance(node, Scalar) else None

    def flag(self, key: str, default: bool) -> bool:
        node = self._table.get(key)
        return bool(node.value) if isinstance(node, Scalar) else default

    def count(self, key: str, default: int) -> int:
        node = self._table.get(key)
        return int(cast("int", node.value)) if isinstance(node, Scalar) else default

    def parsed(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """What `parse` makes of the text, the default if there is none or it cannot be read (a problem)."""
        node = self._table.get(key)
        if not isinstance(node, Scalar):
            return default
        value = self._findings.read(node, parse)
        return default if value is None else value

    def all(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """Each item of a list, but those that cannot be read (problems)."""
        node = self._table.get(key)
        if not isinstance(node, Items):
            return ()
        values = [self._findings.read(cast("Scalar", item), parse) for item in node.nodes]
        return tuple(value for value in values if value is not None)

    def table(self, key: str) -> Table | None:
        node = self._table.get(key)
        return node if isinstance(node, Table) else None


def build_host(name: str, table: Table, place: Place, find: FindPath, findings: Findings) -> HostSpec:
    """The host; what cannot be read is a problem and keeps its default. `find` gives the path of a file."""
    read = _Reader(table, findings)
    return HostSpec(
        name=name,
        url=read.parsed("url", parse_url, ""),
        labels={key: cast("Scalar", node).text for key, node in _nodes(read.table("labels"))},
        auth=_auth(read.table("auth"), find),
        headers=_headers(table, find),
        tls=_tls(read.table("tls"), find, findings),
        proxy=read.text("proxy"),
        timeout_s=read.parsed("timeout", parse_timeout, 30.0),
        stall_s=read.parsed("stall", parse_timeout, 300.0),
        parallel=read.count("parallel", 2),
        disk_bytes=read.parsed("disk", parse_size, None),
        place=place,
        written=dict(_written(table)),
    )


def _written(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every value below the node that came from the environment, as it was written, by its path."""
    if isinstance(node, Scalar):
        if node.reference is not None:
            yield path, node.reference
        return
    for key, each in node.nodes.items() if isinstance(node, Table) else enumerate(node.nodes):
        yield from _written(each, (*path, key))


def _nodes(table: Table | None) -> list[tuple[str, Node]]:
    return list(table.nodes.items()) if table else []


def _auth(table: Table | None, find: FindPath) -> Auth | None:
    match table.nodes if table else {}:
        case {"bearer": Table() as bearer}:
            return BearerAuth(_secret(bearer, find))
        case {"basic": Table(nodes={"user": Scalar() as user, "password": Table() as password})}:
            return BasicAuth(user.text, _secret(password, find))
        case _:
            return None


def _headers(table: Table, find: FindPath) -> dict[str, str | Secret]:
    auth = table.get("auth")
    secret = auth.get("headers") if isinstance(auth, Table) else None
    nodes = [
        pair for part in (table.get("headers"), secret) if isinstance(part, Table) for pair in _nodes(part)
    ]
    return {
        key: node.text if isinstance(node, Scalar) else _secret(cast("Table", node), find)
        for key, node in nodes
    }


def _secret(table: Table, find: FindPath) -> Secret:
    ((kind, node),) = table.nodes.items()
    if isinstance(node, Items):
        return SecretFromCommand(tuple(cast("Scalar", item).text for item in node.nodes))
    reference = cast("Scalar", node)
    return (
        SecretFromEnv(reference.text) if kind == "env" else SecretFromFile(find(reference, must_exist=False))
    )


def _tls(table: Table | None, find: FindPath, findings: Findings) -> Tls:
    if table is None:
        return Tls()
    paths = {
        key: find(node, must_exist=True)
        for key, node in table.nodes.items()
        if key != "verify" and isinstance(node, Scalar)
    }
    return Tls(**paths, verify=_Reader(table, findings).flag("verify", True))


# stands for a name that cannot be read until its entry is left out
_UNREADABLE = ModelName.parse("unreadable")
_UNREADABLE_PATTERN = NamePattern.parse("unreadable")


def build_model(
    entry: Table, gathered: Gathered, update: Update, findings: Findings
) -> ModelSpec | AbsentSpec | None:
    """What one entry declares; None, and problems, if it cannot be read. `update` is what holds if none is given."""
    before = len(findings.problems)
    is_absent = source_kind(entry) == "absent"
    spec = _absent(entry, findings) if is_absent else _model(entry, gathered, update, findings)
    return spec if len(findings.problems) == before else None


def _absent(entry: Table, findings: Findings) -> AbsentSpec:
    node = cast("Scalar", entry.nodes["name"])
    pattern = findings.read(node, NamePattern.parse) or _UNREADABLE_PATTERN
    return AbsentSpec(pattern=pattern, where=_where(entry, findings), place=node.place)


def _where(entry: Table, findings: Findings) -> Selector:
    return _Reader(entry, findings).parsed("where", parse_selector, cast("Selector", ()))


def _model(entry: Table, gathered: Gathered, update: Update, findings: Findings) -> ModelSpec:
    read = _Reader(entry, findings)
    node = cast("Scalar", entry.nodes["name"])
    name = findings.read(node, ModelName.parse) or _UNREADABLE
    source = _source(name, entry, gathered, findings)
    push, push_insecure = _push(entry, findings)
    return ModelSpec(
        name=name,
        source=source,
        where=_where(entry, findings),
        update=cast("Update", read.text("update") or update),
        insecure=read.flag("insecure", False),
        digest=read.parsed("digest", Digest.parse, None),
        resident=_resident(entry, findings),
        protect=read.flag("protect", False),
        ignore=read.all("ignore", str),
        expect=_expect(entry.get("expect")),
        staged=read.flag("staged", False),
        keep_previous=read.count("keep_previous", 0),
        push=push,
        push_insecure=push_insecure,
        moved_from=read.parsed("moved_from", ModelName.parse, None),
        retries=read.count("retries", 5),
        place=node.place,
    )


def _source(name: ModelName, entry: Table, gathered: Gathered, findings: Findings) -> Source:
    read = _Reader(entry, findings)
    match source_kind(entry):
        case "pull":
            return Pull(ref=read.parsed("pull", ModelName.parse, name), insecure=read.flag("insecure", False))
        case "copy":
            return Copy(source=read.parsed("copy", ModelName.parse, _UNREADABLE))
        case "from":
            return _build(read.parsed("from", ModelName.parse, _UNREADABLE), entry, gathered, findings)
        case _:
            return _build(gathered.base, entry, gathered, findings)


def _build(base: ModelName | None, entry: Table, gathered: Gathered, findings: Findings) -> Build:
    read = _Reader(entry, findings)
    recipe = gathered.recipe or Recipe(from_args=(), parameters={})
    messages = [Message(role, content) for role, content in recipe.messages]
    return Build(
        base=base,
        files=() if base else gathered.files,  # a server takes `from` and forgets `files` when both are given
        adapters=gathered.adapters,
        drafts=gathered.drafts,
        template=gathered.texts.get("template") or recipe.template,
        system=gathered.texts.get("system") or recipe.system,
        parameters={**recipe.parameters, **_parameters(entry, findings)},
        messages=(*messages, *_messages(entry.get("messages"))),
        licenses=(*recipe.licenses, *gathered.licenses),
        quantize=_upper(read.text("quantize")),
        draft_quantize=_upper(read.text("draft_quantize")),
        renderer=read.text("renderer") or recipe.renderer,
        parser=read.text("parser") or recipe.parser,
        requires=(read.text("requires") or "").removeprefix("v") or recipe.requires,
    )


def _upper(text: str | None) -> str | None:
    return text.upper() if text else None


def _parameters(entry: Table, findings: Findings) -> dict[str, ParameterValue]:
    parameters: dict[str, ParameterValue] = {}
    for key, node in _nodes(_Reader(entry, findings).table("parameters")):
        try:
            parameters[key] = normalize_parameter(key, to_plain(node))
        except InvalidValue:
            continue  # check.py has said so
    return parameters


def _messages(node: Node | None) -> list[Message]:
    items = node.nodes if isinstance(node, Items) else ()
    pairs = [cast("dict[str, str]", to_plain(item)) for item in items]
    return [Message(pair["role"], pair["content"]) for pair in pairs]


def _resident(entry: Table, findings: Findings) -> bool | float | None:
    node = entry.get("resident")
    if not isinstance(node, Scalar) or isinstance(node.value, bool):
        return cast("bool | None", node.value if isinstance(node, Scalar) else None)
    return findings.read(node, parse_duration)


def _expect(node: Node | None) -> tuple[Mapping[str, object], ...]:
    tables = node.nodes if isinstance(node, Items) else [node] if node else []
    return tuple(cast("Mapping[str, object]", to_plain(table)) for table in tables)


def _push(entry: Table, findings: Findings) -> tuple[ModelName | None, bool]:
    node = entry.get("push")
    read = _Reader(
        node if isinstance(node, Table) else Table(entry.place, {"name": node} if node else {}), findings
    )
    insecure = _Reader(entry, findings).flag("insecure", False)
    return read.parsed("name", ModelName.parse, None), read.flag("insecure", insecure)


def build_policy(table: Table, findings: Findings) -> Policy:
    """The policy; what cannot be read is a problem and keeps its default."""
    read = _Reader(table, findings)
    change = _Reader(read.table("max_change") or Table(table.place), findings)
    allow_table = read.table("allow") or Table(table.place)
    allow = _Reader(allow_table, findings)
    prune = read.text("prune")
    return Policy(
        prune="owned" if prune == "owned" else read.all("prune", NamePattern.parse) or False,
        protect=read.all("protect", NamePattern.parse),
        ignore=read.all("ignore", NamePattern.parse),
        max_delete=change.parsed("delete", _limit, None),
        max_replace=change.parsed("replace", _limit, None),
        registries=allow.all("registries", _registry) if "registries" in allow_table.nodes else None,
        licenses=allow.all("licenses", str) if "licenses" in allow_table.nodes else None,
        cloud=allow.flag("cloud", False),
        min_version=read.parsed("min_version", _version, None),
        busy=cast('Literal["refuse", "wait", "force"] | None', read.text("busy")),
        windows=_windows(table.get("windows"), findings),
    )


_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*%")
_VERSION = re.compile(r"v?([0-9]+(?:\.[0-9]+){1,2}(?:-[0-9A-Za-z.-]+)?)", re.ASCII)
_REGISTRY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_HOURS = re.compile(
    r"([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-\s*(24:00|(?:[01]?[0-9]|2[0-3]):[0-5][0-9])", re.ASCII
)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*")


def _limit(text: str) -> Limit:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return Limit(count=int(text))
    match = _PERCENT.fullmatch(text)
    if match is None or float(match[1]) > 100:
        raise InvalidValue(
            f"'{text[:60]}' is not a limit", hint="write a number of models, or a percentage: 30%"
        )
    return Limit(percent=float(match[1]))


def _version(text: str) -> str:
    match = _VERSION.fullmatch(text)
    if match is None:
        raise InvalidValue(f"'{text[:60]}' is not a version", hint="write it like 0.12.6")
    return match[1]


def _registry(text: str) -> str:
    if not _REGISTRY.fullmatch(text):
        raise InvalidValue(
            f"'{text[:60]}' is not a registry", hint="write host or host:port, without https://"
        )
    return text.lower()


def _windows(node: Node | None, findings: Findings) -> tuple[Window, ...]:
    tables = node.nodes if isinstance(node, Items) else ()
    return tuple(_window(cast("Table", table), findings) for table in tables)


def _window(table: Table, findings: Findings) -> Window:
    read = _Reader(table, findings)
    begins, ends = read.parsed("hours", _hours, (0, 24 * 60))
    return Window(
        days=read.all("days", str),
        begins_minute=begins,
        ends_minute=ends,
        timezone=read.parsed("timezone", _zone, "UTC"),
    )


def _hours(text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text)
    if match is None:
        raise InvalidValue(f"'{text[:60]}' are not hours", hint='write it like "22:00-06:00"')
    hour, minute = match[3].split(":")
    begins, ends = int(match[1]) * 60 + int(match[2]), int(hour) * 60 + int(minute)
    if begins == ends:
        raise InvalidValue(f"'{text[:60]}' ends when it begins", hint="leave hours: out for the whole day")
    return begins, ends


def _zone(text: str) -> str:
    if not _ZONE.fullmatch(text):
        raise InvalidValue(f"'{text[:60]}' is not a time zone", hint="write an IANA name like Europe/Paris")
    if text.upper() != "UTC":
        _require_zone(text)
    return text


def _require_zone(name: str) -> None:
    """InvalidValue if this system has no such time zone (a folder of zones or a corrupt file is none either)."""
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        hint = "write an IANA name like Europe/Paris; a system without time zones needs: pip install tzdata"
        raise InvalidValue(f"'{name[:60]}' is not a time zone that this system knows", hint=hint) from None
