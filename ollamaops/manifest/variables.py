"""Fills `${vars.NAME}`, `${env:NAME}` and `${env:NAME:-default}` into the texts of a tree. Nothing else is evaluated.

`$${` stands for a plain `${`. A value that is nothing but one unquoted reference takes the type of what it refers to
(`num_ctx: ${vars.ctx}` is a number). A value with something of the environment in it is marked, so that nothing shows
it, unless everybody may know the variable (`--allow-env`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import assert_never

from msgspec.structs import replace

from ollamaops.errors import Problem, did_you_mean
from ollamaops.manifest.document import Items, Node, Scalar, Table, resolve_plain
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Place

_REFERENCE = re.compile(
    r"(?P<escape>\$\$\{)"
    r"|\$\{vars\.(?P<var>[A-Za-z_][A-Za-z0-9_-]*)\}"
    r"|\$\{env:(?P<env>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|\$\{(?P<bad>vars\b|env[:.])"
)
_LEAST_SECRET = 4  # characters; a shorter text, or number of fewer digits than six, is nothing to hide
_LEAST_SECRET_NUMBER = 6
_GROWTH_HINT = "variables that hold each other multiply: write the text once, in a file"
MAX_FILLED = 64 * 2**20  # characters, in all texts together


class Variables:
    """Fills references in. `unresolved` are the places of values that stayed as they were written, `hidden` what came
    from the environment, with the reference to show instead.

    `public` are the variables that everybody may know; with `only_public` no others are read.
    """

    def __init__(
        self,
        table: Table,
        environ: Mapping[str, str],
        public: Container[str] = (),
        *,
        only_public: bool = False,
    ) -> None:
        self._table = table
        self._environ = environ
        self._public = public
        self._only_public = only_public
        self._known: dict[str, Scalar | None] = {}
        self._open: list[str] = []
        self._filled = 0
        self.problems: list[Problem] = []
        self.unresolved: set[Place] = set()
        self.hidden: dict[str, str] = {}

    def _add_problem(self, node: Node, message: str, hint: str | None = None) -> None:
        self.problems.append(problem_at(node, message, hint))

    def fill(self, node: Node) -> Node:
        """The node with every reference in its texts replaced; an unknown one is a problem."""
        match node:
            case Scalar():
                return self._fill_text(node) if "${" in node.text else node
            case Items():
                return replace(node, nodes=tuple(self.fill(item) for item in node.nodes))
            case Table():
                return replace(node, nodes={key: self.fill(value) for key, value in node.nodes.items()})
            case _:
                assert_never(node)

    def _fill_text(self, node: Scalar) -> Scalar:
        matches = list(_REFERENCE.finditer(node.text))
        values = [self._value(match, node) for match in matches]
        if any(value is None for value in values):
            self.unresolved.add(node.place)
            return node
        found = [value for value in values if value is not None]
        secret_as = node.text if any(value.secret_as is not None for value in found) else None
        if node.plain and len(found) == 1 and matches[0][0] == node.text and not matches[0]["escape"]:
            return replace(found[0], place=node.place, secret_as=secret_as)
        self._filled += sum(len(value.text) for value in found)
        if self._filled > MAX_FILLED:
            self._refuse_growth(node)
            return node
        texts, written = iter(found), iter(found)
        text = _REFERENCE.sub(lambda _: next(texts).text, node.text)
        is_of_environment = any(value.reference is not None for value in found)
        reference = (
            _REFERENCE.sub(lambda _: _as_written(next(written)), node.text) if is_of_environment else None
        )
        return Scalar(node.place, text, text, secret_as=secret_as, reference=reference)

    def _refuse_growth(self, node: Scalar) -> None:
        if all(problem.hint != _GROWTH_HINT for problem in self.problems):
            self._add_problem(node, f"variables unfold to more than {MAX_FILLED} characters", _GROWTH_HINT)
        self.unresolved.add(node.place)

    def _value(self, match: re.Match[str], node: Scalar) -> Scalar | None:
        if match["escape"]:
            return Scalar(node.place, "${", "${")
        if match["var"]:
            return self._variable(match["var"], node)
        if match["env"]:
            found = self._from_environment(match["env"], match["default"], node)
            return found and replace(found, reference=match[0])
        hint = "write ${vars.NAME}, ${env:NAME} or ${env:NAME:-default}; $${ is a plain ${"
        self._add_problem(node, "a reference that begins with ${" + match["bad"] + " cannot be read", hint)
        return None

    def _variable(self, name: str, node: Scalar) -> Scalar | None:
        if name in self._open:
            circle = " → ".join([*self._open[self._open.index(name) :], name])
            self._add_problem(node, f"variables refer to each other in a cycle: {circle}")
            return None
        if name not in self._known:
            self._open.append(name)
            self._known[name] = self._read_variable(name, node)
            self._open.pop()
        return self._known[name]

    def _read_variable(self, name: str, node: Scalar) -> Scalar | None:
        value = self._table.get(name)
        if value is None:
            known = ", ".join(self._table.nodes)
            hint = f"variables here: {known}" if known else "define it: vars: {" + name + ": …}"
            self._add_problem(node, f"unknown variable '{name}'{did_you_mean(name, self._table.nodes)}", hint)
            return None
        filled = self.fill(value)
        if not isinstance(filled, Scalar) or filled.value is None or value.place in self.unresolved:
            return None  # its problem is reported at its own place
        return filled

    def _from_environment(self, name: str, default: str | None, node: Scalar) -> Scalar | None:
        is_public = name in self._public
        if self._only_public and not is_public:
            self._add_problem(node, *refused_variable(name))
            return None
        text = self._environ.get(name)
        if default is not None:
            text = text or default
        if text is None:
            hint = "set it, or give a default: ${env:" + name + ":-…}"
            self._add_problem(node, f"the environment variable {name} is not set", hint)
            return None
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            self._add_problem(node, f"the environment variable {name} is not UTF-8 text")
            return None
        if not is_public and name in self._environ and _is_hidden(text):
            self.hidden[text] = "${env:" + name + "}"
        secret_as = None if is_public else node.text
        return Scalar(node.place, resolve_plain(text) if text else "", text, plain=True, secret_as=secret_as)


def _is_hidden(text: str) -> bool:
    """Whether the text is long enough to be a secret; a shorter one would be found in every other word."""
    is_word = isinstance(resolve_plain(text.strip()), str)
    return len(text.strip()) >= (_LEAST_SECRET if is_word else _LEAST_SECRET_NUMBER)


def refused_variable(name: str) -> tuple[str, str]:
    """Message and hint about a variable that a manifest which is not trusted may not use."""
    return (
        f"the environment variable {name} is not read for a manifest that is not trusted",
        f"if everybody may know its value: --allow-env {name}",
    )


def escape_references(text: str) -> str:
    """The text to write for `text`, in which no `${` is a reference."""
    return text.replace("${", "$${")


def _as_written(value: Scalar) -> str:
    return value.reference or escape_references(value.text)
