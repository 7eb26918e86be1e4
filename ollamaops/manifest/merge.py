"""Several trees → one: files joined, an environment laid over them, defaults laid under hosts and models.

The only problems found here are those that merging shows: a key given in two files, a null that removes nothing.
Values with alternatives inside (`auth`, `system`, `push`, `expect` …) are replaced as a whole: `{env: A}` merged with
`{file: B}` would be neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import assert_never

from msgspec.structs import replace

from ollamaops.errors import InvalidName, InvalidValue, Problem, did_you_mean
from ollamaops.manifest.document import Items, Node, Scalar, Table
from ollamaops.manifest.hosts import expand_range
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Place
from ollamaops.names import ModelName, hide_credentials

KeyPath = tuple[str, ...]

# never merged key by key
_WHOLE = frozenset({"auth", "system", "template", "license", "modelfile", "messages", "expect", "push"})
MAX_HOSTS = 100_000
_PER_FILE = frozenset({"$schema", "version", "include"})


def table_at(root: Table, *path: str) -> Table | None:
    """The table at these keys, None if there is none."""
    node: Node | None = root
    for key in path:
        node = node.get(key) if isinstance(node, Table) else None
    return node if isinstance(node, Table) else None


def join(roots: Sequence[Table]) -> tuple[Table, list[Problem]]:
    """The files as one: lists one after the other, mappings united; a value given twice is a problem."""
    problems: list[Problem] = []
    whole = Table(roots[0].place if roots else Place())
    for root in roots:
        part = replace(root, nodes={key: node for key, node in root.nodes.items() if key not in _PER_FILE})
        whole = _unite(whole, part, (), problems)
    return whole, problems


def _unite(first: Table, second: Table, path: KeyPath, problems: list[Problem]) -> Table:
    nodes, keys = dict(first.nodes), dict(first.keys)
    for key, node in second.nodes.items():
        there = nodes.get(key)
        keys.setdefault(key, second.keys[key])
        if there is None:
            nodes[key] = node
        elif isinstance(there, Items) and isinstance(node, Items) and key not in _WHOLE:
            nodes[key] = replace(there, nodes=(*there.nodes, *node.nodes))
        elif isinstance(there, Table) and isinstance(node, Table) and _is_section((*path, key)):
            nodes[key] = _unite(there, node, (*path, key), problems)
        else:
            message = f"'{key}' is given twice: the first one is at {keys[key]}"
            problems.append(problem_at(second.keys[key], message, "keep one of the two"))
    return replace(first, nodes=nodes, keys=keys)


def _is_section(path: KeyPath) -> bool:
    """Whether files may share the mapping at this path; the mapping of one host or one model is in one file."""
    if path[0] == "environments":
        return len(path) < 3 or _is_section(path[2:])
    return len(path) == 1 or path[0] in ("defaults", "policy")


def overlay(base: Table, patch: Table) -> tuple[Table, list[Problem]]:
    """`base` with an environment laid over it: mappings merged, lists replaced, null removes, models by name."""
    problems: list[Problem] = []
    models = patch.get("models")
    if not isinstance(models, Items | Table):
        return _merge(base, patch, "the manifest", problems), problems
    merged = _overlay_models(base.get("models"), models, problems)
    others = {key: node for key, node in patch.nodes.items() if key != "models"}
    whole = _merge(base, replace(patch, nodes=others), "the manifest", problems)
    keys = {"models": patch.keys["models"], **whole.keys}
    return replace(whole, nodes={**whole.nodes, "models": merged}, keys=keys), problems


def _merge(base: Table, patch: Table, name: str, problems: list[Problem]) -> Table:
    """Key by key. `name` is the key that holds the two."""
    nodes, keys = dict(base.nodes), dict(base.keys)
    for key, node in patch.nodes.items():
        there = nodes.get(key)
        keys.setdefault(key, patch.keys[key])
        if is_null(node):
            _remove(nodes, key, node, name, problems)
        elif isinstance(node, Table) and key not in _WHOLE and name != "headers":
            nodes[key] = _merge(there if isinstance(there, Table) else Table(node.place), node, key, problems)
        else:
            nodes[key] = node
    return replace(base, nodes=nodes, keys=keys)


def is_null(node: Node) -> bool:
    """Whether the node is a null, which removes what it is laid over."""
    return isinstance(node, Scalar) and node.value is None


def _remove(nodes: dict[str, Node], key: str, null: Node, name: str, problems: list[Problem]) -> None:
    if nodes.pop(key, None) is not None:
        return
    if name == "parameters":
        nodes[key] = null  # not declared here, so it un-sets the inherited one
        return
    problems.append(
        problem_at(
            null, f"null removes '{key}', which is not in {hide_credentials(name)}{did_you_mean(key, nodes)}"
        )
    )


def without_nulls(node: Node) -> Node:
    """The node without the keys whose value is null: an environment as the schema can check it."""
    if not isinstance(node, Table):
        return node
    kept = {key: without_nulls(value) for key, value in node.nodes.items() if not is_null(value)}
    return replace(node, nodes=kept)


def as_entry(node: Node) -> Table:
    """A model's entry as a mapping; a text is a name."""
    return node if isinstance(node, Table) else Table(node.place, {"name": node}, {"name": node.place})


