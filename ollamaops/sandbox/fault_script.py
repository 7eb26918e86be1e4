"""Faults by script: which calls of a sandbox go wrong, and how. `ollamaops sandbox serve --faults FILE`.

This module decides which fault a call gets; `fault_injection` carries it out. A script is YAML, and its schema is
fault_script.schema.json::

    faults:
      - on: {endpoint: pull, model: "llama3*"}   # endpoint, method, model (with * and ?), digest; nothing: every call
        call: 2                                  # the 2nd such call; or [2..4], [1, 3], 5..
        do: {status: 503, retry_after: 2}
      - on: {endpoint: tags}
        share: 0.3                               # three of ten such calls, drawn with the seed
        seed: 7
        times: 5                                 # but no more than five
        do: {reset: during}

The list may also stand alone. `do` has one of these, or `latency: 200ms` and `bandwidth: 1MB/s`, or them besides:

====================================  ================================================================================
``status: 503``                       this status; with ``retry_after: 2``, ``body: text``, ``html: true`` (a proxy's)
``refuse: true`` or ``refuse: 5s``    all connections are dropped and new ones refused, for one second or as given
``reset: before | during | after``    TCP reset before the call is served, in its answer, or when it was carried out
``cut: looks-complete``               the answer ends cleanly without its last line, though all was done
``cut: mid-line``                     … in the middle of its last line
``cut: 3``                            … after three lines, and the call is given up
``stall: {for: 30s}``                 nothing more comes for a while; without ``for`` until the client or server goes;
                                      ``with_progress: true`` repeats a line instead; ``after: 4`` lines
``error_then_success: text``          an error line, then `success`; nothing is done
``truncate_json: true``               the call is carried out, its answer ends cleanly halfway
``disk_full: true``                   whatever the call writes fails
``vanish_blob: true``                 the blob is gone after this HEAD or POST; on create: before it
``change_model: {model: m, …}``       another client changes a model before this answer ends: ``system: text``,
                                      ``template: text``, ``parameters: {…}``, ``delete: true``, ``copy_from: other``
``restart: {prune: true}``            the server restarts after this answer (``when: before``: instead of it), forgets
                                      loaded models, drops connections, and with ``prune`` unused blobs, however fresh
====================================  ================================================================================

A call gets the fault of the first rule that fires. Every rule counts every call that its `on` matches, also those
that went to an earlier rule, so that `call: 2` means the same whatever else the script says. Scripts are
deterministic: nothing but the seed decides what is drawn.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from ollamaops.errors import InvalidValue, ManifestError, Problem
from ollamaops.sandbox.seeded_choice import SeededChoice
from ollamaops.units import parse_duration, parse_size

REFUSE_S = 1.0
_BESIDES = ("latency", "bandwidth", "retry_after", "body", "html")
_OF_STATUS = ("retry_after", "body", "html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a rule can tell of one HTTP call. `endpoint` is the word after `/api/`, `root` for `/`."""

    endpoint: str
    method: str = "POST"
    models: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answer with `status` and do nothing. `body` None means Ollama's own error document."""

    status: int
    retry_after: str | None = None
    body: str | None = None
    html: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Drop all connections, and refuse new ones for a while."""

    for_s: float = REFUSE_S


@dataclass(frozen=True, slots=True)
class Reset:
    """TCP reset."""

    when: Literal["before", "during", "after"]


@dataclass(frozen=True, slots=True)
class Cut:
    """End the answer cleanly but too early; a number is how many lines pass."""

    where: Literal["looks-complete", "mid-line"] | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Stop in the middle. None for `for_s`: until the client goes; for `after_lines`: see the schema."""

    with_progress: bool = False
    for_s: float | None = None
    after_lines: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorThenSuccess:
    """An error line that `success` follows."""

    error: str


@dataclass(frozen=True, slots=True)
class TruncateJson:
    """Half an answer."""


@dataclass(frozen=True, slots=True)
class DiskFull:
    """No space left on device."""


@dataclass(frozen=True, slots=True)
class VanishBlob:
    """The blobs that the call names disappear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeModel:
    """Another client deletes a model, copies another one over it, or creates it anew from itself."""

    model: str
    delete: bool = False
    copy_from: str | None = None
    system: str | None = None
    template: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The server restarts."""

    prune: bool = False
    when: Literal["before", "after"] = "after"


