"""The commit of a folder, whoever wrote the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ollamaops.cli.main import run
from ollamaops.files.git import commit_of


def git(folder: Path, *arguments: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_is_known_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == ""
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "m")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == f"{head}-dirty"


def test_without_git_or_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path) == ""
    assert commit_of(tmp_path / "nowhere") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) == ""


@pytest.mark.parametrize("change", ["edited", "same size", "removed", "link", "of no interest"])
def test_a_tracked_file_that_differs_makes_the_commit_dirty(tmp_path: Path, change: str) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a b.yaml").write_text("models: []\n")
    (tmp_path / "link").symlink_to("sub")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "m")
    match change:
        case "edited":
            (tmp_path / "sub" / "a b.yaml").write_text("models: [x]\n")
        case "same size":
            (tmp_path / "sub" / "a b.yaml").write_text("models: {}\n")
        case "removed":
            (tmp_path / "sub" / "a b.yaml").unlink()
        case "link":
            (tmp_path / "link").unlink()
            (tmp_path / "link").symlink_to("elsewhere")
        case _:
            (tmp_path / "untracked").write_text("x")
            (tmp_path / "sub" / "a b.yaml").write_bytes(b"models: []\r\n")
    assert commit_of(tmp_path).endswith("-dirty") == (change != "of no interest")


def make_bare(folder: Path) -> None:
    """Move the repository's own files into the folder, where anybody can commit them, and git takes them for one."""
    for path in (folder / ".git").iterdir():
        if path.name != "hooks":
            path.rename(folder / path.name)
    shutil.rmtree(folder / ".git")
    git(folder, "config", "-f", "config", "core.worktree", ".")


COMMANDS = {
    "file monitor": '[core]\n\tfsmonitor = "touch {mark};"\n',
    "hooks": "[core]\n\thooksPath = hooks\n",
    "filter": '[filter "x"]\n\tclean = touch {mark}\n\tprocess = touch {mark}\n',
    "alias and pager": '[core]\n\tpager = "touch {mark}"\n[pager]\n\trev-parse = true\n\tls-tree = true\n',
    "lazy fetch": (
        '[core]\n\tsshCommand = "touch {mark};"\n\trepositoryformatversion = 1\n[extensions]\n\tpartialClone = x\n'
        '[remote "x"]\n\turl = ssh://127.0.0.1/x\n\tpromisor = true\n'
    ),
}


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("place", ["committed", "its own"])
def test_nothing_that_a_repository_configures_is_run(tmp_path: Path, kind: str, place: str) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "repository"
    folder.mkdir()
    (folder / "ollamaops.yaml").write_text("models: [llama3.2:3b]\n")
    (folder / ".gitattributes").write_text("* filter=x\n")
    (folder / "hooks").mkdir()
    (folder / "hooks" / "post-index-change").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (folder / "hooks" / "post-index-change").chmod(0o755)
    config = COMMANDS[kind].format(mark=mark)
    git(folder, "init", "-q")
    git(folder, "add", "ollamaops.yaml")
    git(folder, "commit", "-qm", "m")
    tree = git(folder, "rev-parse", "HEAD^{tree}")
    if place == "committed":
        make_bare(folder)
    own = folder if place == "committed" else folder / ".git"
    if kind == "lazy fetch":
        (own / "objects" / tree[:2] / tree[2:]).unlink()
    (own / "config").write_text((own / "config").read_text() + config)
    arguments = ["-f", str(folder / "ollamaops.yaml"), f"--sandbox={tmp_path / 'store'}"]
    assert run(["apply", "-y", "-q", *arguments, "--state-dir", str(tmp_path / "state")]) == 0
    commit_of(folder)
    assert not mark.exists()
