"""Paths → Manifest: the way into this room. Reads through sources.py, disk.py and gather.py, the only ones that do.

Decides in which order the pure steps run: fill in variables, check, join, lay the environment over, put defaults
under, gather, build, check across entries. Leaves each step to its module. Easily missed: what a check refuses is
cut out and the rest is checked on, so that one run reports every problem of every file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ollamaops.errors import InvalidValue, ManifestError, Problem
from ollamaops.manifest.build import build_host, build_model, build_policy
from ollamaops.manifest.check import check_entry, check_host, check_hosts, check_version, keep_useful
from ollamaops.manifest.crosscheck import Written, check_models
from ollamaops.manifest.disk import Disk, is_there
from ollamaops.manifest.document import Items, Node, Scalar, Table
from ollamaops.manifest.entry_files import Gatherer
from ollamaops.manifest.hosts import LOCAL_HOST, labels_of, matches, parse_ollama_host
from ollamaops.manifest.manifest_files import ManifestFile, SourceReader
from ollamaops.manifest.merge import (
    as_entry,
    cut,
    expand_hosts,
    is_null,
    join,
    overlay,
    paths_to,
    with_defaults,
    without_nulls,
)
from ollamaops.manifest.problems import Findings, did_you_mean
from ollamaops.manifest.schema import schema_flaws
from ollamaops.manifest.types import AbsentSpec, HostSpec, Manifest, ModelSpec, Place, Update
from ollamaops.manifest.variables import Variables
from ollamaops.manifest.warnings import warn_of_capabilities, warn_of_labels

DEFAULT_FILE = "ollamaops.yaml"
DEFAULT_FOLDER = "manifests"

# variables are read where they are used, so that one that is not used here may lack its environment
_NOT_FILLED = frozenset({"$schema", "version", "include", "vars", "environments"})


def default_paths(cwd: Path) -> tuple[Path, ...]:
    """`ollamaops.yaml` in the folder, else `manifests/`; ManifestError if neither is there."""
    for name in (DEFAULT_FILE, DEFAULT_FOLDER):
        if is_there(cwd / name):
            return (cwd / name,)
    message = f"no manifest here: neither {DEFAULT_FILE} nor a folder {DEFAULT_FOLDER}"
    raise ManifestError(
        [Problem(str(cwd), 0, 0, message, "write one with: ollamaops init, or name one with -f")]
    )


def load_manifest(
    paths: Sequence[str | Path],
    *,
    environment: str | None = None,
    allow_outside: bool = False,
    environ: Mapping[str, str] = os.environ,
    stdin: BinaryIO | None = None,
    locked: bool = False,
) -> Manifest:
    """What the files declare, for one environment. ManifestError with every problem of every file.

    `paths` are files, folders (all their *.yaml, *.yml and *.json) or `-` (stdin); none means `default_paths` of the
    current folder. `environ` is read for `${env:…}` and OLLAMA_HOST. `allow_outside` lets paths leave the
    manifest's folder. `locked`, whether there is a lock file, makes `locked` the default of `update`.
    """
    findings, warnings = Findings(), Findings()
    reader = SourceReader(findings, stdin or sys.stdin.buffer, allow_outside=allow_outside)
    files = reader.read_all(paths or default_paths(Path.cwd()))
    whole = _combine(files, environment, environ, findings)
    disk = Disk({file.shown: file.folder for file in files}, findings, allow_outside=allow_outside)
    hosts = _hosts(whole, disk, environ, findings)
    entries = _entries(whole)
    specs = _models(entries, Gatherer(disk, findings, warnings), "locked" if locked else "missing", findings)
    models = tuple(spec for spec in specs if isinstance(spec, ModelSpec))
    absent = tuple(spec for spec in specs if isinstance(spec, AbsentSpec))
    written = Written.of(entries)
    check_hosts(hosts, findings)
    check_models(models, absent, hosts, written, findings)
    policy = build_policy(_table_at(whole, "policy") or Table(Place()), findings)
    _warn_of_nowhere(models, hosts, written, warnings)
    warn_of_labels(models, hosts, warnings)
    warn_of_capabilities(models, warnings)
    if findings.problems:
        raise ManifestError(tuple(dict.fromkeys(findings.problems)))
    return Manifest(
        root=files[0].folder.root,
        files=tuple(file.shown for file in files),
        hosts=hosts,
        models=models,
        absent=absent,
        policy=policy,
        warnings=ManifestError(tuple(dict.fromkeys(warnings.problems))).problems,
        state="server" if _is_on_server(whole.get("state")) else "local",
    )


def _is_on_server(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value == "server"


def _combine(
    files: Sequence[ManifestFile], environment: str | None, environ: Mapping[str, str], findings: Findings
) -> Table:
    """The files as one tree: variables filled in, checked, joined, ranges unfolded, the environment laid over."""
    roots = [file.root for file in files if check_version(file.root, findings)]
    _require_environment(environment, roots, findings)
    here = Variables(_variables(roots, environment), environ, findings)
    remote_weights = Variables(_variables(roots, None), environ, Findings())
    filled = [_filled(root, environment, here, remote_weights) for root in roots]
    mute = here.unresolved | remote_weights.unresolved
    whole = join([_checked(root, mute, findings) for root in filled], findings)
    changes = _table_at(whole, "environments", environment or "")
    whole = _unfolded(
        replace(whole, nodes={key: node for key, node in whole.nodes.items() if key != "environments"}),
        findings,
    )
    if changes is not None:
        whole = _checked(overlay(whole, _unfolded(changes, findings), findings), mute, findings)
    if "models" not in whole.nodes and not findings.problems:
        hint = "begin with models: and a list of names"
        findings.add(Place(files[0].shown), "no models: a manifest lists them, if only as []", hint)
    return whole


def _table_at(root: Table, *path: str) -> Table | None:
    node: Node | None = root
    for key in path:
        node = node.get(key) if isinstance(node, Table) else None
    return node if isinstance(node, Table) else None


def _require_environment(environment: str | None, roots: Sequence[Table], findings: Findings) -> None:
    tables = [table for root in roots if (table := _table_at(root, "environments"))]
    known = sorted({name for table in tables for name in table.nodes})
    if environment is None or environment in known or not roots:
        return
    hint = f"known here: {', '.join(known)}" if known else "no file has environments:"
    place = tables[0].place if tables else Place(roots[0].place.path)
    findings.add(place, f"unknown environment '{environment}'{did_you_mean(environment, known)}", hint)


def _variables(roots: Sequence[Table], environment: str | None) -> Table:
    """The variables of all files, those of the environment over the others."""
    nodes: dict[str, Node] = {}
    for path in (("vars",), ("environments", environment or "", "vars")):
        for root in roots:
            nodes.update((_table_at(root, *path) or Table(Place())).nodes)
    return Table(Place(), {name: node for name, node in nodes.items() if not is_null(node)})


def _filled(root: Table, environment: str | None, here: Variables, remote_weights: Variables) -> Table:
    """The file with its references filled in; what other environments lack here is no problem of this one."""
    nodes = {key: node if key in _NOT_FILLED else here.fill(node) for key, node in root.nodes.items()}
    if (table := _table_at(root, "environments")) is not None:
        pairs = table.nodes.items()
        filled = {name: (here if name == environment else remote_weights).fill(node) for name, node in pairs}
        nodes["environments"] = replace(table, nodes=filled)
    return replace(root, nodes=nodes)


def _checked(root: Table, mute: Set[Place], findings: Findings) -> Table:
    """What is left of the tree when schema.json has spoken. Places in `mute` have been complained of already."""
    environments = root.get("environments")
    nodes = (
        root.nodes if environments is None else {**root.nodes, "environments": without_nulls(environments)}
    )
    flaws = [
        flaw
        for flaw in schema_flaws(replace(root, nodes=nodes))
        if Place(flaw.problem.path, flaw.problem.line, flaw.problem.column) not in mute
    ]
    findings.extend(flaw.problem for flaw in flaws)
    return cut(root, [*(flaw.path for flaw in flaws), *(paths_to(root, mute) if mute else ())])


def _unfolded(table: Table, findings: Findings) -> Table:
    hosts = expand_hosts(table.get("hosts"), findings)
    return table if hosts is None else replace(table, nodes={**table.nodes, "hosts": hosts})


def _hosts(whole: Table, disk: Disk, environ: Mapping[str, str], findings: Findings) -> tuple[HostSpec, ...]:
    """The declared hosts; without any, the one that OLLAMA_HOST names."""
    hosts = whole.get("hosts")
    if not isinstance(hosts, Table):
        hosts = _local_host(environ.get("OLLAMA_HOST", ""), findings)
    elif not hosts.nodes and not findings.problems:
        findings.add(hosts, "no host is left", "leave hosts: out for OLLAMA_HOST or http://127.0.0.1:11434")
    built = []
    for name, node in hosts.nodes.items():
        table = with_defaults(_table_at(whole, "defaults", "host"), as_entry(node))
        check_host(table, findings)
        built.append(build_host(name, table, hosts.keys[name], disk.find_trusted, findings))
    return tuple(built)


def _local_host(address: str, findings: Findings) -> Table:
    place = Place("OLLAMA_HOST") if address else Place()
    try:
        url = parse_ollama_host(address)
    except InvalidValue as error:
        findings.add(place, f"the environment variable is {error}", error.hint)
        return Table(place)
    host = Table(place, {"url": Scalar(place, url, url)}, {"url": place})
    return Table(place, {LOCAL_HOST: host}, {LOCAL_HOST: place})


def _entries(whole: Table) -> list[Table]:
    """The models' entries, each with the defaults that mean something for it."""
    models, defaults = whole.get("models"), _table_at(whole, "defaults", "model")
    entries = [as_entry(node) for node in (models.nodes if isinstance(models, Items) else ())]
    return (
        entries
        if defaults is None
        else [with_defaults(keep_useful(defaults, entry), entry) for entry in entries]
    )


def _models(
    entries: Sequence[Table], gatherer: Gatherer, update: Update, findings: Findings
) -> tuple[ModelSpec | AbsentSpec, ...]:
    specs = []
    for entry in entries:
        gathered = gatherer.gather(entry)
        check_entry(entry, gathered, findings)
        specs.append(build_model(entry, gathered, update, findings))
    return tuple(spec for spec in specs if spec is not None)


def _warn_of_nowhere(
    models: Sequence[ModelSpec], hosts: Sequence[HostSpec], written: Written, warnings: Findings
) -> None:
    labels = [labels_of(host) for host in hosts]
    for model in models:
        if not any(matches(model.where, one) for one in labels):
            name = written.say(model.name)
            message = f"'{name}' is meant for no host: none has the labels that its where: asks for"
            warnings.add(model.place, message, "correct where:, or the labels of a host")
