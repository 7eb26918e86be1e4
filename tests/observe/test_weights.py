"""Local weights as facts: what is hashed, what is believed, what is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from live_host import WEIGHTS, weights

from ollamaops.cli.main import run
from ollamaops.errors import Cancelled, WeightsError
from ollamaops.events import ActionEnded, ActionStarted, Event, Progressed, Succeeded
from ollamaops.files.digest import HASHED_BYTES, FileStamp
from ollamaops.files.location import FileInfo, RemoteRef
from ollamaops.manifest.types import WeightsFile
from ollamaops.names import Digest
from ollamaops.observe import weights as module
from ollamaops.observe.weights import digests_of, tell_reading, with_headers
from ollamaops.sandbox.server import Sandbox

STATED = Digest.of(b"something else")


class Cache(dict[FileStamp, Digest]):
    """A memory of digests."""

    def has_seen(self, path: Path) -> bool:
        return any(stamp.path == str(path) for stamp in self)

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
    told: list[object] = []
    found = digests_of([weights("tiny-a.gguf", STATED)], on_progress=lambda path, *_: told.append(path))
    path = WEIGHTS / "tiny-a.gguf"
    assert found == {path: FileInfo(digest=STATED, size_bytes=path.stat().st_size, stated=True)}
    assert told == []


def test_a_known_file_is_not_hashed_again() -> None:
    cache, told = Cache(), list[object]()
    for _ in range(2):
        digests_of([weights("tiny-a.gguf")], cache, on_progress=lambda path, *_: told.append(path))
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
    info, other = found[path], found[adapter]
    assert isinstance(info, FileInfo)
    assert isinstance(other, FileInfo)
    assert (info.architecture, bool(info.chat_template), info.is_projector) == ("llama", True, False)
    assert info.parameter_count > 0
    assert info.tensors
    assert other.chat_template == ""
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


def ticks(*moments: float) -> Callable[[], float]:
    """A clock that shows these moments, one after the other."""
    left = list(moments)
    return lambda: left.pop(0)


LARGE = Path("w/large.gguf")


def test_reading_that_takes_long_is_told_as_an_action_of_its_own() -> None:
    events: list[Event] = []
    clock = ticks(0, 0.9, 1.0, 1.2, 1.5, 1.6)
    tell = tell_reading(events.append, run_id="run", now=lambda: "now", clock=clock)
    for done_bytes in (1, 2, 3, 4, 5, 6):
        tell(LARGE, done_bytes, 6)
    assert {(event.run_id, event.at, event.host, event.action_id) for event in events} == {
        ("run", "now", "", "hash/w/large.gguf")
    }
    assert [type(event) for event in events] == [ActionStarted, *[Progressed] * 3, ActionEnded]
    told = [event for event in events if isinstance(event, Progressed)]
    assert [(event.status, event.completed_bytes, event.total_bytes) for event in told] == [
        ("hashing", 3, 6),
        ("hashing", 5, 6),
        ("hashing", 6, 6),
    ]
    assert [event.outcome for event in events if isinstance(event, ActionEnded)] == [Succeeded(seconds=1.6)]


@pytest.mark.parametrize("moments", [(0, 0.5, 0.9), (0, 0.5, 1.1)])
def test_reading_that_is_over_soon_is_not_told(moments: tuple[float, ...]) -> None:
    events: list[Event] = []
    tell = tell_reading(events.append, run_id="run", now=lambda: "now", clock=ticks(*moments))
    for done_bytes in (1, 2, 3):
        tell(LARGE, done_bytes, 3)
    assert events == []


def test_fetching_from_elsewhere_is_told_under_its_own_name_even_when_its_size_is_not_known() -> None:
    events: list[Event] = []
    tell = tell_reading(events.append, run_id="run", now=lambda: "now", clock=ticks(0, 2, 3))
    for done_bytes in (1, 2, 3):
        tell(RemoteRef("s3://bucket/large.gguf"), done_bytes, 0)
    assert [type(event) for event in events] == [ActionStarted, Progressed, Progressed]
    assert {event.action_id for event in events} == {"fetch/large.gguf"}


def test_what_is_told_is_what_was_read(tmp_path: Path) -> None:
    path, told = tmp_path / "a.gguf", list[tuple[object, int, int]]()
    path.write_bytes(b"GGUF" + bytes(HASHED_BYTES))
    digests_of([WeightsFile(path, "a")], on_progress=lambda *read: told.append(read))
    size = path.stat().st_size
    assert told == [(path, HASHED_BYTES, size), (path, size, size)]


def test_the_command_line_shows_hashing_as_it_shows_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TELL_AFTER_S", 0.0)
    (tmp_path / "w.gguf").write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes() + bytes(3 * HASHED_BYTES))
    with Sandbox() as sandbox:
        (tmp_path / "m.yaml").write_text(
            f"hosts: {{h: {{url: '{sandbox.url}'}}}}\nmodels: [{{name: m, files: [w.gguf]}}]\n"
        )
        options = ["-f", str(tmp_path / "m.yaml")]
        for quiet, lines in (("--quiet", 0), ("--progress=plain", 2)):
            assert run(["plan", quiet, *options]) == 0
            said = capsys.readouterr().err
            assert said.count(f"hash {tmp_path.name}/w.gguf: ") == lines
