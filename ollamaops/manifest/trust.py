"""What a manifest may not ask for when nobody here knows who wrote it: `--untrusted`, as for a fork's pull request.

Such a manifest names no program to run, no file outside its folder, no variable but those allowed, and no address but
those of the trusted base, which is a manifest of ours. Everything that it asks for all the same is a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from urllib.parse import urlsplit

from msgspec import Struct

from ollamaops.errors import Problem
from ollamaops.files.location import RemoteRef
from ollamaops.manifest.document import Items, Node, Scalar, Table, to_plain
from ollamaops.manifest.merge import as_entry, expand_hosts, join, overlay, table_at, with_defaults
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Build, HostSpec, ModelSpec, Place, Pull, Tls
from ollamaops.manifest.variables import refused_variable
from ollamaops.names import ModelName

_PUBLIC = frozenset({"registry.ollama.ai", "hf.co", "huggingface.co"})
_NOT_TRUSTED = "for a manifest that is not trusted"
_HOSTS_HINT = "take the hosts from a trusted manifest: --hosts-from FILE"
_REGISTRIES_HINT = "a trusted manifest may allow it: --hosts-from FILE, under policy.allow.registries"


class Base(Struct, frozen=True, kw_only=True):
    """The trusted manifest: its hosts, their entries as they are written, and the registries that it allows."""

    shown: str
    hosts: tuple[HostSpec, ...]
    entries: Mapping[str, object]
    registries: frozenset[str] = frozenset()


class Untrusted(Struct, frozen=True, kw_only=True):
    """What a manifest that is not trusted may use all the same.

    `variables` of the environment may be read. Without `base` its own hosts stand, unless they would be asked.
    """

    variables: frozenset[str] = frozenset()
    base: Base | None = None
    asks_hosts: bool = True


def written_hosts(roots: Sequence[Table], environment: str | None) -> dict[str, tuple[Place, object]]:
    """Where each host's entry stands, and the entry as it is written, with what applies to it from elsewhere."""
    whole, _ = join([about_hosts(root) for root in roots])
    hosts, _ = expand_hosts(whole.get("hosts"))
    if hosts is not None:
        whole = Table(whole.place, {**whole.nodes, "hosts": hosts}, whole.keys)
    changes = table_at(whole, "environments", environment or "")
    if changes is not None:
        more, _ = expand_hosts(changes.get("hosts"))
        nodes = {**changes.nodes, **({"hosts": more} if more is not None else {})}
        whole, _ = overlay(whole, Table(changes.place, nodes, changes.keys))
    entries = table_at(whole, "hosts") or Table(whole.place)
    defaults = table_at(whole, "defaults", "host")
    return {
        name: (entries.keys[name], to_plain(with_defaults(defaults, as_entry(node))))
        for name, node in entries.nodes.items()
    }


def about_hosts(root: Table, also: Sequence[str] = ()) -> Table:
    """What of a file, or of an environment in it, is about hosts, and the keys in `also`."""
    nodes = {key: node for key in ("hosts", *also) if (node := root.get(key)) is not None}
    if (defaults := table_at(root, "defaults", "host")) is not None:
        nodes["defaults"] = Table(root.keys["defaults"], {"host": defaults}, {"host": defaults.place})
    if (environments := table_at(root, "environments")) is not None:
        tables = {name: node for name, node in environments.nodes.items() if isinstance(node, Table)}
        parts = {name: about_hosts(node, also) for name, node in tables.items()}
        nodes["environments"] = Table(environments.place, parts, environments.keys)
    return Table(root.place, nodes, root.keys)


def without_hosts(root: Table) -> Table:
    """The file without what is about hosts."""
    nodes = {key: node for key, node in root.nodes.items() if key != "hosts"}
    if (defaults := table_at(root, "defaults")) is not None:
        others = {key: node for key, node in defaults.nodes.items() if key != "host"}
        nodes["defaults"] = Table(defaults.place, others, defaults.keys)
    if (environments := table_at(root, "environments")) is not None:
        pairs = environments.nodes.items()
        parts = {name: without_hosts(node) if isinstance(node, Table) else node for name, node in pairs}
        nodes["environments"] = Table(environments.place, parts, environments.keys)
    return Table(root.place, nodes, root.keys)


