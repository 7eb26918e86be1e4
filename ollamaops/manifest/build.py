"""Checked trees → the values of types.py: hosts, models, policy.

The trees have passed schema.json, so the kinds of nodes are known here. A value that cannot be read is a problem, and
its entry is left out. The caller passes in what is in an entry's files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from ollamaops.errors import InvalidValue, Problem
from ollamaops.manifest.check import EntryFiles, SourceKind, source_kind
from ollamaops.manifest.document import Items, Node, Scalar, Table, to_plain
from ollamaops.manifest.hosts import parse_selector, parse_url
from ollamaops.manifest.parameters import normalize_parameter
from ollamaops.manifest.problems import parse_scalar
from ollamaops.manifest.types import (
    AbsentSpec,
    Auth,
    BasicAuth,
    BearerAuth,
    Build,
    Copy,
    HostSpec,
    Limit,
    ModelSpec,
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
from ollamaops.settings import WEIGHTS_SETTINGS, Message, ParameterValue
from ollamaops.units import parse_duration, parse_size, parse_timeout

T = TypeVar("T")


class FindPath(Protocol):
    """Gives the path of a certificate, key or secret."""

    def __call__(self, node: Scalar, *, must_exist: bool) -> Path | Problem: ...


class _Reader:
    """The values of one table, typed. What cannot be read is a problem; all tables of an entry share `problems`."""

    def __init__(self, table: Table, problems: list[Problem]) -> None:
        self._table = table
        self.problems = problems

    def below(self, key: str) -> _Reader:
        """The reader of the table at `key`, of an empty one if there is none."""
        return _Reader(self.table(key) or Table(self._table.place), self.problems)

    def has(self, key: str) -> bool:
        return key in self._table.nodes

    def pairs(self, key: str) -> list[tuple[str, Node]]:
        """Key and value of each node in the table at `key`."""
        table = self.table(key)
        return list(table.nodes.items()) if table else []

    def node(self, key: str) -> Node | None:
        return self._table.get(key)

    def value(self, found: T | Problem, default: T) -> T:
        """What was found; the default if it is a problem."""
        if isinstance(found, Problem):
            self.problems.append(found)
            return default
        return found

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
        return self.value(parse_scalar(node, parse), default) if isinstance(node, Scalar) else default

    def all(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """Each item of a list, except those that cannot be read (problems)."""
        node = self._table.get(key)
        if not isinstance(node, Items):
            return ()
        values = [parse_scalar(cast("Scalar", item), parse) for item in node.nodes]
        self.problems += [value for value in values if isinstance(value, Problem)]
        return tuple(value for value in values if not isinstance(value, Problem))

    def table(self, key: str) -> Table | None:
        node = self._table.get(key)
        return node if isinstance(node, Table) else None


def build_host(name: str, table: Table, place: Place, find: FindPath) -> tuple[HostSpec, list[Problem]]:
    """The host; what cannot be read is a problem and keeps its default. `find` gives the path of a file."""
    read = _Reader(table, [])
    host = HostSpec(
        name=name,
        url=read.parsed("url", parse_url, ""),
        labels={key: cast("Scalar", node).text for key, node in read.pairs("labels")},
        auth=_auth(read, find),
        headers=_headers(read, find),
        tls=_tls(read.below("tls"), read.pairs("tls"), find),
        proxy=read.text("proxy"),
        timeout_s=read.parsed("timeout", parse_timeout, 30.0),
        stall_s=read.parsed("stall", parse_timeout, 300.0),
        parallel=read.count("parallel", 2),
        disk_bytes=read.parsed("disk", parse_size, None),
        place=place,
        written=dict(_written(table)),
    )
    return host, read.problems


def _written(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every value below the node that came from the environment, as it was written, by its path."""
    if isinstance(node, Scalar):
        if node.reference is not None:
            yield path, node.reference
        return
    for key, each in node.nodes.items() if isinstance(node, Table) else enumerate(node.nodes):
        yield from _written(each, (*path, key))


