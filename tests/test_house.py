"""The house keeps its rules: sizes, names, layers, purity, documentation."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollamaops.cli.main import COMMANDS, cli, run

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ollamaops"
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(module.relative_to(ROOT)) for module in MODULES]
BANNED = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "core"}
PURE = {"plan", "manifest/document.py", "manifest/check.py", "manifest/types.py", "manifest/modelfile.py"}
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


@pytest.mark.parametrize(
    "module", [m for m in MODULES if any(str(m.relative_to(PACKAGE)).startswith(p) for p in PURE)], ids=str
)
def test_decisions_touch_nothing_of_the_world(module: Path) -> None:
    assert not {name.split(".")[0] for name in imported_by(module)} & IMPURE


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.parent.name not in ("report", "cli", "sandbox")], ids=str
)
def test_only_report_and_cli_print(module: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [name, "serve", "--help"] if name == "sandbox" else [name, "--help"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Examples?:\n +\S", shown)


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
    code = (
        "import sys; from ollamaops.cli.main import run; run(['--version']); "
        "heavy = {'requests', 'rich', 'jsonschema', 'yaml', 'tenacity', 'sqlite3', 'starlette', 'uvicorn'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unmeasured
    )
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