def hosts_of_base(
    base: Base, declared: Mapping[str, tuple[Place, object]]
) -> tuple[tuple[HostSpec, ...], list[Problem]]:
    """The base's hosts that are declared (without any, all of them); one that is not as there is a problem."""
    problems = []
    for name, (place, entry) in declared.items():
        if name not in base.entries:
            message = f"host '{name}' is not in {base.shown}, whose hosts alone are asked {_NOT_TRUSTED}"
            problems.append(problem_at(place, message, "leave it out until somebody has added it there"))
        elif entry != base.entries[name]:
            message = f"host '{name}' is not as {base.shown} has it, which alone counts {_NOT_TRUSTED}"
            problems.append(problem_at(place, message, "leave it as it is there"))
    return tuple(host for host in base.hosts if not declared or host.name in declared), problems


def check_host_trust(
    table: Table, place: Place, name: str, untrusted: Untrusted, *, is_asked: bool
) -> Iterator[Problem]:
    """The secrets and files in a host's entry that are not for this manifest to use, and the host if it is asked."""
    if is_asked:
        message = f"host '{name}' is not asked {_NOT_TRUSTED}"
        yield problem_at(place, message, f"{_HOSTS_HINT}, or use --sandbox")
    yield from check_secrets(table, untrusted)


def check_secrets(node: Node, untrusted: Untrusted) -> Iterator[Problem]:
    """The commands, absolute paths and variables in the secrets and certificates below a node."""
    if not isinstance(node, Table):
        return
    for key, value in node.nodes.items():
        if key == "command" and isinstance(value, Items):
            yield problem_at(value, f"a command is not run {_NOT_TRUSTED}", _HOSTS_HINT)
        elif key == "env" and isinstance(value, Scalar) and value.text not in untrusted.variables:
            message, hint = refused_variable(value.text if value.secret_as is None else value.shown)
            yield problem_at(value, message, f"{_HOSTS_HINT}; {hint}")
        elif key in ("file", *Tls.__struct_fields__) and isinstance(value, Scalar):
            if PurePath(value.text).is_absolute():
                yield problem_at(value, f"an absolute path is not read {_NOT_TRUSTED}", _HOSTS_HINT)
        else:
            yield from check_secrets(value, untrusted)


def check_addresses(models: Sequence[ModelSpec], untrusted: Untrusted) -> Iterator[Problem]:
    """The registries and servers of weights that would be asked for a model, and that nobody has allowed."""
    allowed = _PUBLIC | (untrusted.base.registries if untrusted.base else frozenset())
    for model in models:
        for where in _asked(model):
            if isinstance(where, RemoteRef) and where.scheme == "s3":
                message = f"s3:// is not read {_NOT_TRUSTED}: it takes the credentials of this machine"
                yield problem_at(model.place, message, "use an address that everybody can read")
            elif (address := _address_of(where)) not in allowed:
                message = f"{address} is not asked {_NOT_TRUSTED}"
                yield problem_at(model.place, message, _REGISTRIES_HINT)


def _asked(model: ModelSpec) -> Iterator[ModelName | RemoteRef]:
    source = model.source
    names = [source.ref] if isinstance(source, Pull) else []
    if isinstance(source, Build):
        names = [source.base] if source.base else []
        files = [file.path for file in (*source.files, *source.adapters, *source.drafts)]
        yield from (path for path in files if isinstance(path, RemoteRef))
    yield from (*names, *((model.push,) if model.push else ()))


def _address_of(where: ModelName | RemoteRef) -> str:
    if isinstance(where, ModelName):
        return where.registry_host.lower()
    return "hf.co" if where.scheme == "hf" else urlsplit(str(where)).netloc.lower()
