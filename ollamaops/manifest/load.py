"""Paths → Manifest, the way into this room: read files, merge them, check and build each entry, check across entries.

What a check refuses is cut out and the rest is checked further, so that one run reports every problem of every file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from ollamaops.errors import InvalidValue, ManifestError, Problem, did_you_mean
from ollamaops.manifest.build import build_host, build_model, build_policy
from ollamaops.manifest.check import check_entry, check_host, check_hosts, check_version, keep_useful
from ollamaops.manifest.crosscheck import Written, check_models, warn_of_models
from ollamaops.manifest.disk import Disk, is_there
from ollamaops.manifest.document import Items, Node, Scalar, Table
from ollamaops.manifest.entry_files import collect_files
from ollamaops.manifest.hosts import LOCAL_HOST, parse_ollama_host
from ollamaops.manifest.manifest_files import read_manifest_files
from ollamaops.manifest.merge import (
    as_entry,
    cut,
    expand_hosts,
    is_null,
    join,
    overlay,
    paths_to,
    table_at,
    with_defaults,
    without_nulls,
)
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.schema import schema_flaws
from ollamaops.manifest.trust import (
    Base,
    Untrusted,
    about_hosts,
    check_addresses,
    check_host_trust,
    hosts_of_base,
    without_hosts,
    written_hosts,
)
from ollamaops.manifest.types import AbsentSpec, HostSpec, Manifest, ModelSpec, Place, Update
from ollamaops.manifest.variables import Variables

DEFAULT_FILE = "ollamaops.yaml"
DEFAULT_FOLDER = "manifests"
_NO_MODELS = (
    "no models: a manifest lists them, even if the list is []",
    "start with models: and a list of names",
)
_NO_HOST_HINT = "leave hosts: out for OLLAMA_HOST or http://127.0.0.1:11434"

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
    public: Collection[str] = (),
    untrusted: Untrusted | None = None,
) -> Manifest:
    """What the files declare, for one environment. ManifestError with every problem of every file.

    `paths` are files, folders (all their *.yaml, *.yml and *.json) or `-` (stdin); none means `default_paths` of the
    current folder. `environ` is read for `${env:…}` and OLLAMA_HOST. `allow_outside` lets paths leave the
    manifest's folder. `locked`, whether there is a lock file, makes `locked` the default of `update`. `public` are
    the variables that everybody may know. `untrusted` is what a manifest that strangers wrote may use.
    """
    files, problems = read_manifest_files(
        paths or default_paths(Path.cwd()), stdin or sys.stdin.buffer, allow_outside=allow_outside
    )
    roots = [file.root for file in files]
    base = untrusted.base if untrusted else None
    declared = written_hosts(roots, environment) if base else {}
    kept = [without_hosts(root) for root in roots] if base else roots
    whole, hidden, found = _merge(kept, environment, environ, public, only_public=untrusted is not None)
    problems += found
    if "models" not in whole.nodes and not problems:
        problems.append(problem_at(Place(files[0].shown), *_NO_MODELS))
    disk = Disk({file.shown: file.folder for file in files}, allow_outside=allow_outside)
    hosts, found = hosts_of_base(base, declared) if base else _hosts(whole, disk, environ, untrusted)
    problems += found
    if not hosts and not problems:
        problems.append(problem_at(whole.nodes.get("hosts", whole), "no host is left", _NO_HOST_HINT))
    entries = _entries(whole)
    specs, found, warnings = _models(entries, disk, "locked" if locked else "missing")
    problems += found
    models = tuple(spec for spec in specs if isinstance(spec, ModelSpec))
    absent = tuple(spec for spec in specs if isinstance(spec, AbsentSpec))
    if untrusted:
        problems += check_addresses(models, untrusted)
    policy, found = build_policy(table_at(whole, "policy") or Table(Place()))
    written = Written.of(entries)
    problems += [*found, *check_hosts(hosts), *check_models(models, absent, hosts, written)]
    if problems:
        raise ManifestError(_each_once(problems))
    warnings += warn_of_models(models, hosts, written)
    state = whole.get("state")
    return Manifest(
        root=files[0].folder.root,
        files=tuple(file.shown for file in files),
        hosts=hosts,
        models=models,
        absent=absent,
        policy=policy,
        warnings=ManifestError(_each_once(warnings)).problems,  # sorted
        state="server" if isinstance(state, Scalar) and state.value == "server" else "local",
        is_trusted=untrusted is None,
        hidden=hidden,
    )


def load_base(path: str, *, environment: str | None = None, environ: Mapping[str, str] = os.environ) -> Base:
    """The hosts of a trusted manifest, and the registries that it allows. ManifestError."""
    files, problems = read_manifest_files([path], sys.stdin.buffer, allow_outside=False)
    parts = [about_hosts(file.root, ("version", "vars", "policy")) for file in files]
    whole, _, found = _merge(parts, environment, environ)
    problems += found
    hosts, found = _hosts(
        whole, Disk({file.shown: file.folder for file in files}, allow_outside=False), environ
    )
    policy, unreadable = build_policy(table_at(whole, "policy") or Table(Place()))
    problems += [*found, *unreadable]
    if problems:
        raise ManifestError(_each_once(problems))
    written = written_hosts([file.root for file in files], environment)
    return Base(
        shown=path,
        hosts=hosts,
        entries={name: entry for name, (_, entry) in written.items()},
        registries=frozenset(policy.registries or ()),
    )


def _each_once(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(problems))


def _merge(
    files: Sequence[Table],
    environment: str | None,
    environ: Mapping[str, str],
    public: Collection[str] = (),
    *,
    only_public: bool = False,
) -> tuple[Table, Mapping[str, str], list[Problem]]:
    """The files as one tree: variables filled in, checked, joined, ranges unfolded, the environment laid over.

    Also what came from the process's environment, with how it is shown.
    """
    problems = [problem for root in files if (problem := check_version(root))]
    roots = [root for root in files if check_version(root) is None]
    problems += _require_environment(environment, roots)
    # what other environments lack here is not a problem
    here, others = (
        Variables(_variables(roots, name), environ, public, only_public=only_public)
        for name in (environment, None)
    )
    filled = [_filled(root, environment, here, others) for root in roots]
    problems += here.problems
    reported = here.unresolved | others.unresolved
    checked = [_checked(root, reported) for root in filled]
    whole, found = join([root for root, _ in checked])
    problems += [*(problem for _, flaws in checked for problem in flaws), *found]
    changes = table_at(whole, "environments", environment or "")
    nodes = {key: node for key, node in whole.nodes.items() if key != "environments"}
    whole, found = _unfolded(replace(whole, nodes=nodes))
    problems += found
    if changes is not None:
        changes, found = _unfolded(changes)
        problems += found
        whole, found = overlay(whole, changes)
        problems += found
        whole, found = _checked(whole, reported)
        problems += found
    return whole, here.hidden, problems


def _require_environment(environment: str | None, roots: Sequence[Table]) -> Iterator[Problem]:
    tables = [table for root in roots if (table := table_at(root, "environments"))]
    known = sorted({name for table in tables for name in table.nodes})
    if environment is None or environment in known or not roots:
        return
    hint = f"known here: {', '.join(known)}" if known else "no file has environments:"
    place = tables[0].place if tables else Place(roots[0].place.path)
    yield problem_at(place, f"unknown environment '{environment}'{did_you_mean(environment, known)}", hint)


def _variables(roots: Sequence[Table], environment: str | None) -> Table:
    """The variables of all files, those of the environment over the others."""
    nodes: dict[str, Node] = {}
    for path in (("vars",), ("environments", environment or "", "vars")):
        for root in roots:
            nodes.update((table_at(root, *path) or Table(Place())).nodes)
    return Table(Place(), {name: node for name, node in nodes.items() if not is_null(node)})


def _filled(root: Table, environment: str | None, here: Variables, others: Variables) -> Table:
    """The file with its references filled in, in other environments by `others`."""
    nodes = {key: node if key in _NOT_FILLED else here.fill(node) for key, node in root.nodes.items()}
    if (table := table_at(root, "environments")) is not None:
        pairs = table.nodes.items()
        filled = {name: (here if name == environment else others).fill(node) for name, node in pairs}
        nodes["environments"] = replace(table, nodes=filled)
    return replace(root, nodes=nodes)


def _checked(root: Table, reported: Set[Place]) -> tuple[Table, list[Problem]]:
    """What schema.json leaves of the tree. Values at places in `reported` have a problem already and go too."""
    environments = root.get("environments")
    nodes = (
        root.nodes if environments is None else {**root.nodes, "environments": without_nulls(environments)}
    )
    flaws = [
        flaw
        for flaw in schema_flaws(replace(root, nodes=nodes))
        if Place(flaw.problem.path, flaw.problem.line, flaw.problem.column) not in reported
    ]
    unresolved = paths_to(root, reported) if reported else ()
    return cut(root, [*(flaw.path for flaw in flaws), *unresolved]), [flaw.problem for flaw in flaws]


def _unfolded(table: Table) -> tuple[Table, list[Problem]]:
    hosts, problems = expand_hosts(table.get("hosts"))
    return (table if hosts is None else replace(table, nodes={**table.nodes, "hosts": hosts})), problems


def _hosts(
    whole: Table, disk: Disk, environ: Mapping[str, str], untrusted: Untrusted | None = None
) -> tuple[tuple[HostSpec, ...], list[Problem]]:
    """The declared hosts; without any, the one that OLLAMA_HOST names."""
    declared = whole.get("hosts")
    problems: list[Problem] = []
    if isinstance(declared, Table):
        hosts = declared
    else:
        hosts, problems = _local_host(environ.get("OLLAMA_HOST", ""))
    built = []
    for name, node in hosts.nodes.items():
        table = with_defaults(table_at(whole, "defaults", "host"), as_entry(node))
        host, found = build_host(name, table, hosts.keys[name], disk.find_trusted)
        built.append(host)
        problems += [*check_host(table), *found]
        if untrusted:
            is_asked = untrusted.asks_hosts and declared is hosts
            problems += check_host_trust(table, hosts.keys[name], name, untrusted, is_asked=is_asked)
    return tuple(built), problems


def _local_host(address: str) -> tuple[Table, list[Problem]]:
    place = Place("OLLAMA_HOST") if address else Place()
    try:
        url = parse_ollama_host(address)
    except InvalidValue as error:
        return Table(place), [problem_at(place, f"the environment variable is {error}", error.hint)]
    host = Table(place, {"url": Scalar(place, url, url)}, {"url": place})
    return Table(place, {LOCAL_HOST: host}, {LOCAL_HOST: place}), []


def _entries(whole: Table) -> list[Table]:
    """The models' entries, each with the defaults that apply to it."""
    models, defaults = whole.get("models"), table_at(whole, "defaults", "model")
    entries = [as_entry(node) for node in (models.nodes if isinstance(models, Items) else ())]
    if defaults is None:
        return entries
    return [with_defaults(keep_useful(defaults, entry), entry) for entry in entries]


def _models(
    entries: Sequence[Table], disk: Disk, update: Update
) -> tuple[list[ModelSpec | AbsentSpec], list[Problem], list[Problem]]:
    """What the entries declare, the problems, and the warnings."""
    specs: list[ModelSpec | AbsentSpec] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for entry in entries:
        files, of_files, warned = collect_files(entry, disk)
        spec, unreadable = build_model(entry, files, update)
        problems += [*of_files, *check_entry(entry, files), *unreadable]
        warnings += warned
        if spec is not None:
            specs.append(spec)
    return specs, problems, warnings
