"""The folder of downloads: fetched once, taken up after a cut, never larger than allowed, shared by processes."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from patience import PATIENCE_S

from ollamaops.errors import Cancelled, ConnectionLost, DigestMismatch, WeightsError
from ollamaops.files.download_cache import DownloadCache
from ollamaops.files.location import RemoteFile, RemoteRef
from ollamaops.names import Digest

BODY = bytes(range(256)) * 40


class Shelf:
    """Where the bytes come from. `offsets` are those that were asked for; a read that reaches `cut_at` fails."""

    def __init__(self, body: bytes = BODY, cut_at: int | None = None) -> None:
        self.body, self.cut_at = body, cut_at
        self.offsets: list[int] = []

    @contextmanager
    def open(self, offset: int) -> Iterator[Shelf]:
        self.offsets.append(offset)
        self.file = io.BytesIO(self.body)
        self.file.seek(offset)
        yield self

    def read(self, size: int, /) -> bytes:
        if self.cut_at is not None and self.file.tell() >= self.cut_at:
            raise ConnectionLost("cut")
        return self.file.read(min(size, 1000))


def a_file(name: str = "a.gguf", **changes: object) -> RemoteFile:
    ref = RemoteRef(f"s3://bucket/{name}")
    file = RemoteFile(ref=ref, url=str(ref), digest=None, size_bytes=len(BODY), version="one")
    return replace(file, **changes)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_its_digest_found_on_the_way(tmp_path: Path) -> None:
    shelf, cache = Shelf(), DownloadCache(tmp_path / "new" / "cache")
    told: list[int] = []
    first = cache.fetch(a_file(), shelf.open, on_progress=told.append)
    assert first.path.read_bytes() == BODY
    assert (first.digest, first.size_bytes) == (Digest.of(BODY), len(BODY))
    assert told == sorted(told)
    assert told[-1] == len(BODY)
    assert cache.fetch(a_file(), shelf.open).path == first.path
    assert shelf.offsets == [0]


def test_another_version_at_the_same_address_is_fetched_anew(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path)
    cache.fetch(a_file(), Shelf().open)
    other = Shelf(b"other")
    found = cache.fetch(a_file(version="two", size_bytes=5), other.open)
    assert (found.digest, other.offsets) == (Digest.of(b"other"), [0])


def test_a_file_with_a_stated_digest_is_found_whatever_its_address(tmp_path: Path) -> None:
    cache, shelf = DownloadCache(tmp_path), Shelf()
    cache.fetch(a_file("one.gguf", digest=Digest.of(BODY), version=""), shelf.open)
    cache.fetch(a_file("two.gguf", digest=Digest.of(BODY), version="x"), shelf.open)
    assert shelf.offsets == [0]


def test_without_digest_and_version_nothing_is_believed(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path)
    cut, whole, again = Shelf(cut_at=3000), Shelf(), Shelf(b"other")
    with pytest.raises(ConnectionLost):
        cache.fetch(a_file(version=""), cut.open)
    cache.fetch(a_file(version=""), whole.open)
    found = cache.fetch(a_file(version=""), again.open)
    assert (whole.offsets, again.offsets, found.digest) == ([0], [0], Digest.of(b"other"))


def test_a_download_that_was_cut_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    cache, cut, rest = DownloadCache(tmp_path), Shelf(cut_at=3000), Shelf()
    with pytest.raises(ConnectionLost):
        cache.fetch(a_file(), cut.open)
    found = cache.fetch(a_file(), rest.open)
    assert rest.offsets == [3000]
    assert (found.path.read_bytes(), found.digest) == (BODY, Digest.of(BODY))
    assert names_in(tmp_path) == [found.path.name]


def test_a_download_that_got_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost):
        DownloadCache(tmp_path).fetch(a_file(), Shelf(cut_at=0).open)
    assert names_in(tmp_path) == []


def test_what_is_not_as_stated_is_refused_and_not_kept(tmp_path: Path) -> None:
    stated = Digest.of(b"another")
    with pytest.raises(DigestMismatch) as caught:
        DownloadCache(tmp_path).fetch(a_file(digest=stated), Shelf().open)
    words = f"the digest of what was fetched is {Digest.of(BODY)}, the manifest states {stated}"
    assert str(caught.value) == f"s3://bucket/a.gguf: {words}"
    assert names_in(tmp_path) == []


def test_the_longest_unused_goes_when_room_is_needed(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path, max_bytes=2 * len(BODY))
    old, young = cache.fetch(a_file("old"), Shelf().open), cache.fetch(a_file("young"), Shelf().open)
    for age_s, facts in ((100, young), (200, old)):
        os.utime(facts.path, (facts.stamp.mtime_ns / 1e9 - age_s,) * 2)
    assert cache.fetch(a_file("old"), Shelf().open).path == old.path
    new = cache.fetch(a_file("new"), Shelf().open)
    assert names_in(tmp_path) == sorted([old.path.name, new.path.name])


def test_room_is_made_only_of_downloads(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path / "cache", max_bytes=len(BODY))
    old = cache.fetch(a_file("old"), Shelf().open)
    (tmp_path / "notes.txt").write_text("precious")
    (old.path.parent / "notes.txt").write_bytes(BODY)
    link = old.path.with_name(f"{'0' * 32}-{'0' * 64}")
    link.symlink_to(tmp_path / "notes.txt")
    new = cache.fetch(a_file("new"), Shelf().open)
    assert names_in(old.path.parent) == sorted([new.path.name, link.name, "notes.txt"])


def a_link_in_the_cache(folder: Path, ending: str) -> Path:
    """The file outside that the link leads to, which stands where a download has this ending."""
    first = DownloadCache(folder / "one").fetch(a_file(), Shelf().open)
    (folder / "outside").write_text("precious")
    (folder / "two").mkdir()
    key, _, _ = first.path.name.partition("-")
    (folder / "two" / f"{key}{ending}").symlink_to(folder / "outside")
    return folder / "outside"


def test_a_download_is_not_written_behind_a_link(tmp_path: Path) -> None:
    outside = a_link_in_the_cache(tmp_path, ".part")
    with pytest.raises(WeightsError, match="symbolic links"):
        DownloadCache(tmp_path / "two").fetch(a_file(), Shelf().open)
    assert outside.read_text() == "precious"


def test_a_link_is_not_taken_for_a_download(tmp_path: Path) -> None:
    outside = a_link_in_the_cache(tmp_path, f"-{Digest.of(BODY).hex}")
    assert DownloadCache(tmp_path / "two").fetch(a_file(), Shelf().open).path.read_bytes() == BODY
    assert outside.read_text() == "precious"


def test_a_file_of_untold_size_makes_room_when_it_is_there(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path, max_bytes=len(BODY))
    cache.fetch(a_file("old"), Shelf().open)
    new = cache.fetch(a_file("new", size_bytes=None), Shelf().open)
    assert names_in(tmp_path) == [new.path.name]


@pytest.mark.parametrize("size_bytes, offsets", [(len(BODY), []), (None, [0])])
def test_what_can_never_fit_is_refused_with_the_numbers(
    tmp_path: Path, size_bytes: int | None, offsets: list[int]
) -> None:
    shelf, cache = Shelf(), DownloadCache(tmp_path, max_bytes=5000)
    with pytest.raises(WeightsError) as caught:
        cache.fetch(a_file(size_bytes=size_bytes), shelf.open)
    told = re.fullmatch(
        r"s3://bucket/a\.gguf: (\S+ kB) do not fit into the download cache of 5\.0 kB", str(caught.value)
    )
    assert told
    assert shelf.offsets == offsets
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_weights_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError) as caught:
        DownloadCache(tmp_path / "file" / "cache").fetch(a_file(), Shelf().open)
    folder = tmp_path / "file" / "cache"
    assert str(caught.value) == f"s3://bucket/a.gguf: cannot be kept in {folder}: not a directory"


def test_cancelling_keeps_what_has_come(tmp_path: Path) -> None:
    cache, shelf, looks = DownloadCache(tmp_path), Shelf(), iter([False, False, True])
    with pytest.raises(Cancelled):
        cache.fetch(a_file(), shelf.open, cancel=lambda: next(looks))
    rest = Shelf()
    cache.fetch(a_file(), rest.open)
    assert rest.offsets == [2000]


class Slow(Shelf):
    """A shelf whose bytes come when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.opened, self.go = threading.Event(), threading.Event()

    def read(self, size: int, /) -> bytes:
        self.opened.set()
        assert self.go.wait(PATIENCE_S)
        return super().read(size)


