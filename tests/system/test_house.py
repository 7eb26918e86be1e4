"""The house keeps its rules: sizes, names, layers, purity, documentation."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from ollamaops.cli.main import COMMANDS, cli, run
from ollamaops.exits import MEANINGS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "ollamaops").rglob("*.py"))
}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core"}
MOST_LINES = 500
# The table of commands (with what it prints when one fails), and the optional extra `sandbox`.
IMPORT_LATE = {"ollamaops/cli/main.py", "ollamaops/cli/sandbox.py", "ollamaops/cli/sandboxes.py"}
TRICKS = {"setswitchinterval", "set_threshold", "freeze"}
UNCLEAR_WORDS = {
    "bench",
    "eyes",
    "glance",
    "circumstances",
    "survey",
    "trials",
    "asides",
    "cook",
    "vacate",
    "patiently",
    "unlearn",
    "probe",
    "prove",
    "proof",
}
MOST_LINES_OF_A_FUNCTION = 60
HEAVY = {"requests", "rich", "jsonschema", "yaml", "tenacity", "sqlite3", "starlette", "uvicorn"}


def test_no_module_is_longer_than_500_lines() -> None:
    lines = {module: len(source.splitlines()) for module, source in SOURCES.items()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    lines = {
        f"{module}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_module_is_called_by_a_name_that_says_nothing() -> None:
    assert [module for module in SOURCES if {*Path(module).with_suffix("").parts} & SAY_NOTHING] == []


def test_every_module_opens_with_what_it_is_for() -> None:
    assert [module for module, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def test_imports_stand_at_the_top() -> None:
    late = {
        module
        for module, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert late - IMPORT_LATE == set()


def test_nothing_bends_the_interpreter_to_be_fast() -> None:
    attributes = {
        (module, node.attr)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    assert {(module, name) for module, name in attributes if name in TRICKS} == set()
    # a second Ctrl-C stops without waiting for threads
    assert {module for module, name in attributes if name == "_exit"} <= {"ollamaops/cli/signals.py"}


def test_names_are_words_of_the_field() -> None:
    names = {
        (module, name)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg | ast.Name)
        for name in [getattr(node, "name", "") or getattr(node, "arg", "") or getattr(node, "id", "")]
    }
    assert {(module, name) for module, name in names if UNCLEAR_WORDS & set(name.lower().split("_"))} == set()


def test_only_report_cli_and_sandbox_print() -> None:
    talkative = ("ollamaops/report/", "ollamaops/cli/", "ollamaops/sandbox/")
    assert [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        if not module.startswith(talkative)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ] == []


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def ask(command: str) -> str:
        assert run([*command.split(), "--help"]) == 0
        return capsys.readouterr().out

    return ask


def test_every_command_has_help_with_an_example(help_of: Callable[[str], str]) -> None:
    aliases = {"test"}
    commands = [*(COMMANDS.keys() - aliases), "sandbox serve", "history show", "history diff"]
    assert [
        name for name in commands if not re.search(rf"\n  Examples:\n    .*ollamaops {name}\b", help_of(name))
    ] == []


def options_of(command: str) -> Iterator[click.Option]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    yield from (param for param in found.params if isinstance(param, click.Option))


def test_every_option_says_what_it_does() -> None:
    assert [
        f"{name} {option.opts[0]}"
        for name in COMMANDS
        for option in options_of(name)
        if not re.fullmatch(r"[A-Z].* .*\.", option.help or "")
    ] == []


def test_the_options_of_a_command_come_before_those_of_every_command(help_of: Callable[[str], str]) -> None:
    def are_in_order(name: str) -> bool:
        own, _, shared = help_of(name).partition("\nOptions of every command:\n")
        return ("--state-dir" in own, "--state-dir" in shared) == (False, name != "sandbox")

    assert [name for name in COMMANDS if not are_in_order(name)] == []


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"ollamaops {name}" not in README] == []


def test_every_exit_code_is_in_the_readme() -> None:
    assert [code for code in MEANINGS if f"| {code} |" not in README] == []


def test_the_group_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in cli.list_commands(None) if f"  {name} " not in shown] == []  # type: ignore[arg-type]


def test_asking_for_the_version_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ollamaops.cli.main import run; run(['--version'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unmeasured
    )
    assert done.stdout.splitlines()[-1:] == ["[]"]


def test_imports_run_one_way_and_decisions_are_pure() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
