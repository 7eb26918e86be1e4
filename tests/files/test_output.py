"""What a command writes lands where the user said, for whom it is meant, and never behind a link of the checkout."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollamaops.cli.main import run
from ollamaops.errors import UsageError
from ollamaops.files.output import make_private_folder, write_output


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a manifest; beside it lies a file that is nobody's business."""
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "ollamaops.yaml").write_text("models: [llama3.2:3b]\n")
    monkeypatch.chdir(folder)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


WRITERS = {
    "plan": ["plan", "--out", "FILE"],
    "junit": ["drift", "--junit", "FILE"],
    "import": ["import", "--out", "FILE"],
    "lock": ["lock", "--lock-file", "FILE"],
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("link", ["file", "folder"])
def test_no_command_writes_through_a_link_out_of_the_checkout(
    checkout: Path, command: str, link: str
) -> None:
    if link == "file":
        (checkout / "out").symlink_to("../precious")
    else:
        (checkout / "sub").symlink_to("..")
    file = "out" if link == "file" else "sub/precious"
    words = [file if word == "FILE" else word for word in WRITERS[command]]
    assert run([*words, "--sandbox=../store", "--state-dir", "../state"]) in (64, 65)
    assert (checkout.parent / "precious").read_text() == "precious"


def test_a_link_within_the_folder_is_followed_and_a_typed_way_out_is_meant(checkout: Path) -> None:
    (checkout / "there").write_text("old")
    (checkout / "link").symlink_to("there")
    write_output(Path("link"), "new")
    write_output(Path("../beside"), "new")
    write_output(checkout.parent / "absolute", "new")
    for path in ("there", "../beside", "../absolute"):
        assert Path(path).read_text() == "new"
    assert (checkout / "link").is_symlink()


def test_devices_are_written_to_although_they_are_links(capfd: pytest.CaptureFixture[str]) -> None:
    write_output(Path("/dev/null"), "x", is_private=True)
    write_output(Path("/dev/stdout"), "said\n")
    assert capfd.readouterr().out == "said\n"


def test_a_new_file_replaces_nothing(checkout: Path) -> None:
    (checkout / "dangling").symlink_to("../nowhere")
    with pytest.raises(FileExistsError):
        write_output(checkout / "ollamaops.yaml", "x", is_new=True)
    with pytest.raises(UsageError):
        write_output(checkout / "dangling", "x", is_new=True)
    assert not (checkout.parent / "nowhere").exists()


def test_what_is_ours_alone_is_for_this_user_only(checkout: Path) -> None:
    (checkout / "plan.json").write_text("an old one that all may read")
    assert run(["plan", "--out", "plan.json", "--sandbox=../store", "--state-dir", "../a/state"]) == 0
    assert run(["apply", "-y", "--sandbox=../store", "--state-dir", "../a/state"]) == 0
    state = checkout.parent / "a" / "state"
    assert mode(checkout / "plan.json") == 0o600
    assert {mode(path) for path in (state.parent, state, state / "locks")} == {0o700}
    assert all(mode(path) == 0o600 for path in state.rglob("*") if path.is_file())


def test_a_private_folder_leaves_those_that_are_there_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    make_private_folder(tmp_path / "a" / "b")
    assert [mode(tmp_path), mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o755, 0o700, 0o700]
