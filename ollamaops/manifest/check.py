"""The rules between the keys of one entry, which schema.json cannot express; crosscheck.py has those between models.

`check_entry` is about one model's entry, `check_host` about one host's, `check_hosts` about the inventory. They look
at what is written, so that an entry whose values cannot be read is still checked as far as possible.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, cast

from jsonschema import validators
from jsonschema.exceptions import best_match
from msgspec import Struct

from ollamaops.errors import InvalidName, Problem, did_you_mean
from ollamaops.manifest.document import Items, Node, Scalar, Table, to_plain
from ollamaops.manifest.modelfile import Modelfile
from ollamaops.manifest.parameters import GONE_PARAMETERS, PARAMETER_TYPES, check_parameter
from ollamaops.manifest.problems import parse_scalar, problem_at
from ollamaops.manifest.schema import model_keys
from ollamaops.manifest.types import Build, HostSpec, Place, WeightsFile
from ollamaops.manifest.weights import check_has_draft
from ollamaops.names import ModelName
from ollamaops.settings import SETTINGS, WEIGHTS_SETTINGS
from ollamaops.units import parse_duration

MANIFEST_VERSION = 1
SourceKind = Literal["absent", "pull", "from", "files", "modelfile", "copy"]

SOURCES: tuple[SourceKind, ...] = ("pull", "from", "files", "modelfile", "copy")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# the keys of models that are created; those that schema.json has beside them are for every model
_MADE = frozenset(SETTINGS) - {"licenses"} | _words("license allow_unknown_parameters adapters drafts sha256")
_WHAT = {
    "absent": "the model is to be absent",
    "pull": "the model is pulled, not made",
    "copy": "the model is a copy of another",
}

# llama.cpp's list, which servers up to 0.6.8 take; later ones take F32 F16 BF16 Q4_K_S Q4_K_M Q8_0 (Q4_K is Q4_K_M)
QUANTIZATIONS = _words(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K Q4_K_S Q4_K_M Q5_K_S Q5_K_M "
    "Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS"
)
_SECRET_HEADER = re.compile(r"authorization|cookie|token|secret|passw|credential|key", re.IGNORECASE)
_SEMVER = re.compile(r"v?[0-9]+(?:\.[0-9]+){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)


class EntryFiles(Struct, frozen=True, kw_only=True):
    """What is in the files that an entry names.

    `modelfile` is its Modelfile, without commands if it has none that can be read; `asked` the model that this asks
    for, with the base that FROM names. `files`, `adapters` and `drafts` are the weights that the two name.
    """

    texts: Mapping[str, str]
    licenses: tuple[str, ...]
    modelfile: Modelfile
    asked: Build
    files: tuple[WeightsFile, ...]
    adapters: tuple[WeightsFile, ...]
    drafts: tuple[WeightsFile, ...]


@cache
def _keys(kind: SourceKind) -> frozenset[str]:
    """The keys that an entry may have if its model comes from there."""
    of_every_model = model_keys() - _MADE - frozenset(SOURCES) - {"digest"}
    match kind:
        case "absent":
            return _words("name ensure where")
        case "pull":
            return of_every_model | {"pull", "digest"}
        case "copy":
            return of_every_model | {"copy"}
        case _:
            return of_every_model | _MADE | {kind}


def source_kind(entry: Table) -> SourceKind:
    """Where the model of an entry comes from; the first that is given if there are several."""
    ensure = entry.get("ensure")
    if isinstance(ensure, Scalar) and ensure.value == "absent":
        return "absent"
    return next((kind for kind in SOURCES if kind in entry.nodes), "pull")


def keep_useful(defaults: Table, entry: Table) -> Table:
    """The defaults that apply to the entry's source; what a Modelfile might set is left to it."""
    kind = source_kind(entry)
    useful = _keys(kind) - _MADE | {"quantize"} if kind == "modelfile" else _keys(kind)
    return Table(
        defaults.place, {key: node for key, node in defaults.nodes.items() if key in useful}, defaults.keys
    )


def check_version(root: Table) -> Problem | None:
    """The problem of a file for a newer ollamaops; it is not read any further."""
    node = root.get("version")
    if not isinstance(node, Scalar) or isinstance(node.value, bool) or not isinstance(node.value, int):
        return None
    if node.value <= MANIFEST_VERSION:
        return None
    message = (
        f"version {node.value} of the manifest is newer than {MANIFEST_VERSION}, which this ollamaops reads"
    )
    return problem_at(node, message, "upgrade ollamaops: pip install --upgrade ollamaops")


