"""Entries of a manifest as YAML text: what `import` writes.

Every value is written so that load.py reads the same value back. A host's entry is written as it was declared: with
references to secrets and to the environment, never with what they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never, cast

import yaml

from ollamaops.errors import OllamaopsError
from ollamaops.manifest.document import parse_document, resolve_plain, to_plain
from ollamaops.manifest.parameters import PARAMETER_TYPES
from ollamaops.manifest.types import (
    Auth,
    BearerAuth,
    Build,
    Copy,
    HostSpec,
    ModelSpec,
    Pull,
    Secret,
    SecretFromCommand,
    SecretFromEnv,
    SecretFromFile,
    Tls,
)
from ollamaops.manifest.variables import escape_references
from ollamaops.plan.importing import Imported
from ollamaops.report.words import clean, clean_line

_HEAD = """\
# yaml-language-server: $schema=./ollamaops.schema.json
# Written by `ollamaops import` from {host} (Ollama {version}).
# A model that is only named is left as it is while it is there, and pulled where it is missing. If it was made from
# local files, give them with files: or modelfile:, so that other servers can have it too.
"""


def render_manifest(imported: Imported, *, host: HostSpec, version: str) -> str:
    """The manifest for one host, with comments on what was left out."""
    cloud = any(spec.name.source_suffix == "cloud" for spec in imported.specs)
    document: dict[str, object] = {"version": 1, "hosts": {host.name: _host(host)}}
    document["models"] = _escaped([_entry(spec) for spec in imported.specs])
    if cloud:
        document["policy"] = {"allow": {"cloud": True}}
    text = _dump(document)
    left_out = [f"# left out: {clean(f'{name}: {why}')}\n" for name, why in sorted(imported.left_out.items())]
    return "".join((_HEAD.format(host=clean(host.name), version=clean(version)), text, *left_out))


def _dump(document: object) -> str:
    """The document as YAML that reads back as the same. Characters that hide or reorder text are escaped."""
    for allow_unicode in (True, False):
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=110)
        if all(clean_line(line) == line for line in text.split("\n")):
            break
    read = parse_document(text.encode(), "-").root
    if read is None or to_plain(read) != document:
        raise OllamaopsError("what was read of the host cannot be written as a manifest that says the same")
    return text


def _escaped(value: object) -> object:
    """The value with every text written so that it is read as it is. Keys are never filled in."""
    match value:
        case str():
            return escape_references(value)
        case list():
            return [_escaped(item) for item in value]
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
        case _:
            return value


# a host


def _host(host: HostSpec) -> dict[str, object]:
    """The entry; what has its default is left out. Paths are absolute, since the text may end up anywhere."""
    usual = HostSpec(name="", url="")
    fields: Mapping[str, object] = {
        "url": host.url,
        "labels": dict(host.labels),
        "auth": _auth(host.auth),
        "headers": {
            name: value if isinstance(value, str) else _secret(value) for name, value in host.headers.items()
        },
        "tls": _tls(host.tls),
        "proxy": host.proxy,
        "timeout": _duration(host.timeout_s) if host.timeout_s != usual.timeout_s else None,
        "stall": _duration(host.stall_s) if host.stall_s != usual.stall_s else None,
        "parallel": host.parallel if host.parallel != usual.parallel else None,
    }
    entry = cast("dict[str, object]", _escaped({name: value for name, value in fields.items() if value}))
    if host.disk_bytes is not None:
        entry["disk"] = host.disk_bytes
    for path, text in host.written.items():
        _put(entry, path[1:] if path[:2] == ("auth", "headers") else path, text)
    return entry


def _auth(auth: Auth | None) -> dict[str, object]:
    match auth:
        case None:
            return {}
        case BearerAuth(token):
            return {"bearer": _secret(token)}
        case _:
            return {"basic": {"user": auth.user, "password": _secret(auth.password)}}


def _secret(secret: Secret) -> dict[str, object]:
    match secret:
        case SecretFromEnv(name):
            return {"env": name}
        case SecretFromFile(path):
            return {"file": str(path)}
        case SecretFromCommand(argv):
            return {"command": list(argv)}
        case _:
            assert_never(secret)


def _tls(tls: Tls) -> dict[str, object]:
    paths = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
    written: dict[str, object] = {name: str(path) for name, path in paths.items() if path is not None}
    return written if tls.verify else {**written, "verify": False}


def _duration(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def _put(entry: dict[str, object], path: tuple[str | int, ...], text: str) -> None:
    """Write `text` at the path, in the place of what it stands for."""
    *way, last = path
    at: object = entry
    for step in way:
        at = cast("dict[str | int, object]", at)[step]
    cast("dict[str | int, object]", at)[last] = text


# a model


def _entry(spec: ModelSpec) -> str | dict[str, object]:
    name = str(spec.name)
    match spec.source:
        case Pull():
            return name
        case Copy(source=source):
            return {"name": name, "copy": str(source)}
        case Build() as build:
            return {"name": name, **_build(build)}
        case _:
            assert_never(spec.source)


def _build(build: Build) -> dict[str, object]:
    fields: Mapping[str, object] = {
        "from": str(build.base),
        "template": build.template,
        "system": build.system,
        "parameters": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in sorted(build.parameters.items())
        },
        "allow_unknown_parameters": not build.parameters.keys() <= PARAMETER_TYPES.keys(),
        "messages": [{"role": role, "content": content} for role, content in build.messages],
        "license": list(build.licenses),
        "renderer": build.renderer,
        "parser": build.parser,
        "requires": build.requires,
    }
    return {name: value for name, value in fields.items() if value or value == ""}


_OTHER_BREAKS = frozenset("\r\x85\u2028\u2029\ufeff")


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, where YAML can carry it so; what the loader takes for a number in quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if resolve_plain(text) == text else "'"
    if not _OTHER_BREAKS.isdisjoint(text):  # which YAML reads as the end of a line
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