_AnswerAction = Status | Reset | Cut | Stall | ErrorThenSuccess | TruncateJson
FaultAction = _AnswerAction | Refuse | DiskFull | VanishBlob | ChangeModel | Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one call. Without an action it is served, only late or slowly."""

    action: FaultAction | None = None
    latency_s: float = 0.0
    bandwidth_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """Which calls a rule counts; an empty field matches all."""

    endpoint: str = "any"
    method: str = ""
    model: str = ""
    digest: str = ""

    def matches(self, call: Call) -> bool:
        return (
            self.endpoint in ("any", call.endpoint)
            and self.method in ("", call.method)
            and (not self.model or any(_same_model(self.model, name) for name in call.models))
            and _bare_digest(call.digest).startswith(_bare_digest(self.digest))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A line of the script. `calls` are ranges of matching calls, first and last (None: no end)."""

    on: Matcher
    fault: Fault
    calls: tuple[tuple[int, int | None], ...] = ()
    share: float = 1.0
    seed: int = 0
    times: int | None = None

    def wants(self, number: int, place: int) -> bool:
        """Whether this rule, at index `place` of its script, fires at its `number`-th matching call (from 1)."""
        if self.calls and not any(first <= number <= (last or number) for first, last in self.calls):
            return False
        return self.share >= 1 or SeededChoice("fault").branch(self.seed, place, number).share() < self.share


@dataclass
class FaultScript:
    """Rules, and how many calls each has seen and hit so far: the only state that faults have."""

    rules: Sequence[Rule]
    seen: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = self.seen or [0] * len(self.rules)
        self.hits = self.hits or [0] * len(self.rules)

    def decide(self, call: Call) -> Fault | None:
        """Count the call. The fault that happens to it, or None."""
        winner: Rule | None = None
        for place, rule in enumerate(self.rules):
            if not rule.on.matches(call):
                continue
            self.seen[place] += 1
            left = rule.times is None or self.hits[place] < rule.times
            if winner is None and left and rule.wants(self.seen[place], place):
                self.hits[place] += 1
                winner = rule
        return winner.fault if winner else None


def load_faults(path: Path) -> FaultScript:
    """The script in a file; ManifestError with every problem and its place, OSError when it cannot be read."""
    return parse_faults(path.read_bytes(), str(path))


def parse_faults(text: str | bytes, path: str = "faults.yaml") -> FaultScript:
    """The script in a text; ManifestError with every problem and its place."""
    root = _compose(text, path)
    plain = _plain_value(root, path)
    if isinstance(plain, list):  # the rules without a key above them
        plain = {"faults": plain}
    problems = [_problem_of(error, root, path) for error in _validator().iter_errors(plain)]
    if problems:
        raise ManifestError(problems)
    assert isinstance(plain, dict), "the schema says so"
    rules = []
    for place, rule in enumerate(plain["faults"]):
        try:
            rules.append(_rule_of(rule))
        except InvalidValue as error:
            problems.append(_problem_at(_node_at(root, ["faults", place]), path, str(error), error.hint))
    if problems:
        raise ManifestError(problems)
    return FaultScript(tuple(rules))


# --- text to values -------------------------------------------------------------------------------------------------