def check_host(table: Table) -> Iterator[Problem]:
    """The rules about one host that the schema cannot say."""
    headers = table.get("headers")
    for name, node in headers.nodes.items() if isinstance(headers, Table) else ():
        if isinstance(node, Scalar) and _SECRET_HEADER.search(name):
            hint = "write {env: NAME}, {file: PATH} or {command: [..]}"
            yield problem_at(node, f"{name}: a literal secret is refused", hint)
    proxy = table.get("proxy")
    if isinstance(proxy, Scalar) and not re.fullmatch(r"(?:https?|socks[45][ah]?)://[^\s/@]+/?", proxy.text):
        yield problem_at(
            proxy, "proxy: not a URL without user and password", "write it like http://proxy.lan:3128"
        )


def check_hosts(hosts: Sequence[HostSpec]) -> Iterator[Problem]:
    """No two hosts may be one server: two runs could then change it at once."""
    first: dict[str, HostSpec] = {}
    for host in hosts:
        other = first.setdefault(host.url, host)
        if host.url and other.place != host.place:  # a range whose hosts share a url has been reported
            message = f"host '{host.name}' has the same url as '{other.name}' at {other.place}"
            yield problem_at(host.place, message, "one server is one host: give it both labels")


def check_entry(entry: Table, files: EntryFiles) -> Iterator[Problem]:
    """The rules about one model's entry and what is in its files."""
    kind = source_kind(entry)
    yield from _check_source(entry, kind)
    yield from _check_names(entry, kind)
    if kind == "from" or files.asked.base is not None:
        yield from _check_cleared(entry, files.texts)
    yield from _check_repeated(entry, files)
    yield from _check_parameters(entry)
    yield from _check_ignored(entry, files)
    for key in WEIGHTS_SETTINGS:
        yield from _check_quantize(entry.get(key))
    yield from check_has_draft(entry, files.modelfile)
    yield from _check_requires(entry.get("requires"))
    yield from _check_expectations(entry.get("expect"))


def _check_source(entry: Table, kind: SourceKind) -> Iterator[Problem]:
    given = [key for key in entry.nodes if key in SOURCES]
    if kind != "absent" and len(given) > 1:
        places = " and ".join(f"'{key}' at {entry.keys[key]}" for key in given)
        yield problem_at(entry.keys[given[1]], f"a model has one source: {places}", "keep one of them")
        return
    for key in entry.nodes:
        if key not in _keys(kind):
            yield problem_at(
                entry.keys[key], f"'{key}' does not apply here: {_no_use(key, kind)}", _no_use_hint(key, kind)
            )


def _no_use(key: str, kind: SourceKind) -> str:
    if key == "digest":
        return "it pins what is pulled, and this model is made on the server"
    return _WHAT[kind]


def _no_use_hint(key: str, kind: SourceKind) -> str | None:
    if key == "digest":
        return "pin the entry of the base, or give sha256: for local files"
    if kind == "absent":
        return "leave it out, or leave out ensure: absent"
    return "make it: name its base with from:" if key in _MADE else None


def name_at(node: Node | None) -> ModelName | None:
    """The name in a node, None if there is none that can be read (build.py says so)."""
    try:
        return ModelName.parse(node.text) if isinstance(node, Scalar) else None
    except InvalidName:
        return None


def _check_names(entry: Table, kind: SourceKind) -> Iterator[Problem]:
    node, name = entry.nodes["name"], name_at(entry.nodes["name"])
    pulled = name_at(entry.get("pull"))
    is_made = kind in ("from", "files", "modelfile", "copy") or (pulled is not None and pulled != name)
    if name is not None and is_made:
        yield from _refuse_suffix(node, name)
    elif name is not None:
        yield from _refuse_local(node, name, is_absent=kind == "absent")
    if name is not None and name.is_ledger:
        message = f"'{_shown(node)}' is a reserved name: ollamaops keeps there what it knows about a host"
        yield problem_at(node, message, "choose another name")
    for key in ("name", "pull", "from", "copy", "moved_from"):
        yield from _refuse_aside(entry.get(key))
        yield from _refuse_secret(entry.get(key))
    for key in ("pull", "from", "copy", "moved_from"):
        if (other := name_at(entry.get(key))) is not None:
            yield from _refuse_local(entry.nodes[key], other)
            if key == "moved_from" and other == name:
                yield problem_at(entry.nodes[key], "moved_from: the old name is the new one", "leave it out")
    yield from _check_push(entry.get("push"))