def _auth(read: _Reader, find: FindPath) -> Auth | None:
    match dict(read.pairs("auth")):
        case {"bearer": Table() as bearer}:
            return BearerAuth(_secret(bearer, read, find))
        case {"basic": Table(nodes={"user": Scalar() as user, "password": Table() as password})}:
            return BasicAuth(user.text, _secret(password, read, find))
        case _:
            return None


def _headers(read: _Reader, find: FindPath) -> dict[str, str | Secret]:
    pairs = [*read.pairs("headers"), *read.below("auth").pairs("headers")]
    return {
        key: node.text if isinstance(node, Scalar) else _secret(cast("Table", node), read, find)
        for key, node in pairs
    }


def _secret(table: Table, read: _Reader, find: FindPath) -> Secret:
    ((kind, node),) = table.nodes.items()
    if isinstance(node, Items):
        return SecretFromCommand(tuple(cast("Scalar", item).text for item in node.nodes))
    reference = cast("Scalar", node)
    if kind == "env":
        return SecretFromEnv(reference.text)
    return SecretFromFile(read.value(find(reference, must_exist=False), Path()))


def _tls(read: _Reader, pairs: list[tuple[str, Node]], find: FindPath) -> Tls:
    paths = {
        key: read.value(find(node, must_exist=True), Path())
        for key, node in pairs
        if key != "verify" and isinstance(node, Scalar)
    }
    return Tls(**paths, verify=read.flag("verify", True))


# stands for a name that cannot be read until its entry is left out
_UNREADABLE = ModelName.parse("unreadable")
_UNREADABLE_PATTERN = NamePattern.parse("unreadable")


def build_model(
    entry: Table, files: EntryFiles, update: Update
) -> tuple[ModelSpec | AbsentSpec | None, list[Problem]]:
    """What one entry declares; None, and problems, if it cannot be read. `update` is the default."""
    read = _Reader(entry, [])
    spec = (
        _absent(read) if source_kind(entry) == "absent" else _model(read, source_kind(entry), files, update)
    )
    return (None if read.problems else spec), read.problems


def _absent(read: _Reader) -> AbsentSpec:
    return AbsentSpec(
        pattern=read.parsed("name", NamePattern.parse, _UNREADABLE_PATTERN),
        where=_where(read),
        place=cast("Scalar", read.node("name")).place,
    )


def _where(read: _Reader) -> Selector:
    return read.parsed("where", parse_selector, cast("Selector", ()))


def _model(read: _Reader, kind: SourceKind, files: EntryFiles, update: Update) -> ModelSpec:
    name = read.parsed("name", ModelName.parse, _UNREADABLE)
    insecure = read.flag("insecure", False)
    push = read.below("push") if read.table("push") else None
    return ModelSpec(
        name=name,
        source=_source(name, read, kind, files),
        where=_where(read),
        update=cast("Update", read.text("update") or update),
        insecure=insecure,
        digest=read.parsed("digest", Digest.parse, None),
        resident=_resident(read),
        protect=read.flag("protect", False),
        ignore=read.all("ignore", str),
        expect=_expect(read.node("expect")),
        staged=read.flag("staged", False),
        keep_previous=read.count("keep_previous", 0),
        push=push.parsed("name", ModelName.parse, None)
        if push
        else read.parsed("push", ModelName.parse, None),
        push_insecure=push.flag("insecure", insecure) if push else insecure,
        moved_from=read.parsed("moved_from", ModelName.parse, None),
        retries=read.count("retries", 5),
        place=cast("Scalar", read.node("name")).place,
    )


def _source(name: ModelName, read: _Reader, kind: SourceKind, files: EntryFiles) -> Source:
    match kind:
        case "pull":
            return Pull(ref=read.parsed("pull", ModelName.parse, name), insecure=read.flag("insecure", False))
        case "copy":
            return Copy(source=read.parsed("copy", ModelName.parse, _UNREADABLE))
        case "from":
            return _build(read.parsed("from", ModelName.parse, _UNREADABLE), read, files)
        case _:
            return _build(files.asked.base, read, files)