_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def _compose(text: str | bytes, path: str) -> yaml.Node:
    loader: type[yaml.CSafeLoader | yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ManifestError([Problem(path, *place, f"not valid YAML: {error.problem}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ManifestError([Problem(path, 0, 0, f"not valid YAML: {error}")]) from None
    if root is None:
        raise ManifestError(
            [Problem(path, 0, 0, "the file is empty", "begin with faults: and a list of rules")]
        )
    return root


def _plain_value(node: yaml.Node, path: str, above: tuple[yaml.Node, ...] = ()) -> object:
    """The node as dicts, lists and scalars; these are read as in JSON, so `on` and `no` are text."""
    if node in above:
        raise ManifestError([_problem_at(node, path, "a value contains itself", None)])
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain_value(item, path, above) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, object] = {}
        for key, value in node.value:
            if str(key.value) in found:
                raise ManifestError(
                    [_problem_at(key, path, f"duplicate key '{key.value}'", "keep one of the two")]
                )
            found[str(key.value)] = _plain_value(value, path, above)
        return found
    text = str(node.value)
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style not in (None, "")
    if is_quoted or text.lower() not in _WORDS:
        is_number = not is_quoted and _NUMBER.fullmatch(text)
        return json.loads(text.lstrip("+")) if is_number else text
    return _WORDS[text.lower()]


@cache
def _validator() -> Draft202012Validator:
    schema = resources.files("ollamaops.sandbox").joinpath("fault_script.schema.json").read_text("utf-8")
    return Draft202012Validator(json.loads(schema))


def _problem_of(error: ValidationError, root: yaml.Node, path: str) -> Problem:
    deepest = best_match([error]) or error
    where = ".".join(map(str, deepest.absolute_path)) or "faults"
    schema: object = deepest.schema
    hint = schema.get("description") if isinstance(schema, Mapping) else None
    node = _node_at(root, deepest.absolute_path)
    return _problem_at(node, path, f"{where}: {deepest.message}", str(hint) if hint else None)


def _node_at(root: yaml.Node, steps: Iterable[str | int]) -> yaml.Node:
    """The node to which the steps lead, or the last on the way there."""
    node = root
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == step), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
    return node


def _problem_at(node: yaml.Node, path: str, message: str, hint: str | None) -> Problem:
    mark = node.start_mark
    return Problem(path, mark.line + 1, mark.column + 1, message, hint)


def _rule_of(rule: Mapping[str, Any]) -> Rule:
    """A rule that the schema allows; InvalidValue for what the schema cannot see."""
    calls = rule.get("call", [])
    return Rule(
        on=Matcher(**rule.get("on", {})),
        fault=_fault_of(rule["do"]),
        calls=tuple(map(_range, calls if isinstance(calls, list) else [calls])),
        share=rule.get("share", 1.0),
        seed=rule.get("seed", 0),
        times=rule.get("times"),
    )


def _range(call: object) -> tuple[int, int | None]:
    first, dots, last = str(call).partition("..")
    return int(first), int(last) if last else None if dots else int(first)


def _fault_of(do: Mapping[str, Any]) -> Fault:
    actions = [key for key in do if key not in _BESIDES]
    if len(actions) > 1:
        raise InvalidValue(
            f"{' and '.join(actions)} cannot happen to one call", hint="write one rule for each"
        )
    if "status" not in do and (alone := [key for key in _OF_STATUS if key in do]):
        raise InvalidValue(f"{alone[0]} needs a status", hint="write status: 503 beside it")
    bandwidth = do.get("bandwidth")
    return Fault(
        action=_action_of(actions[0], do[actions[0]], do) if actions else None,
        latency_s=parse_duration(do.get("latency", 0)),
        bandwidth_bytes_per_s=None if bandwidth is None else parse_size(str(bandwidth).removesuffix("/s")),
    )


def _action_of(key: str, value: Any, do: Mapping[str, Any]) -> FaultAction:
    inside: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    match key:
        case "status":
            retry_after = str(do["retry_after"]) if "retry_after" in do else None
            return Status(
                status=value, retry_after=retry_after, body=do.get("body"), html=do.get("html", False)
            )
        case "refuse":
            return Refuse(REFUSE_S if value is True else parse_duration(value))
        case "reset":
            return Reset(value)
        case "cut":
            has_number = isinstance(value, str) and value[0].isdigit()
            return Cut(int(value.split()[0]) if has_number else value)
        case "stall":
            for_s = parse_duration(inside["for"]) if "for" in inside else None
            return Stall(
                with_progress=inside.get("with_progress", False), for_s=for_s, after_lines=inside.get("after")
            )
        case "error_then_success":
            return ErrorThenSuccess(value)
        case "truncate_json":
            return TruncateJson()
        case "disk_full":
            return DiskFull()
        case "vanish_blob":
            return VanishBlob()
        case "change_model":
            return ChangeModel(**inside)
        case _:
            return Restart(**inside)


def _same_model(pattern: str, name: str) -> bool:
    """Whether the glob fits the name, with or without `:latest`, whatever the case."""
    wanted, given = pattern.casefold(), name.casefold()
    forms = (given, given.removesuffix(":latest"), f"{given}:latest")
    return any(fnmatch.fnmatchcase(form, wanted) for form in forms)


def _bare_digest(digest: str) -> str:
    return digest.lower().removeprefix("sha256:").removeprefix("sha256-")