def _refuse_aside(node: Node | None) -> Iterator[Problem]:
    name = name_at(node)
    if node is not None and name is not None and name.is_aside:
        message = f"'{_shown(node)}' is a reserved name: other versions of a model are kept there"
        yield problem_at(
            node, message, "choose a tag that does not end in -ollamaops-next or -ollamaops-previous"
        )


def _refuse_secret(node: Node | None) -> Iterator[Problem]:
    if isinstance(node, Scalar) and node.secret_as is not None:
        yield from refuse_secret(node, node.shown)


def refuse_secret(at: Node | Place, shown: str) -> Iterator[Problem]:
    """The problem of a name that came from the environment: names are shown everywhere, and sent to registries."""
    message = f"a name is shown to everybody, and {shown} may stand for a secret"
    yield problem_at(at, message, "name the variables that everybody may know: --allow-env NAME")


def _refuse_suffix(node: Node, name: ModelName) -> Iterator[Problem]:
    if name.source_suffix != "none":
        why = "servers since 0.18.0 read that ending as a place to run"
        message = f"no model can be created as '{_shown(node)}': {why}"
        hint = "choose a tag other than local, cloud and …-cloud"
        yield problem_at(node, message, hint)


def _shown(node: Node) -> str:
    return node.shown if isinstance(node, Scalar) else ""


def _refuse_local(node: Node, name: ModelName, *, is_absent: bool = False) -> Iterator[Problem]:
    is_secret = isinstance(node, Scalar) and node.secret_as is not None
    hint = "write another tag" if is_secret else f"write {name.base}"
    if is_absent:
        hint = "remove its file below manifests/ on the server by hand"
    yield from refuse_local(node, _shown(node), name, hint)


def refuse_local(at: Node | Place, shown: str, name: ModelName, hint: str) -> Iterator[Problem]:
    """A problem if the model is called `…:local`, which no server since 0.18.0 can be asked for."""
    if name.source_suffix == "local":
        message = f"'{shown}': servers since 0.18.0 read ':local' as a place to run, not as a tag"
        yield problem_at(at, message, hint)


def _check_push(node: Node | None) -> Iterator[Problem]:
    target = node.get("name") if isinstance(node, Table) else node
    yield from _refuse_aside(target)
    yield from _refuse_secret(target)
    name = name_at(target)
    if target is None or name is None:
        return
    yield from _refuse_suffix(target, name)
    if name.is_default_registry and name.namespace.lower() == "library":
        yield problem_at(
            target, "a push needs a namespace of your own", f"write it like me/{name.model}:{name.tag}"
        )


def _check_cleared(entry: Table, texts: Mapping[str, str]) -> Iterator[Problem]:
    for key in ("system", "template", "messages"):
        node = entry.get(key)
        if node is not None and (texts.get(key) == "" or (isinstance(node, Items) and not node.nodes)):
            message = (
                f"an inherited {key} cannot be cleared: servers since 0.5.5 treat an empty one as not given"
            )
            hint = "leave it out to inherit it, write another one, or build from weights with files:"
            yield problem_at(node, message, hint)


def _check_repeated(entry: Table, files: EntryFiles) -> Iterator[Problem]:
    """What the Modelfile sets may not be set beside it, because it would not be clear which of the two counts."""
    asked, parameters = files.asked, entry.get("parameters")
    set_there: Mapping[str, object] = {
        "system": asked.system,
        "template": asked.template,
        "messages": asked.messages,
        "license": asked.licenses,
        "adapters": files.modelfile.args_of("adapter"),
        "drafts": files.modelfile.args_of("draft"),
        "renderer": asked.renderer,
        "parser": asked.parser,
        "requires": asked.requires,
    }
    twice = [(key, entry.keys[key]) for key, value in set_there.items() if value and key in entry.nodes]
    if isinstance(parameters, Table):
        twice += [
            (f"parameters.{key}", parameters.keys[key]) for key in parameters.nodes if key in asked.parameters
        ]
    for key, place in twice:
        yield problem_at(place, f"'{key}' is already set by the Modelfile", "keep one of the two")


