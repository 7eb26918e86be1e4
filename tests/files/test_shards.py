"""Split GGUF files: found in full, in order, and refused with the numbers when something is wrong."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import WeightsError
from ollamaops.files.gguf import read_gguf
from ollamaops.files.gguf_types import GgufHeader, GgufValue
from ollamaops.files.gguf_writer import TensorData, build_gguf
from ollamaops.files.shards import Shard, check_shard_headers, complete_shards, parse_shard


def names_of(count: int, prefix: str = "w/m") -> tuple[str, ...]:
    return Shard(prefix, 1, count).names_of_all


def a_header(no: int | None, count: int | None, promised: int | None = None, tensors: int = 1) -> GgufHeader:
    values = {"split.no": no, "split.count": count, "split.tensors.count": promised}
    metadata: dict[str, GgufValue] = {key: value for key, value in values.items() if value is not None}
    data = [TensorData(f"t{index}", (1,), "F32", bytes(4)) for index in range(tensors)]
    return read_gguf(io.BytesIO(build_gguf(metadata, data)))


@pytest.mark.parametrize(
    "name, shard",
    [
        ("m-00001-of-00003.gguf", Shard("m", 1, 3)),
        ("a/b-00002-of-00002-00003-of-00010.gguf", Shard("a/b-00002-of-00002", 3, 10)),
        ("https://h/x-00001-of-00001.gguf", Shard("https://h/x", 1, 1)),
        ("-00001-of-00002.gguf", Shard("", 1, 2)),
        ("m.gguf", None),
        ("m-1-of-3.gguf", None),
        ("m-00001-of-00003.gguf.part", None),
        ("m-00001-of-00003.safetensors", None),
        ("m-٠٠٠٠١-of-٠٠٠٠٣.gguf", None),
    ],
)
def test_a_shard_is_known_by_its_name(name: str, shard: Shard | None) -> None:
    assert parse_shard(name) == shard


@pytest.mark.parametrize(
    "name, message",
    [
        ("m-00004-of-00003.gguf", "m-00004-of-00003.gguf: there is no shard 4 of 3"),
        ("m-00000-of-00003.gguf", "m-00000-of-00003.gguf: there is no shard 0 of 3"),
        ("m-00000-of-00000.gguf", "m-00000-of-00000.gguf: there is no shard 0 of 0"),
        ("m-00001-of-99999.gguf", "m-00001-of-99999.gguf: 99999 shards; at most 9999 are possible"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        parse_shard(name)
    assert str(caught.value) == message


@given(st.text(max_size=12), st.integers(1, 99), st.data())
def test_one_shard_stands_for_the_whole_set(prefix: str, count: int, data: st.DataObject) -> None:
    names = Shard(prefix, 1, count).names_of_all
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    assert complete_shards(some, set(data.draw(st.permutations(names)))) == names


def test_other_files_keep_their_place() -> None:
    a, b = names_of(2, "a"), names_of(2, "b")
    found = {*a, *b, "mmproj.gguf", "unasked.gguf"}
    assert complete_shards(["mmproj.gguf", b[1], a[0]], found) == ("mmproj.gguf", *b, *a)


@pytest.mark.parametrize(
    "declared, found, message, hint",
    [
        (
            ["w/m-00001-of-00003.gguf"],
            names_of(3)[:2],
            "w/m-00001-of-00003.gguf: shard 3 of 3 is missing",
            "put m-00003-of-00003.gguf beside it",
        ),
        (
            ["w/m-00003-of-00012.gguf"],
            [names_of(12)[index] for index in (2, 5, 10)],
            "w/m-00003-of-00012.gguf: shards 1–2, 4–5, 7–10, 12 of 12 are missing",
            "put m-00001-of-00012.gguf beside it",
        ),
        (
            ["w/m-00001-of-00040.gguf"],
            names_of(40)[::2],
            "w/m-00001-of-00040.gguf: shards 2, 4, 6, 8, 10, 12, 14, 16, … of 40 are missing",
            "put m-00002-of-00040.gguf beside it",
        ),
        (
            ["w/m-00001-of-00003.gguf"],
            ["w/m-00001-of-00003.gguf", *names_of(2)],
            "w/m-00001-of-00003.gguf: shards 2–3 of 3 are missing; beside it are shards of a set of 2",
            "put m-00002-of-00003.gguf beside it",
        ),
        (
            [names_of(2)[0], names_of(2)[0]],
            names_of(2),
            "w/m-00001-of-00002.gguf: this shard is named twice",
            "name one shard; it means all of them",
        ),
        (
            [names_of(2)[0], names_of(3)[1]],
            [*names_of(2), *names_of(3)],
            "w/m-00002-of-00003.gguf: it is one of 3, but m-00001-of-00002.gguf is one of 2",
            "these are two different splits of the model; name a shard of one of them",
        ),
    ],
)
def test_an_incomplete_set_is_refused_with_what_is_missing(
    declared: list[str], found: list[str], message: str, hint: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        complete_shards(declared, found)
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    "headers",
    [
        {"m.gguf": a_header(None, None)},
        {"m.gguf": a_header(0, 1, 1)},
        {"m-00001-of-00001.gguf": a_header(0, 1, 1)},
        {"m-00001-of-00002.gguf": a_header(0, 2, 3), "m-00002-of-00002.gguf": a_header(1, 2, 3, tensors=2)},
        {"m-00001-of-00002.gguf": a_header(None, None), "m-00002-of-00002.gguf": a_header(None, 2)},
        {
            "m-00001-of-00002.gguf": a_header(0, 2, 1, 0),
            "m-00002-of-00002.gguf": a_header(1, 2),
            "p.gguf": a_header(None, None),
        },
    ],
)
def test_headers_that_agree_with_the_names_pass(headers: dict[str, GgufHeader]) -> None:
    check_shard_headers(headers)


@pytest.mark.parametrize(
    "headers, message",
    [
        ({"m.gguf": a_header(1, 3)}, "m.gguf: its header says shard 2 of 3, its name does not"),
        ({"m.gguf": a_header(None, 3)}, "m.gguf: its header says shard ? of 3, its name does not"),
        (
            {"m-00002-of-00002.gguf": a_header(0, 2)},
            "m-00002-of-00002.gguf: its header says shard 1 of 2, its name says shard 2 of 2",
        ),
        (
            {"m-00002-of-00002.gguf": a_header(1, 3)},
            "m-00002-of-00002.gguf: its header says shard 2 of 3, its name says shard 2 of 2",
        ),
        (
            {"m-00001-of-00002.gguf": a_header(0, 2, 5), "m-00002-of-00002.gguf": a_header(1, 2)},
            "m-00001-of-00002.gguf: its header promises 5 tensors in all shards, 2 are there",
        ),
    ],
)
def test_a_header_that_disagrees_is_refused(headers: dict[str, GgufHeader], message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        check_shard_headers(headers)
    assert str(caught.value) == message
    assert caught.value.hint
