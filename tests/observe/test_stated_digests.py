"""`sha256:` in a manifest: believed of a file that nobody has read, and never against what has been read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import WEIGHTS_A, WEIGHTS_B, World

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

LATER_NS = 10_000_000_000


@pytest.fixture(params=["0.5.4", "0.12.11", "0.33.0-rc2"])
def world(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    """A clock that is ahead: what was written a moment ago is no longer taken for what may still change."""
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + LATER_NS)
    with Sandbox(as_version=request.param) as sandbox:
        yield World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})


def write(world: World, file: str, data: bytes) -> Digest:
    (world.folder / file).write_bytes(data)
    return Digest.of(data)


def model(name: str, file: str, stated: Digest | None = None) -> dict[str, object]:
    return {"name": name, "files": [file]} | ({"sha256": {file: stated.hex}} if stated else {})


def replaced(data: bytes) -> bytes:
    """The same weights with another last byte."""
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_file_that_was_replaced_without_its_digest_is_found_out(world: World) -> None:
    stated = write(world, "a.gguf", WEIGHTS_A)
    world.declare(model("a", "a.gguf", stated))
    assert world.run("apply", "-y")[0] == 0
    now = write(world, "a.gguf", replaced(WEIGHTS_A))
    for command in (["plan"], ["drift"], ["apply", "-y"]):
        code, text = world.run(*command)
        assert code not in (0, 2), text
        assert f"a.gguf: its digest is {now.short}, and the manifest states {stated.short}" in text
    write(world, "a.gguf", WEIGHTS_A)
    assert world.run("drift")[0] == 0


def test_a_digest_of_another_file_that_the_host_has_is_found_out(world: World) -> None:
    stated = write(world, "a.gguf", WEIGHTS_A)
    world.declare(model("a", "a.gguf"))
    assert world.run("apply", "-y")[0] == 0
    own = write(world, "b.gguf", WEIGHTS_B)
    world.declare(model("a", "a.gguf"), model("b", "b.gguf", stated))
    code, text = world.run("apply", "-y")
    assert code not in (0, 2), text
    assert f"b.gguf: its digest is {own.short}, and the manifest states {stated.short}" in text
    world.declare(model("a", "a.gguf"), model("b", "b.gguf", own))
    assert world.run("apply", "-y")[0] == 0


def test_one_digest_of_two_files_of_other_sizes_is_refused(world: World) -> None:
    stated = write(world, "a.gguf", WEIGHTS_A)
    write(world, "b.gguf", WEIGHTS_A + WEIGHTS_A)
    world.declare(model("a", "a.gguf", stated), model("b", "b.gguf", stated))
    code, text = world.run("plan")
    assert (code, f"the manifest states the digest of {world.folder / 'a.gguf'}" in text) == (1, True), text


@pytest.mark.parametrize("others", [("good", "bad"), ("bad", "good"), ("bad", "plain"), ("plain", "bad")])
def test_a_wrong_digest_in_one_entry_concerns_no_other_entry_of_that_file(
    world: World, others: tuple[str, str]
) -> None:
    own, wrong = write(world, "a.gguf", WEIGHTS_A), Digest.of(b"wrong")
    stated = {"good": own, "bad": wrong, "plain": None}
    world.declare(*(model(name, "a.gguf", stated[name]) for name in others))
    right = next(name for name in others if name != "bad")
    said = (
        f"? bad:latest on gpu: {world.folder / 'a.gguf'}: its digest is {own.short}, and the manifest states"
    )
    for command in (["plan"], ["apply", "-y"], ["drift"]):
        code, text = world.run(*command)
        assert (code, f"{said} {wrong.short}" in text) == (3, True), text
    [host] = json.loads(world.run("status", "-o", "json")[1])["hosts"]
    states = {each["model"]: each["state"] for each in host["models"]}
    assert states == {f"{right}:latest": "in sync", "bad:latest": "unknown"}


def test_a_file_that_nobody_has_read_is_sent_unread_and_known_from_then_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = write(world, "a.gguf", WEIGHTS_A)
    world.declare(model("a", "a.gguf", stated))
    assert world.run("apply", "-y")[0] == 0
    os.utime(world.folder / "a.gguf")  # looks new: it is read once more, and is what it was
    assert world.run("plan", "--detailed-exitcode")[0] == 0


def test_a_file_that_was_written_just_before_it_was_sent_is_found_out_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Sandbox(as_version="0.12.11") as sandbox:
        world = World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})
        stated = write(world, "a.gguf", WEIGHTS_A)
        world.declare(model("a", "a.gguf", stated))
        assert world.run("apply", "-y")[0] == 0
        assert world.run("drift")[0] == 0
        now = write(world, "a.gguf", replaced(WEIGHTS_A))
        code, text = world.run("drift")
        assert code not in (0, 2), text
        assert f"a.gguf: its digest is {now.short}, and the manifest states {stated.short}" in text