def _check_parameters(entry: Table) -> Iterator[Problem]:
    parameters, lifted = entry.get("parameters"), entry.get("allow_unknown_parameters")
    allow_unknown = isinstance(lifted, Scalar) and lifted.value is True
    for name, node in parameters.nodes.items() if isinstance(parameters, Table) else ():
        is_known = name in PARAMETER_TYPES
        flaw = check_parameter(name, to_plain(node))
        if flaw is None or (not is_known and allow_unknown):
            continue
        if isinstance(node, Scalar) and node.secret_as is not None and is_known:
            flaw = f"what {node.shown} stands for does not fit parameter '{name}'"
        place = (
            node.place if is_known else parameters.keys[name] if isinstance(parameters, Table) else node.place
        )
        meant = "" if is_known or name in GONE_PARAMETERS else did_you_mean(name, PARAMETER_TYPES)
        yield problem_at(
            place, flaw + meant, None if is_known else "allow_unknown_parameters: true lets it pass"
        )


def _check_ignored(entry: Table, files: EntryFiles) -> Iterator[Problem]:
    """Ignoring an unknown parameter has no effect."""
    ignored, lifted = entry.get("ignore"), entry.get("allow_unknown_parameters")
    if isinstance(lifted, Scalar) and lifted.value is True:
        return
    known = {*PARAMETER_TYPES, *GONE_PARAMETERS, *files.asked.parameters}
    for node in ignored.nodes if isinstance(ignored, Items) else ():
        name = node.text.partition("parameters.")[2] if isinstance(node, Scalar) else ""
        if name and name not in known:
            yield problem_at(node, f"ignore: unknown parameter '{name}'{did_you_mean(name, PARAMETER_TYPES)}")


def _check_quantize(node: Node | None) -> Iterator[Problem]:
    if isinstance(node, Scalar) and node.text.upper() not in QUANTIZATIONS:
        meant = did_you_mean(node.text, QUANTIZATIONS)
        hint = "servers since 0.7.0 take F32, F16, BF16, Q4_K_S, Q4_K_M and Q8_0"
        yield problem_at(node, f"unknown quantization '{node.shown}'{meant}", hint)


def _check_requires(node: Node | None) -> Iterator[Problem]:
    if isinstance(node, Scalar) and not _SEMVER.fullmatch(node.text):
        yield problem_at(node, f"requires: '{node.shown}' is not a version", "write it like 0.14.0")


def _check_expectations(node: Node | None) -> Iterator[Problem]:
    for table in node.nodes if isinstance(node, Items) else [node]:
        if isinstance(table, Table):
            yield from _check_expectation(table)


def _check_expectation(table: Table) -> Iterator[Problem]:
    pattern, load = table.get("matches"), table.get("max_load")
    if isinstance(pattern, Scalar) and not _is_regular(pattern.text):
        yield problem_at(pattern, "matches: not a regular expression", "it is read by Python's re module")
    if isinstance(load, Scalar) and isinstance(problem := parse_scalar(load, parse_duration), Problem):
        yield problem
    yield from _check_options(table.get("options"))
    yield from _check_schema(table.get("json_schema"))
    if "prompt" in table.nodes and "messages" in table.nodes:
        yield problem_at(
            table.keys["messages"],
            "a prompt and messages together: only one of the two is sent",
            "keep one of them",
        )
    if "prompt" in table.nodes or "messages" in table.nodes:
        return
    for key in ("matches", "contains", "json", "json_schema", "tools", "min_tokens_per_s", "length", "think"):
        if key in table.nodes:
            yield problem_at(
                table.keys[key], f"'{key}' needs a prompt or messages: there is no answer without one", None
            )


def _check_options(options: Node | None) -> Iterator[Problem]:
    """Servers answer 500 to an option of the wrong type, which would look like a fault of the model."""
    for name, node in options.nodes.items() if isinstance(options, Table) else ():
        if flaw := check_parameter(name, to_plain(node)):
            if isinstance(node, Scalar) and node.secret_as is not None:
                flaw = f"what {node.shown} stands for does not fit parameter '{name}'"
            yield problem_at(
                node, flaw + ("" if name in PARAMETER_TYPES else did_you_mean(name, PARAMETER_TYPES))
            )


def _check_schema(node: Node | None) -> Iterator[Problem]:
    if not isinstance(node, Table):
        return
    schema = cast("dict[str, Any]", to_plain(node))
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    error = best_match(kind(kind.META_SCHEMA).iter_errors(schema))
    if error is not None:
        place = error.json_path.removeprefix("$.")
        yield problem_at(node, f"json_schema: not a JSON Schema: {place} is wrong")


def _is_regular(pattern: str) -> bool:
    with warnings.catch_warnings():  # about syntax that may get another meaning one day
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError):
            return False
    return True