def _overlay_models(base: Node | None, patch: Items | Table, problems: list[Problem]) -> Items:
    entries = [as_entry(node) for node in base.nodes] if isinstance(base, Items) else []
    for name, place, node in _patches(patch):
        same = [index for index, entry in enumerate(entries) if _name_of(entry) == _key(name)]
        if is_null(node):
            _remove_models(entries, same, name, node, problems)
            continue
        change = as_entry(node)
        for index in same:
            entries[index] = _merge(entries[index], _without_name(change, name), name, problems)
        if not same:
            entries.append(_with_name(change, name, place))
    return Items(base.place if base else patch.place, tuple(entries))


def _patches(patch: Items | Table) -> list[tuple[str, Place, Node]]:
    if isinstance(patch, Table):
        return [(name, patch.keys[name], node) for name, node in patch.nodes.items()]
    named = [(as_entry(node).get("name"), node) for node in patch.nodes]
    return [(name.text, name.place, node) for name, node in named if isinstance(name, Scalar)]


def _without_name(entry: Table, name: str) -> Table:
    """The change to a model that keeps its own spelling, unless the change renames it."""
    if _name_of(entry) != _key(name):
        return entry
    return replace(entry, nodes={key: node for key, node in entry.nodes.items() if key != "name"})


def _with_name(entry: Table, name: str, place: Place) -> Table:
    if "name" in entry.nodes:
        return entry
    nodes: Mapping[str, Node] = {"name": Scalar(place, name, name), **entry.nodes}
    return Table(place, nodes, {"name": place, **entry.keys})


def _remove_models(
    entries: list[Table], same: list[int], name: str, null: Node, problems: list[Problem]
) -> None:
    if not same:
        nodes = [node for entry in entries if isinstance(node := entry.get("name"), Scalar)]
        meant = did_you_mean(name, [hide_credentials(node.text) for node in nodes])
        problems.append(
            problem_at(null, f"null removes '{hide_credentials(name)}', which is not in models{meant}")
        )
    for index in reversed(same):
        del entries[index]


def _name_of(entry: Table) -> str | None:
    name = entry.get("name")
    return _key(name.text) if isinstance(name, Scalar) else None


def _key(name: str) -> str:
    try:
        return ModelName.parse(name).key
    except InvalidName:
        return name


def with_defaults(defaults: Node | None, table: Table) -> Table:
    """`table` over `defaults`; what stands in the table wins."""
    return _under(defaults, table) if isinstance(defaults, Table) else table


def _under(defaults: Table, table: Table) -> Table:
    nodes, keys = dict(defaults.nodes), {**defaults.keys, **table.keys}
    for key, node in table.nodes.items():
        default = nodes.get(key)
        if isinstance(default, Table) and isinstance(node, Table) and key not in _WHOLE:
            nodes[key] = _under(default, node)
        else:
            nodes[key] = node
    return replace(table, nodes=nodes, keys=keys)


