"""Ordinary mistakes end in an error with its place and a way out, never in "this is a bug"."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unprivileged import as_nobody

from ollamaops.cli.main import run

MANIFEST = "models: [nomic-embed-text]\n"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a manifest; everybody can reach it, while pytest's own are closed to others."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OLLAMAOPS_STATE_DIR", str(folder / "state"))
        (folder / "ollamaops.yaml").write_text(MANIFEST)
        yield folder
        monkeypatch.undo()


@pytest.fixture
def closed(here: Path) -> Iterator[Path]:
    """A folder `manifests` with a manifest in it that only its owner may enter, and he is somebody else."""
    folder = here / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(MANIFEST)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-f", "manifests"], "manifests: the folder cannot be read: permission denied\n"),
        ([], "manifests: the folder cannot be read: permission denied\n"),
        (["-f", "manifests/a.yaml"], "manifests/a.yaml: cannot be read: permission denied\n"),
        (
            ["-f", "globbed.yaml"],
            "globbed.yaml:1:11: include: 'manifests/*.yaml': the folder manifests cannot be read: permission denied",
        ),
        (
            ["-f", "exactly.yaml"],
            "exactly.yaml:1:11: include: 'manifests/a.yaml': the folder manifests cannot be read: permission denied",
        ),
        (["-f", "wrong.yaml"], "wrong.yaml:1:11: include: 'state/*.yaml' matches no file\n"),
        (["-f", "gone.yaml"], "gone.yaml:1:11: include: 'elsewhere.yaml' matches no file\n"),
    ],
)
def test_a_folder_that_may_not_be_read_is_a_problem_of_the_manifest(
    arguments: list[str], said: str, here: Path, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "ollamaops.yaml").unlink()
    globs = {"globbed": "manifests/*", "exactly": "manifests/a", "wrong": "state/*", "gone": "elsewhere"}
    for name, glob in globs.items():
        (here / f"{name}.yaml").write_text(f"include: ['{glob}.yaml']\nmodels: []\n")
    run(["validate", "-f", "wrong.yaml"])  # imports everything while it may be read
    capsys.readouterr()
    with as_nobody():
        assert run(["validate", *arguments]) == 65
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("line", ["timeout: 0", "timeout: 0s", "stall: 0"])
def test_a_wait_of_nothing_is_a_problem_of_the_manifest(
    line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "ollamaops.yaml").write_text(f"hosts: {{a: {{url: 'http://127.0.0.1:9', {line}}}}}\nmodels: []\n")
    assert run(["validate"]) == 65
    assert "is no time to wait\n    hint: write it like 30s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--timeout", "0"], "--timeout: '0' is no time to wait"),
        (["plan", "--timeout", "soon"], "--timeout: 'soon' is not a duration"),
        (["plan", "-l", "x>>"], "-l: 'x>>' is not a label selector"),
        (["plan", "--target", "a b"], "--target: 'a b' is not a model name"),
        (["diff", "a~/b"], "MODEL: 'a~/b' is not a model name"),
        (["lock", "--update", "a~/b"], "MODEL: 'a~/b' is not a model name"),
        (["import", "a~/b"], "URL: not the URL of a server"),
        (["apply", "-y", "--wait", "soon"], "--wait: 'soon' is not a duration"),
        (["apply", "-y", "--prune=a b"], "--prune: 'a b' is not a model name"),
        (
            ["plan", "--sandbox=ollamaops.yaml"],
            "--sandbox: no pretend server can be run in ollamaops.yaml/local: ",
        ),
        (
            ["sandbox", "serve", "--port", "0", "--faults", "no"],
            "--faults: cannot read no: no such file or directory",
        ),
        (["sandbox", "serve", "--port", "0", "--faults", "."], "--faults: cannot read .: is a directory"),
        (
            ["sandbox", "serve", "--port", "0", "--store", "ollamaops.yaml"],
            "--store: cannot keep models in ollamaops.yaml: file exists\nhint: choose another --store",
        ),
    ],
)
def test_an_option_that_cannot_be_meant_ends_64_and_names_it(
    arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 64
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_sandbox_that_cannot_be_written_tells_of_the_option(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["plan", "--sandbox=elsewhere"])  # imports everything while it may be read
    capsys.readouterr()
    with as_nobody():
        assert run(["plan", "--sandbox=pretend"]) == 64
    assert capsys.readouterr().err == (
        "error: --sandbox: no pretend server can be run in pretend/local: permission denied\n"
        "hint: name a new folder, or one that it has made: --sandbox=DIR\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", [["schema"], ["-vv", "validate"], ["--help"]])
def test_a_full_disk_behind_stdout_is_an_error_and_no_bug(arguments: list[str], here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ollamaops.cli.main", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr.splitlines()[-1] == "error: cannot write: no space left on device"
    assert ("Traceback" in done.stderr, done.returncode) == ("-vv" in arguments, 1)


def test_a_file_that_nobody_expected_to_be_closed_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert run(["validate"]) == 1
    assert capsys.readouterr().err == "error: no such file or directory\n"


def test_a_file_that_is_no_lock_is_not_quoted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "shadow").write_text("root:*:20228:0:99999:7:::\n")
    (here / "keys").write_text("zz-secret: 77\nmore: zz\n")
    for name in ("shadow", "keys"):
        assert run(["plan", "--lock-file", name]) == 65
        shown = capsys.readouterr().err
        assert f"{name}:1:1: this is not a lock file: it has neither 'version' nor 'models'\n" in shown
        assert not any(word in shown for word in ("root", "20228", "zz", "77"))
