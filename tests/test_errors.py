"""The tree drawn in the docstring of errors.py is the tree of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ollamaops import errors
from ollamaops.errors import ManifestError, ModelfileError, OllamaopsError, Problem, cut_text


class Node(NamedTuple):
    """One class: its name, its parent's name, and what it promises."""

    name: str
    parent: str
    exit_code: int
    transient: bool


def _drawn() -> Iterator[Node]:
    """The nodes of the drawing; an exit code that is not drawn is the parent's."""
    path: list[Node] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)\b *(?:exit (\d+))?(.*)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + ("──" in line)
        parent = path[depth - 1] if depth else None
        exit_code = int(match[3]) if match[3] else parent.exit_code if parent else 0
        node = Node(match[2], parent.name if parent else "Exception", exit_code, "transient:" in match[4])
        path[depth:] = [node]
        yield node


def _defined(cls: type[OllamaopsError] = OllamaopsError) -> Iterator[Node]:
    parent = cls.__base__
    assert parent is not None
    yield Node(cls.__name__, parent.__name__, cls.exit_code, cls.transient)
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _defined(child)


def test_the_drawn_tree_is_the_class_tree_with_its_exit_codes_and_transient_marks() -> None:
    assert sorted(_drawn()) == sorted(_defined())


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    exceptions = {cls.__name__ for cls in classes if issubclass(cls, Exception)}
    assert exceptions == {node.name for node in _defined()}


@pytest.mark.parametrize("node", list(_defined()), ids=lambda node: node.name)
def test_every_class_says_what_it_means(node: Node) -> None:
    assert vars(errors)[node.name].__doc__.strip()


def test_an_error_is_its_message_and_keeps_its_hint_apart() -> None:
    error = errors.InvalidName("'m:' is not a model name: the tag is empty", hint="write m")
    assert (str(error), error.hint) == ("'m:' is not a model name: the tag is empty", "write m")


def test_a_manifest_error_lists_all_problems_by_place() -> None:
    late, early = Problem("b.yaml", 2, 3, "second"), Problem("a.yaml", 10, 1, "first")
    whole = Problem("b.yaml", 0, 0, "about all of it")
    error = ManifestError([late, early, whole])
    assert error.problems == (early, whole, late)
    assert str(error) == "a.yaml:10:1: first\nb.yaml: about all of it\nb.yaml:2:3: second"


def test_a_modelfile_error_speaks_as_ollama_and_knows_its_place() -> None:
    error = ModelfileError("unexpected EOF", line=7, path="bots/Modelfile")
    assert (str(error), error.message, error.line) == ("unexpected EOF", "unexpected EOF", 7)
    assert error.problems[0].place == "bots/Modelfile:7:1"
    assert ModelfileError("no FROM line").problems[0].place == "Modelfile"


def test_a_remote_error_names_the_host_and_an_answer_its_status() -> None:
    error = errors.TooManyRequests(
        "gpu-1: busy", host="gpu-1", status=429, text="slow down", retry_after_s=2.5, hint="wait"
    )
    assert (error.host, error.status, error.text, error.retry_after_s) == ("gpu-1", 429, "slow down", 2.5)
    assert (error.hint, str(error)) == ("wait", "gpu-1: busy")


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("  two\n  words ", 256, "two words"),
        ("x" * 256, 256, "x" * 256),
        ("x" * 257, 256, "x" * 255 + "…"),
        ("abcdef", 3, "ab…"),
    ],
)
def test_server_text_becomes_one_line_of_limited_length(text: str, limit: int, expected: str) -> None:
    assert cut_text(text, limit) == expected
