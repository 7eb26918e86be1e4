"""Where the pretend servers of --sandbox keep what they have, and what a checkout cannot do to that."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ollamaops.cli.main import run
from ollamaops.cli.sandboxes import default_sandbox
from ollamaops.sandbox.store import MARK
from ollamaops.state.ledger import Ledger


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside of the checkout, of a name that the pretend server knows, and older than an hour."""
    file = tmp_path / "outside" / f"sha256-{'0' * 64}"
    file.parent.mkdir()
    file.write_text("precious")
    os.utime(file, (time.time() - 7200,) * 2)
    return file


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_the_checkout_is_neither_looked_into_nor_written_to(checkout: Path, precious: Path) -> None:
    store = checkout / ".ollamaops" / "sandbox" / "local"
    store.mkdir(parents=True)
    (store / "blobs").symlink_to(precious.parent)
    before = below(checkout)
    assert run(["apply", "-y", "-q", "--sandbox"]) == 0
    assert run(["plan", "-q", "--sandbox", "--detailed-exitcode"]) == 0
    assert below(checkout) == before
    assert precious.exists()
    assert below(default_sandbox()) >= {f"local/{MARK}", ".state/ledger.sqlite3"}


def test_each_folder_has_pretend_servers_of_its_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["apply", "-y", "-q", "--sandbox"]) == 0
    (checkout / "other").mkdir()
    (checkout / "other" / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    monkeypatch.chdir(checkout / "other")
    assert run(["plan", "-q", "--sandbox", "--detailed-exitcode"]) == 2


@pytest.mark.parametrize("link", ["pretend", "pretend/local", "pretend/local/blobs", "pretend/.state"])
def test_a_folder_that_a_checkout_prepared_leads_nowhere(
    link: str, checkout: Path, precious: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / link).parent.mkdir(parents=True, exist_ok=True)
    if link.endswith("blobs"):
        (checkout / link).with_name(MARK).touch()
    (checkout / link).symlink_to(precious.parent)
    assert run(["apply", "-y", "-q", "--sandbox=pretend"]) == 64
    assert " is a link" in capsys.readouterr().err
    assert below(precious.parent) == {precious.name}


@pytest.mark.parametrize("name", ["ledger.sqlite3", "audit.jsonl", "locks"])
def test_no_state_is_written_behind_a_link(name: str, checkout: Path, precious: Path) -> None:
    (checkout / "pretend" / ".state").mkdir(parents=True)
    target = precious.parent if name == "locks" else precious
    (checkout / "pretend" / ".state" / name).symlink_to(target)
    run(["apply", "-y", "-q", "--sandbox=pretend"])
    assert precious.read_text() == "precious"
    assert below(precious.parent) == {precious.name}


def test_a_state_folder_named_in_the_checkout_does_not_lead_out_of_it(checkout: Path, precious: Path) -> None:
    (checkout / "state").symlink_to(precious.parent)
    assert run(["apply", "-y", "-q", "--sandbox", "--state-dir", "state"]) == 64
    assert below(precious.parent) == {precious.name}


def test_runs_on_pretend_servers_are_remembered_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["apply", "-y", "-q", f"--sandbox={tmp_path / 'pretend'}"]) == 0
    assert len(Ledger(tmp_path / "pretend" / ".state").runs(9)) == 1
    assert Ledger(os.environ["OLLAMAOPS_STATE_DIR"]).runs(9) == ()
    capsys.readouterr()
    assert run(["history"]) == 0
    assert "no run has changed anything yet" in capsys.readouterr().out
    assert run(["history", f"--sandbox={tmp_path / 'pretend'}"]) == 0
    assert "1 succeeded" in capsys.readouterr().out