def test_two_who_want_one_file_fetch_it_once(tmp_path: Path) -> None:
    slow, other, found = Slow(), Shelf(), []
    workers = [
        threading.Thread(target=lambda s=shelf: found.append(DownloadCache(tmp_path).fetch(a_file(), s.open)))
        for shelf in (slow, other)
    ]
    workers[0].start()
    assert slow.opened.wait(PATIENCE_S)
    workers[1].start()
    slow.go.set()
    for worker in workers:
        worker.join()
    assert len({facts.path for facts in found}) == 1
    assert (slow.offsets, other.offsets) == ([0], [])


def test_waiting_for_another_download_can_be_cancelled_and_does_not_cost_it_its_room(tmp_path: Path) -> None:
    slow = Slow()
    worker = threading.Thread(target=lambda: DownloadCache(tmp_path).fetch(a_file(), slow.open))
    worker.start()
    assert slow.opened.wait(PATIENCE_S)
    with pytest.raises(Cancelled, match="waiting for another download was stopped"):
        DownloadCache(tmp_path).fetch(a_file(), Shelf().open, cancel=lambda: True)
    DownloadCache(tmp_path, max_bytes=len(BODY)).fetch(a_file("other"), Shelf().open)
    slow.go.set()
    worker.join()
    assert len(names_in(tmp_path)) == 2
