"""The ledger keeps what it was told: through crashes, other writers, damage and disks that refuse."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from properties import shared_fixtures
from unprivileged import as_nobody

from ollamaops.errors import StateError
from ollamaops.files.digest import FileStamp, digest_of
from ollamaops.names import Digest, ModelName
from ollamaops.state.database import APPLICATION_ID, VERSION
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import UNFINISHED, Fingerprint, ModelRecord, RunRecord
from ollamaops.state.upgrade import MIGRATIONS

HOST = "http://gpu-1.lan:11434"
AT = "2026-08-21T10:00:00Z"
DAMAGED_HINT = (
    "move the file away: models are recognized again by their contents, "
    "but those that were rolled back are rolled forward"
)
ELSEWHERE_HINT = "choose a folder that can be written with --state-dir"
STAMP = FileStamp("/weights/a.gguf", 7, 1, 2, 3, 4)


BOT = "registry.ollama.ai/library/bot:latest"


def a_record(**changes: object) -> ModelRecord:
    record = ModelRecord(
        how="created",
        status="doubted",
        fingerprint=Fingerprint("words", "weights"),
        entry="e" * 64,
        digest="d" * 64,
        base_digest="b" * 64,
        blobs=("sha256:" + "1" * 64, "sha256:" + "2" * 64),
        weights_verified=False,
        declared="1" * 32,
        seen_on="Ollama 0.33.0, ollamaops 0.1.0",
        verified_for="2" * 32,
        at=AT,
    )
    return replace(record, **changes)


def tell(ledger: Ledger, *models: str, host: str = HOST, **changes: object) -> None:
    ledger.remember(host, {model: a_record(**changes) for model in models or (BOT,)})


def a_run(run_id: str = "r1", exit_code: int = 0) -> RunRecord:
    return RunRecord(
        run_id=run_id, at=AT, command="apply", hosts="{}", manifest_digest="m" * 64, exit_code=exit_code
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    return Ledger(folder)


def integrity(ledger: Ledger) -> str:
    with closing(sqlite3.connect(ledger.path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


# What is told is kept


def test_a_record_comes_back_as_it_was_told(ledger: Ledger) -> None:
    records = {BOT: a_record(), "other": a_record(how="adopted", base_digest=None, blobs=())}
    for model, record in records.items():
        ledger.remember(HOST, {model: record})
    assert ledger.load(HOST) == records


def test_records_of_another_host_are_not_mixed_in(ledger: Ledger) -> None:
    tell(ledger)
    tell(ledger, host="http://other:11434", digest="e" * 64)
    assert ledger.load(HOST) == {BOT: a_record()}
    assert ledger.load("http://third:11434") == {}


def test_a_newer_record_replaces_the_older_one(ledger: Ledger) -> None:
    tell(ledger)
    tell(ledger, digest="e" * 64)
    assert [record.digest for record in ledger.load(HOST).values()] == ["e" * 64]


def test_a_forgotten_model_is_gone_and_its_neighbour_is_not(ledger: Ledger) -> None:
    tell(ledger)
    tell(ledger, "other")
    ledger.forget(HOST, BOT)
    ledger.forget(HOST, "never-known")
    assert list(ledger.load(HOST)) == ["other"]


@pytest.mark.parametrize(
    "how, owned", [("pulled", True), ("created", True), ("copied", True), ("adopted", False)]
)
def test_only_what_we_brought_about_is_owned(ledger: Ledger, how: str, owned: bool) -> None:
    tell(ledger, how=how)
    assert ledger.load(HOST)[BOT].is_ours == owned


def test_pushes_are_kept_by_model_and_ref(ledger: Ledger) -> None:
    ledger.remember_push(HOST, "bot", "registry/bot:1", ["old", "older"])
    ledger.remember_push(HOST, "bot", "registry/bot:1", ["new"])
    ledger.remember_push(HOST, "bot", "registry/bot:2", ["new", "theirs"])
    ledger.remember_push("http://other", "bot", "registry/bot:1", ["x"])
    assert ledger.load_pushes(HOST) == {
        ("bot", "registry/bot:1"): ("new",),
        ("bot", "registry/bot:2"): ("new", "theirs"),
    }


def test_the_last_runs_come_first(ledger: Ledger) -> None:
    for number in range(5):
        ledger.record_run(a_run(f"r{number}"))
    assert [run.run_id for run in ledger.runs(3)] == ["r4", "r3", "r2"]
    assert ledger.runs()[-1] == a_run("r0")


def test_everything_about_a_run_is_kept_and_one_that_was_killed_is_not_finished(ledger: Ledger) -> None:
    run = replace(
        a_run(),
        plan='{"hosts": []}',
        outcomes="[]",
        who="alice@build-7",
        commit="c" * 40,
        ended_at=AT,
    )
    ledger.record_run(run)
    ledger.record_run(a_run("killed", exit_code=UNFINISHED))
    assert ledger.runs() == (a_run("killed", exit_code=UNFINISHED), run)
    assert [run.is_finished for run in ledger.runs()] == [False, True]


def test_runs_are_found_by_the_beginning_of_their_id_taken_literally(ledger: Ledger) -> None:
    for run_id in ("abc", "abd", "b%", "b_x"):
        ledger.record_run(a_run(run_id))
    assert [run.run_id for run in ledger.find_runs("ab")] == ["abd", "abc"]
    assert [run.run_id for run in ledger.find_runs("b%")] == ["b%"]
    assert ledger.find_runs("AB") == ledger.find_runs("abcd") == ()


def test_several_records_are_kept_at_once(ledger: Ledger) -> None:
    tell(ledger, "other", BOT)
    assert list(ledger.load(HOST)) == ["other", BOT]


def test_a_run_recorded_again_with_its_end_is_one_run(ledger: Ledger) -> None:
    ledger.record_run(a_run(exit_code=1))
    ledger.record_run(a_run(exit_code=0))
    assert ledger.runs() == (a_run(exit_code=0),)


@shared_fixtures()
@given(model=st.text(), words=st.text(), blobs=st.lists(st.text()))
def test_any_text_is_kept(ledger: Ledger, model: str, words: str, blobs: list[str]) -> None:
    record = a_record(fingerprint=Fingerprint(words, words), blobs=tuple(blobs))
    ledger.remember(HOST, {model: record})
    assert ledger.load(HOST)[model] == record


def test_text_that_is_not_unicode_is_kept_escaped(ledger: Ledger) -> None:
    ledger.record_run(replace(a_run(), command="apply -f \udcff.yaml"))
    assert ledger.runs()[0].command == "apply -f \\udcff.yaml"


# File digests


def test_a_digest_is_known_for_exactly_the_stamp_it_was_kept_for(folder: Path) -> None:
    digest = Digest.of(b"weights")
    Ledger(folder).put(STAMP, digest)
    ledger = Ledger(folder)
    assert ledger.get(STAMP) == digest
    for field in ("size_bytes", "mtime_ns", "ctime_ns", "inode", "device"):
        assert ledger.get(replace(STAMP, **{field: 99})) is None
    assert ledger.get(replace(STAMP, path="/weights/b.gguf")) is None


def test_a_newer_digest_of_a_path_replaces_the_older_one(ledger: Ledger) -> None:
    newer = replace(STAMP, mtime_ns=9)
    assert ledger.get(STAMP) is None
    ledger.put(STAMP, Digest.of(b"old"))
    assert ledger.get(STAMP) == Digest.of(b"old")
    ledger.put(newer, Digest.of(b"new"))
    assert (ledger.get(STAMP), ledger.get(newer)) == (None, Digest.of(b"new"))


def test_stamps_of_every_file_system_fit(ledger: Ledger) -> None:
    stamp = FileStamp("/odd/\udcff name", 2**63, -1, 2**64, 2**64 - 1, 2**64 - 1)
    ledger.put(stamp, Digest.of(b""))
    assert Ledger(ledger.folder).get(stamp) == Digest.of(b"")


def test_the_ledger_serves_as_cache_for_hashing(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    for _ in range(2):
        facts = digest_of(path, ledger, clock_ns=lambda: 0)
        assert facts.digest == Digest.of(b"weights")
    assert Ledger(ledger.folder).get(facts.stamp) == facts.digest


# Nothing there, nothing made


READS: list[Callable[[Ledger], object]] = [
    lambda ledger: ledger.load(HOST),
    lambda ledger: ledger.load_pushes(HOST),
    lambda ledger: ledger.runs(),
    lambda ledger: ledger.get(STAMP),
    lambda ledger: ledger.load_evictions("gpu-1"),
]


@pytest.mark.parametrize("read", READS)
def test_reading_a_ledger_that_is_not_there_finds_nothing_and_makes_nothing(
    tmp_path: Path, read: Callable[[Ledger], object]
) -> None:
    assert not read(Ledger(tmp_path / "not" / "there"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", READS)
def test_reading_an_empty_file_finds_nothing_and_writes_nothing(
    ledger: Ledger, read: Callable[[Ledger], object]
) -> None:
    ledger.folder.mkdir()
    ledger.path.touch()
    assert not read(ledger)
    assert ledger.path.stat().st_size == 0


def test_an_empty_file_becomes_a_ledger_with_the_first_fact(ledger: Ledger) -> None:
    ledger.folder.mkdir()
    ledger.path.touch()
    tell(ledger)
    assert ledger.load(HOST)


def test_folder_and_file_are_made_for_this_user_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "state")
    tell(ledger)
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert [path.name for path in ledger.folder.iterdir()] == ["ledger.sqlite3"]


def test_making_a_ledger_writes_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


# Several at once


def test_a_ledger_can_be_pickled_and_goes_on(ledger: Ledger) -> None:
    tell(ledger)
    assert ledger.get(STAMP) is None
    twin = pickle.loads(pickle.dumps(ledger))
    twin.put(STAMP, Digest.of(b"x"))
    assert (twin.load(HOST), twin.path) == (ledger.load(HOST), ledger.path)


def test_threads_write_through_one_ledger(ledger: Ledger) -> None:
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for number in range(20):
                tell(ledger, f"{name}{number}")
        except StateError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ledger.load(HOST)) == 80


def write_many(folder: Path, name: str, count: int) -> None:
    ledger = Ledger(folder)
    for number in range(count):
        tell(ledger, f"{name}{number}")
        ledger.put(replace(STAMP, path=f"/{name}{number}"), Digest.of(name.encode()))
        ledger.load(HOST)


def test_two_processes_write_at_once_and_nothing_is_lost(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(folder, name, 100)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    ledger = Ledger(folder)
    assert set(ledger.load(HOST)) == {
        f"{name}{number}" for name in ("left", "right") for number in range(100)
    }
    assert integrity(ledger) == "ok"


WRITE_FOREVER = """
import itertools, sys
from ollamaops.state.ledger import Ledger, ModelRecord
ledger = Ledger(sys.argv[1])
for number in itertools.count():
    ledger.remember("h", {str(number): ModelRecord(how="pulled", digest="d" * 5000)})
    print(number, flush=True)