# an entry without these cannot be checked
_ESSENTIAL = frozenset({"name", "url", "ensure", "pull", "from", "files", "modelfile", "copy"})
# their parts are independent of each other and are cut one by one
_BY_PART = frozenset({"labels", "headers", "parameters", "sha256", "ignore"})
NodePath = tuple[str | int, ...]


def cut(root: Table, flaws: Iterable[NodePath]) -> Table:
    """The tree without the parts with flaws, cut in pieces large enough that the rest can be checked by itself."""
    kept = _without(root, {_piece(path) for path in flaws})
    assert isinstance(kept, Table), "no piece is the whole tree"
    return kept


def _piece(path: NodePath) -> NodePath:
    match path[0]:
        case "environments" if len(path) > 2:
            return (*path[:2], *_piece(path[2:]))
        case "hosts" | "models" if len(path) > 2 and path[2] not in _ESSENTIAL:
            return path[: 4 if path[2] in _BY_PART else 3]
        case "defaults":
            return path[:3]
        case _:
            return path[:2]


def _without(node: Node, paths: set[NodePath]) -> Node:
    if isinstance(node, Scalar) or not paths:
        return node
    below: dict[str | int, set[NodePath]] = {}
    for path in paths:
        below.setdefault(path[0], set()).add(path[1:])
    gone = {part for part, rests in below.items() if () in rests}
    if isinstance(node, Items):
        items = enumerate(node.nodes)
        return replace(
            node, nodes=tuple(_without(item, below.get(i, set())) for i, item in items if i not in gone)
        )
    pairs = node.nodes.items()
    return replace(
        node, nodes={key: _without(item, below.get(key, set())) for key, item in pairs if key not in gone}
    )


def paths_to(node: Node, places: Set[Place], path: NodePath = ()) -> Iterator[NodePath]:
    """The paths of all values that stand at one of the places."""
    if isinstance(node, Scalar):
        if node.place in places:
            yield path
        return
    parts: Iterable[tuple[str | int, Node]] = (
        node.nodes.items() if isinstance(node, Table) else enumerate(node.nodes)
    )
    for part, item in parts:
        yield from paths_to(item, places, (*path, part))


def expand_hosts(hosts: Node | None) -> tuple[Table | None, list[Problem]]:
    """The hosts with their ranges unfolded, `{}` filled with the number; None if there are none to unfold."""
    problems: list[Problem] = []
    if not isinstance(hosts, Table):
        return None, problems
    nodes: dict[str, Node] = {}
    keys: dict[str, Place] = {}
    for pattern, node in hosts.nodes.items():
        place = hosts.keys[pattern]
        if len(nodes) > MAX_HOSTS:
            problems.append(problem_at(place, f"ranges unfold to more than {MAX_HOSTS} hosts"))
            break
        try:
            names = expand_range(pattern)
        except InvalidValue as error:
            problems.append(problem_at(place, str(error), error.hint))
            continue
        _check_url(pattern, node, len(names), problems)
        for name, number in names:
            if name in nodes:
                problems.append(
                    problem_at(place, f"two hosts are called '{name}': the first one is at {keys[name]}")
                )
            else:
                nodes[name], keys[name] = _numbered(node, number), place
    return replace(hosts, nodes=nodes, keys=keys), problems


def _check_url(pattern: str, node: Node, count: int, problems: list[Problem]) -> None:
    url = node.get("url") if isinstance(node, Table) else None
    if not isinstance(url, Scalar):
        return
    if count > 1 and "{}" not in url.text:
        problems.append(problem_at(url, f"{count} hosts would share one url", "put {} where the number goes"))
    if "[" not in pattern and "{}" in url.text:
        problems.append(
            problem_at(
                url, "{} stands for the number of a range, but the host's name has none", "name it x-[01:20]"
            )
        )


def _numbered(node: Node, number: str) -> Node:
    match node:
        case Scalar():
            if "{}" not in node.text or not number:
                return node
            text = node.text.replace("{}", number)
            reference = node.reference and node.reference.replace("{}", number)
            return replace(node, value=text, text=text, reference=reference)
        case Items():
            return replace(node, nodes=tuple(_numbered(item, number) for item in node.nodes))
        case Table():
            return replace(node, nodes={key: _numbered(value, number) for key, value in node.nodes.items()})
        case _:
            assert_never(node)