def _build(base: ModelName | None, read: _Reader, files: EntryFiles) -> Build:
    """What the Modelfile asks for, with the entry's own keys over it."""
    asked = files.asked
    return replace(
        asked,
        base=base,
        files=() if base else files.files,  # a server takes `from` and forgets `files` when both are given
        adapters=files.adapters,
        drafts=files.drafts,
        template=files.texts.get("template") or asked.template,
        system=files.texts.get("system") or asked.system,
        parameters={**asked.parameters, **_parameters(read)},
        messages=(*asked.messages, *_messages(read.node("messages"))),
        licenses=(*asked.licenses, *files.licenses),
        **{key: _upper(read.text(key)) for key in WEIGHTS_SETTINGS},
        renderer=read.text("renderer") or asked.renderer,
        parser=read.text("parser") or asked.parser,
        requires=(read.text("requires") or "").removeprefix("v") or asked.requires,
    )


def _upper(text: str | None) -> str | None:
    return text.upper() if text else None


def _parameters(read: _Reader) -> dict[str, ParameterValue]:
    parameters: dict[str, ParameterValue] = {}
    for key, node in read.pairs("parameters"):
        try:
            parameters[key] = normalize_parameter(key, to_plain(node))
        except InvalidValue:
            continue  # check.py has reported it
    return parameters


def _messages(node: Node | None) -> list[Message]:
    items = node.nodes if isinstance(node, Items) else ()
    pairs = [cast("dict[str, str]", to_plain(item)) for item in items]
    return [Message(pair["role"], pair["content"]) for pair in pairs]


def _resident(read: _Reader) -> bool | float | None:
    node = read.node("resident")
    if isinstance(node, Scalar) and isinstance(node.value, bool):
        return node.value
    return read.parsed("resident", parse_duration, None)


def _expect(node: Node | None) -> tuple[Mapping[str, object], ...]:
    tables = node.nodes if isinstance(node, Items) else [node] if node else []
    return tuple(cast("Mapping[str, object]", to_plain(table)) for table in tables)


def build_policy(table: Table) -> tuple[Policy, list[Problem]]:
    """The policy; what cannot be read is a problem and keeps its default."""
    read = _Reader(table, [])
    change, allow = read.below("max_change"), read.below("allow")
    prune = read.text("prune")
    policy = Policy(
        prune="owned" if prune == "owned" else read.all("prune", NamePattern.parse) or False,
        protect=read.all("protect", NamePattern.parse),
        ignore=read.all("ignore", NamePattern.parse),
        max_delete=change.parsed("delete", _limit, None),
        max_replace=change.parsed("replace", _limit, None),
        registries=allow.all("registries", _registry) if allow.has("registries") else None,
        licenses=allow.all("licenses", str) if allow.has("licenses") else None,
        cloud=allow.flag("cloud", False),
        min_version=read.parsed("min_version", _version, None),
        busy=cast('Literal["refuse", "wait", "force"] | None', read.text("busy")),
        windows=_windows(read),
    )
    return policy, read.problems


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


def _windows(read: _Reader) -> tuple[Window, ...]:
    node = read.node("windows")
    tables = node.nodes if isinstance(node, Items) else ()
    return tuple(_window(_Reader(cast("Table", table), read.problems)) for table in tables)


def _window(read: _Reader) -> Window:
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
        raise InvalidValue(f"'{text[:60]}' is not a span of hours", hint='write it like "22:00-06:00"')
    hour, minute = match[3].split(":")
    begins, ends = int(match[1]) * 60 + int(match[2]), int(hour) * 60 + int(minute)
    if begins == ends:
        raise InvalidValue(f"'{text[:60]}' ends when it begins", hint="leave hours: out for the whole day")
    return begins, ends


def _zone(text: str) -> str:
    if not _ZONE.fullmatch(text):
        raise InvalidValue(f"'{text[:60]}' is not a time zone", hint="write an IANA name like Europe/Paris")
    if text.upper() == "UTC":
        return text
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # also for a folder of zones or a corrupt file
        hint = "write an IANA name like Europe/Paris; a system without time zones needs: pip install tzdata"
        raise InvalidValue(f"'{text[:60]}' is not a time zone that this system knows", hint=hint) from None
    return text