"""


@pytest.mark.parametrize("facts_before_death", [1, 2, 7, 40])
def test_kill_9_loses_no_fact_that_was_told(folder: Path, facts_before_death: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        told = [next(writer.stdout).strip() for _ in range(facts_before_death)]
        writer.send_signal(signal.SIGKILL)
    ledger = Ledger(folder)
    assert set(told) <= set(ledger.load("h"))
    assert integrity(ledger) == "ok"
    tell(ledger)
    assert ledger.load(HOST) == {BOT: a_record()}


def test_another_writer_is_waited_for(ledger: Ledger) -> None:
    tell(ledger)
    with closing(sqlite3.connect(ledger.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.1, lambda: other.execute("COMMIT"))
        release.start()
        tell(ledger, "second")
        release.join()
    assert len(ledger.load(HOST)) == 2


def test_a_writer_that_never_ends_is_named(folder: Path) -> None:
    ledger = Ledger(folder, busy_timeout_s=0.01)
    tell(ledger)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for ask in (lambda: tell(ledger, "second"), lambda: ledger.load(HOST)):
            with pytest.raises(StateError) as caught:
                ask()
            assert str(caught.value) == (
                f"{ledger.path}: the ledger cannot be used: it is locked by another process"
            )
            assert caught.value.hint == "wait until the other run has ended, then run again"


# Versions


def write_version(ledger: Ledger, version: int, application_id: int = APPLICATION_ID) -> None:
    """A ledger as the program of that version left it."""
    ledger.folder.mkdir()
    with closing(sqlite3.connect(ledger.path)) as connection:
        for step in MIGRATIONS[:version]:
            for statement in step:
                if isinstance(statement, str):
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {application_id}")
        connection.execute(f"PRAGMA user_version = {version}")
        if version < 4:
            connection.execute("INSERT INTO pushed VALUES (?, 'bot', 'ref', 'digest')", (HOST,))
        else:
            connection.execute("""INSERT INTO push VALUES (?, 'bot', 'ref', '["digest"]')""", (HOST,))
        connection.commit()


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("touch", [lambda ledger: ledger.runs(), lambda ledger: ledger.record_run(a_run())])
def test_the_ledger_of_an_older_version_is_migrated_with_its_facts(
    ledger: Ledger, version: int, touch: Callable[[Ledger], object]
) -> None:
    write_version(ledger, version)
    touch(ledger)
    assert ledger.load_pushes(HOST) == {("bot", "ref"): ("digest",)}
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)


def migrate(folder: Path) -> None:
    Ledger(folder).runs()


def test_two_processes_may_migrate_at_once(ledger: Ledger) -> None:
    write_version(ledger, 1)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=migrate, args=(ledger.folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_the_ledger_of_a_newer_version_is_refused_and_left_alone(ledger: Ledger) -> None:
    write_version(ledger, VERSION)
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = ledger.path.read_bytes()
    for ask in (lambda: ledger.load(HOST), lambda: tell(ledger)):
        with pytest.raises(StateError) as caught:
            ask()
        assert str(caught.value) == (
            f"{ledger.path}: written by a newer ollamaops: version {VERSION + 1}, this one knows {VERSION}"
        )
        assert caught.value.hint == "upgrade ollamaops, or choose another folder with --state-dir"
    assert ledger.path.read_bytes() == before


# Damage


@pytest.mark.parametrize("ask", [lambda ledger: ledger.load(HOST), lambda ledger: tell(ledger)])
@pytest.mark.parametrize("garbage", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 2000])
def test_garbage_in_place_of_the_ledger_is_named_and_left_alone(
    ledger: Ledger, garbage: bytes, ask: Callable[[Ledger], object]
) -> None:
    ledger.folder.mkdir()
    ledger.path.write_bytes(garbage)
    with pytest.raises(StateError) as caught:
        ask(ledger)
    assert str(caught.value).startswith(f"{ledger.path}: the ledger cannot be used: it is damaged: ")
    assert caught.value.hint == DAMAGED_HINT
    assert ledger.path.read_bytes() == garbage


@pytest.mark.parametrize("length", [100, 4096, 5000])
def test_a_ledger_cut_short_is_named(ledger: Ledger, length: int) -> None:
    for number in range(50):
        tell(ledger, f"model-{number}")
    os.truncate(ledger.path, length)
    with pytest.raises(StateError, match="the ledger cannot be used"):
        ledger.load(HOST)


def test_the_database_of_another_program_is_not_touched(ledger: Ledger) -> None:
    write_version(ledger, 1, application_id=0)
    before = ledger.path.read_bytes()
    for ask in (lambda: ledger.load(HOST), lambda: tell(ledger)):
        with pytest.raises(StateError) as caught:
            ask()
        assert (
            str(caught.value) == f"{ledger.path}: not a usable ledger: it is the database of another program"
        )
        assert caught.value.hint == DAMAGED_HINT
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    "change, read, message",
    [
        ("UPDATE model SET how = 'stolen'", READS[0], "a model cannot be 'stolen' and 'doubted'"),
        ("UPDATE model SET status = 'odd'", READS[0], "a model cannot be 'created' and 'odd'"),
        ("UPDATE model SET blobs = '{}'", READS[0], "'{}' is not a list of texts"),
        ("UPDATE model SET blobs = 'x'", READS[0], "'x' is not JSON"),
        ("UPDATE eviction SET models = '[]'", READS[4], "does not say which models were evicted"),
        ("""UPDATE eviction SET models = '{"": []}'""", READS[4], "does not say which models were evicted"),
        ("""UPDATE eviction SET models = '{"a": 1}'""", READS[4], "does not say which models were evicted"),
        ("UPDATE file_digest SET digest = 'x'", READS[3], "'x' is not a digest"),
        ("DROP TABLE run", READS[2], "it is damaged: no such table: run"),
    ],
)
def test_contents_that_we_did_not_write_are_named(
    ledger: Ledger, change: str, read: Callable[[Ledger], object], message: str
) -> None:
    tell(ledger)
    ledger.put(STAMP, Digest.of(b""))
    ledger.remember_evictions("gpu-1", {ModelName.parse("a"): ()})
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute(change)
        connection.commit()
    with pytest.raises(StateError, match=message):
        read(Ledger(ledger.folder))


def test_a_folder_in_place_of_the_ledger_is_named(ledger: Ledger) -> None:
    ledger.path.mkdir(parents=True)
    with pytest.raises(StateError) as caught:
        ledger.load(HOST)
    assert str(caught.value) == f"{ledger.path}: the ledger cannot be used: it cannot be opened"
    assert caught.value.hint == ELSEWHERE_HINT


def test_a_file_in_place_of_the_folder_is_named_when_something_is_to_be_kept(ledger: Ledger) -> None:
    ledger.folder.write_text("in the way")
    assert ledger.load(HOST) == {}
    with pytest.raises(StateError) as caught:
        tell(ledger)
    assert str(caught.value) == f"{ledger.path}: the ledger cannot be used: file exists"
    assert caught.value.hint == ELSEWHERE_HINT


# Disks that refuse


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_folder_can_be_read_from(open_folder: Path) -> None:
    ledger = Ledger(open_folder)
    tell(ledger)
    ledger.path.chmod(0o444)
    open_folder.chmod(0o555)
    with as_nobody():
        assert ledger.load(HOST) == {BOT: a_record()}
        with pytest.raises(StateError) as caught:
            tell(ledger)
    assert str(caught.value) == f"{ledger.path}: the ledger cannot be used: it is read-only"
    assert caught.value.hint == ELSEWHERE_HINT


def test_a_folder_that_cannot_be_written_remembers_nothing(open_folder: Path) -> None:
    ledger = Ledger(open_folder / "state")
    open_folder.chmod(0o555)
    with as_nobody():
        assert ledger.load(HOST) == {}
        with pytest.raises(StateError) as caught:
            tell(ledger)
    assert str(caught.value) == f"{ledger.path}: the ledger cannot be used: permission denied"
    assert caught.value.hint == ELSEWHERE_HINT


def test_a_ledger_of_another_user_is_named(open_folder: Path) -> None:
    ledger = Ledger(open_folder)
    tell(ledger)
    ledger.path.chmod(0)
    with as_nobody(), pytest.raises(StateError) as caught:
        ledger.load(HOST)
    assert str(caught.value) == f"{ledger.path}: the ledger cannot be used: it cannot be opened"
    assert caught.value.hint == ELSEWHERE_HINT


def fill_the_disk(folder: Path, limit_bytes: int) -> None:
    """Write until files may not grow any more; exit 7 when that is told as it should be."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = Ledger(folder)
    try:
        for number in range(1000):
            tell(ledger, f"model-{number}")
    except StateError as error:
        told = str(error).startswith(f"{ledger.path}: the ledger cannot be used: ") and error.hint
        sys.exit(7 if told else 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.parametrize("limit_bytes", [0, 4096, 65536])
def test_a_disk_that_takes_no_more_is_named_and_nothing_is_lost(folder: Path, limit_bytes: int) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=fill_the_disk, args=(folder, limit_bytes))
    writer.start()
    writer.join()
    assert writer.exitcode == 7
    ledger = Ledger(folder)
    known = ledger.load(HOST)
    assert set(known) == {f"model-{number}" for number in range(len(known))}
    tell(ledger)
    assert integrity(ledger) == "ok"
