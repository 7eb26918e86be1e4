"""Files as one zip archive: the same bytes every time, for servers up to 0.5.4."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_host import WEIGHTS, a_host, a_model, assert_converged, failures, ids
from properties import shared_fixtures

from ollamaops.cli.main import run
from ollamaops.errors import Cancelled, WeightsError
from ollamaops.files import archive as module
from ollamaops.files.archive import Archive, measure
from ollamaops.manifest.types import Build, WeightsFile
from ollamaops.names import Digest
from ollamaops.plan.actions import UploadBlob
from ollamaops.sandbox.server import Sandbox

HF = WEIGHTS / "tiny-hf"
MEMBERS = tuple((path.name, str(path)) for path in sorted(HF.iterdir()))


def read_all(members: module.Members, block: int = 1 << 20) -> bytes:
    with Archive("w", members, 0).open() as reader:
        return b"".join(iter(lambda: reader.read(block), b""))


def test_an_archive_holds_the_files_as_they_are_and_is_what_was_measured() -> None:
    data = read_all(MEMBERS)
    assert measure(MEMBERS) == (Digest.of(data), len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == {
            name: Path(path).read_bytes() for name, path in MEMBERS
        }
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_neither_times_nor_the_way_of_reading_change_an_archive(tmp_path: Path) -> None:
    copies = []
    for name, path in MEMBERS:
        (tmp_path / name).write_bytes(Path(path).read_bytes())
        copies.append((name, str(tmp_path / name)))
    assert read_all(tuple(copies), block=1000) == read_all(MEMBERS)


@shared_fixtures()
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.integers(1, 4000))
def test_any_files_are_packed_whole(tmp_path: Path, contents: list[bytes], block: int) -> None:
    members = tuple((f"sub/{number}", str(tmp_path / str(number))) for number in range(len(contents)))
    for (_, path), content in zip(members, contents, strict=True):
        Path(path).write_bytes(content)
    with zipfile.ZipFile(io.BytesIO(read_all(members, block))) as opened:
        assert [opened.read(name) for name, _ in members] == contents


def test_files_of_more_than_4_gib_get_numbers_that_are_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(3000))
    (tmp_path / "b").write_bytes(bytes(10))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2000)
    members = (("a", str(tmp_path / "a")), ("b", str(tmp_path / "b")))
    with zipfile.ZipFile(io.BytesIO(read_all(members))) as opened:
        assert [info.file_size for info in opened.infolist()] == [3000, 10]
        assert opened.testzip() is None


def test_measuring_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        measure(MEMBERS, cancel=lambda: True)


def test_a_file_that_changes_while_it_is_measured_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    asked: list[bool] = []

    def change() -> bool:
        asked.append(True)
        path.write_bytes(bytes(11))
        return False

    with pytest.raises(WeightsError, match="a: changed while it was read"):
        measure((("a", str(path)),), cancel=change)
    assert asked


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = (("a", str(tmp_path / "a")),)
    for ask in (measure, read_all):
        with pytest.raises(WeightsError, match="a: cannot be read: no such file or directory"):
            ask(gone)


# on a server


def test_a_saved_plan_holds_what_is_in_the_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(tmp_path / "plan.json")
    (tmp_path / "hf").mkdir()
    for name, path in MEMBERS:
        (tmp_path / "hf" / name).write_bytes(Path(path).read_bytes())
    with Sandbox(as_version="0.3.4") as sandbox:
        (tmp_path / "m.yaml").write_text(
            f"hosts: {{h: {{url: '{sandbox.url}'}}}}\nmodels: [{{name: m, files: [hf]}}]\n"
        )
        options = ["-f", str(tmp_path / "m.yaml")]
        assert run(["plan", "--out", plan, *options]) == 0
        assert "create from hf.zip" in capsys.readouterr().out
        assert list(sandbox.store.blobs.iterdir()) == []
        assert run(["apply", plan, *options]) == 0
        assert run(["drift", *options]) == 0


def test_two_models_of_one_folder_are_sent_one_archive_that_goes_again_when_it_is_lost() -> None:
    files = tuple(WeightsFile(HF / name, name) for name, _ in MEMBERS)
    models = [a_model("one", Build(files=files)), a_model("two", Build(files=files, system="be brief"))]
    with a_host("0.3.4") as host:
        plan = host.plan(models)
        assert [action.split("/")[0] for action in ids(plan.actions)] == ["upload", "create", "create"]
        (upload,) = (action for action in plan.actions if isinstance(action, UploadBlob))
        assert (upload.digest, upload.size_bytes) == measure(MEMBERS)
        assert_converged(host, host.apply(models))
        host.stranger.delete("one")
        host.stranger.delete("two")
        report = host.apply(models)
        assert failures(report) == {}
        assert host.plan(models).actions == ()
