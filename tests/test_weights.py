"""Local weights as facts: what is hashed, what is believed, what is told meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_host import WEIGHTS, weights

from ollamaops.apply import weights as module
from ollamaops.apply.weights import digests_of, tell_hashing, with_headers
from ollamaops.errors import Cancelled, WeightsError
from ollamaops.events import ActionEnded, ActionStarted, Event, Progressed, Succeeded
from ollamaops.files.digest import FileStamp
from ollamaops.manifest.types import WeightsFile
from ollamaops.names import Digest
from ollamaops.plan.observed import FileInfo

STATED = Digest.of(b"something else")


class Cache(dict[FileStamp, Digest]):
    """A memory of digests."""

    def put(self, stamp: FileStamp, digest: Digest) -> None:
        self[stamp] = digest


def test_every_file_is_known_by_digest_and_size() -> None:
    files = [weights("tiny-a.gguf"), weights("tiny-b.gguf"), weights("tiny-a.gguf")]
    found = digests_of(files)
    assert found == {
        file.path: FileInfo(digest=Digest.of(data := Path(str(file.path)).read_bytes()), size_bytes=len(data))
        for file in files
    }


def test_without_files_there_is_nothing_to_hash() -> None:
    assert digests_of([]) == {}


def test_a_stated_digest_is_believed_and_the_file_not_read(tmp_path: Path) -> None:
    told: list[Path] = []
    found = digests_of([weights("tiny-a.gguf", STATED)], on_progress=lambda path, _: told.append(path))
    path = WEIGHTS / "tiny-a.gguf"
    assert found == {path: FileInfo(digest=STATED, size_bytes=path.stat().st_size)}
    assert told == []


def test_a_known_file_is_not_hashed_again() -> None:
    cache, told = Cache(), list[Path]()
    for _ in range(2):
        digests_of([weights("tiny-a.gguf")], cache, on_progress=lambda path, _: told.append(path))
    assert told == [WEIGHTS / "tiny-a.gguf"]


@pytest.mark.parametrize("known", [None, STATED])
def test_a_file_that_is_not_there_or_no_file_is_an_error(tmp_path: Path, known: Digest | None) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(WeightsError, match=str(path)):
            digests_of([WeightsFile(path, "x.gguf", known)])


def test_hashing_can_be_stopped() -> None:
    with pytest.raises(Cancelled):
        digests_of([weights("tiny-a.gguf")], cancel=lambda: True)


def test_headers_say_what_is_in_a_gguf() -> None:
    path, adapter = WEIGHTS / "tiny-chatml.gguf", WEIGHTS / "tiny-lora.gguf"
    found = with_headers(digests_of([weights("tiny-chatml.gguf"), weights("tiny-lora.gguf")]))
    info = found[path]
    assert (info.architecture, info.has_chat_template, info.is_projector) == ("llama", True, False)
    assert info.parameter_count > 0
    assert info.tensors
    assert found[adapter].has_chat_template is False
    assert info.digest == Digest.of(path.read_bytes())


def test_files_of_another_kind_have_no_header() -> None:
    files = [weights("not-a-model.bin"), weights("tiny-hf/model.safetensors")]
    found = digests_of(files)
    assert with_headers(found) == found


def test_a_gguf_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"cut short: 1 of \d+ bytes are missing"):
        with_headers(digests_of([WeightsFile(path, "cut.gguf")]))


def test_hashing_large_files_is_told_as_an_action_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 1 << 20
    monkeypatch.setattr(module, "TELL_FROM_BYTES", 5 * block)
    monkeypatch.setattr(module, "TELL_EVERY_BYTES", 2 * block)
    large, small = tmp_path / "large.gguf", tmp_path / "small.gguf"
    large.write_bytes(b"GGUF" + b"x" * (5 * block))
    small.write_bytes(b"GGUF" + b"x" * (3 * block))
    events: list[Event] = []
    tell = tell_hashing(events.append, run_id="run", now=lambda: "now")
    digests_of([WeightsFile(large, "l"), WeightsFile(small, "s")], on_progress=tell)
    assert {(event.run_id, event.at, event.host, event.action_id) for event in events} == {
        ("run", "now", "", "hash/large.gguf")
    }
    size = large.stat().st_size
    assert [type(event) for event in events] == [ActionStarted, *[Progressed] * 4, ActionEnded]
    assert [
        (event.completed_bytes, event.total_bytes) for event in events if isinstance(event, Progressed)
    ] == [
        (block, size),
        (2 * block, size),
        (4 * block, size),
        (size, size),
    ]
    assert [event.outcome for event in events if isinstance(event, ActionEnded)] == [Succeeded()]
