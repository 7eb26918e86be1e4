"""The house keeps its rules: sizes, names, layers, purity, documentation."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ollamaops.cli.main import COMMANDS, cli, run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ollamaops"
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(module.relative_to(ROOT)) for module in MODULES]
BANNED = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core"}
LOOK_AT_THE_DISK = {"load.py", "manifest_files.py", "disk.py", "entry_files.py", "file.py"}
PURE = [
    module
    for module in MODULES
    if module.parent.name in ("plan", "manifest", "lockfile") and module.name not in LOOK_AT_THE_DISK
]
IMPURE = {
    "os",
    "socket",
    "requests",
    "subprocess",
    "threading",
    "concurrent",
    "time",
    "random",
    "logging",
    "sqlite3",
}
TALL = 60


def functions_of(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_by(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_no_module_is_longer_than_500_lines(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 500


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_no_function_is_longer_than_60_lines(module: Path) -> None:
    tall = [
        f"{f.name}: {f.end_lineno - f.lineno + 1}"
        for f in functions_of(module)
        if f.end_lineno and f.end_lineno - f.lineno + 1 > TALL
    ]
    assert tall == []


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_no_module_is_called_by_a_name_that_says_nothing(module: Path) -> None:
    assert not {module.stem, module.parent.name} & BANNED


@pytest.mark.parametrize("module", [m for m in MODULES if m.read_text().strip()], ids=str)
def test_every_module_opens_with_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text()))


@pytest.mark.parametrize("module", PURE, ids=str)
def test_decisions_touch_nothing_of_the_world(module: Path) -> None:
    assert not {name.split(".")[0] for name in imported_by(module)} & IMPURE


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.parent.name not in ("report", "cli", "sandbox")], ids=str
)
def test_only_report_and_cli_print(module: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize(
    "name", [*sorted(COMMANDS), "sandbox serve", "history show", "history diff"], ids=str
)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"\n  Examples:\n    .*ollamaops {name}\b", shown)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_says_what_it_does_and_a_commands_own_come_first(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not re.fullmatch(r"[A-Z].* .*\.", option.help or "")] == []
    run([name, "--help"])
    own, _, shared = capsys.readouterr().out.partition("\nOptions of every command:\n")
    assert ("--state-dir" in own, "--state-dir" in shared) == (False, name != "sandbox")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"ollamaops {name}" in (ROOT / "README.md").read_text()


def test_every_exit_code_is_in_the_readme() -> None:
    from ollamaops.cli.exits import MEANINGS

    readme = (ROOT / "README.md").read_text()
    assert [code for code in MEANINGS if f"| {code} |" not in readme] == []


def test_the_group_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in cli.list_commands(None) if f"  {name} " not in shown] == []  # type: ignore[arg-type]


def test_asking_for_the_version_imports_nothing_heavy() -> None:
    heavy = {"requests", "rich", "jsonschema", "yaml", "tenacity", "sqlite3", "starlette", "uvicorn"}
    code = (
        "import sys; from ollamaops.cli.main import run; run(['--version'])\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unmeasured
    )
    assert done.stdout.splitlines()[-1:] == ["[]"]


def test_every_decision_is_under_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in contracts if contract["name"] == "decisions are pure")
    rooms = {module.parent.name for module in PURE} - {"plan"}
    named = {
        f"ollamaops.{module.parent.name}.{module.stem}" for module in PURE if module.parent.name in rooms
    }
    assert {*pure["source_modules"], *(f"ollamaops.{room}.__init__" for room in rooms)} == {
        *named,
        "ollamaops.plan",
    }


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
