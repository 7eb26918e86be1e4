"""Entries of a manifest as YAML text: what `import` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import yaml

from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull
from ollamaops.plan.importing import Imported

_HEAD = """\
# yaml-language-server: $schema=./ollamaops.schema.json
# Written by `ollamaops import` from {host} (Ollama {version}).
# A model that is only named is left as it is while it is there, and pulled where it is missing. If it was made from
# local files, give them with files: or modelfile:, so that other servers can have it too.
"""


def render_manifest(imported: Imported, *, host: str, url: str, version: str) -> str:
    """The manifest for one host, with comments on what was left out."""
    cloud = any(spec.name.source_suffix == "cloud" for spec in imported.specs)
    document: dict[str, object] = {"version": 1, "hosts": {host: {"url": url}}}
    document["models"] = [_entry(spec) for spec in imported.specs]
    if cloud:
        document["policy"] = {"allow": {"cloud": True}}
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    left_out = "".join(f"# left out: {name}: {why}\n" for name, why in sorted(imported.left_out.items()))
    return _HEAD.format(host=host, version=version) + text + left_out


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
        "messages": [{"role": message.role, "content": message.content} for message in build.messages],
        "license": list(build.licenses),
        "renderer": build.renderer,
        "parser": build.parser,
        "requires": build.requires,
    }
    return {name: value for name, value in fields.items() if value or value == ""}


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, where YAML can carry it so."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
