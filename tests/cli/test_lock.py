"""`ollamaops lock` against a real registry: the same bytes every time, and nothing tampered with goes unseen."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE_S
from pulled_models import WEIGHTS_B, World, entry, publish
from registry_fixture import Reply, Request, RunningRegistry, run_registry, run_server

from ollamaops.names import Digest

ERAS = ["0.12.11", "0.33.0"]
NOWHERE = "localhost:1"  # nothing listens there


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(tmp_path, capsys)


@pytest.fixture
def mario(registry: RunningRegistry, request: pytest.FixtureRequest) -> str:
    """`team…/mario:v1`, published for this test alone."""
    number = Digest.of(request.node.nodeid.encode()).short
    path = f"team-{number}/mario:v1"
    publish(registry, path, template=b"{{ .Prompt }}", license=b"MIT")
    return path


class TestWriting:
    def test_two_runs_write_the_same_bytes_and_the_lock_checks_out(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        world.declare(entry(registry, mario))
        code, text = world.run("lock")
        assert (code, "1 added" in text) == (0, True)
        first = world.lock.read_bytes()
        world.lock.unlink()
        assert world.run("lock")[0] == 0
        assert world.lock.read_bytes() == first
        code, text = world.run("lock")
        assert (code, text) == (0, f"1 kept; {world.lock} not changed\n")
        assert world.run("lock", "--check") == (0, f"{world.lock}: 1 same\n")

    def test_every_layer_is_written_down(self, world: World, registry: RunningRegistry, mario: str) -> None:
        world.declare(entry(registry, mario))
        world.run("lock")
        (locked,) = yaml.safe_load(world.lock.read_text())["models"].values()
        kinds = [layer["media_type"].rpartition(".")[2] for layer in locked["layers"]]
        assert kinds == ["model", "template", "license"]

    def test_bases_that_nobody_declares_and_mirrors_are_locked_under_what_is_pulled(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        ref = f"{registry.host}/{mario}"
        world.declare(
            {"name": "mirror", "pull": ref, "insecure": True},
            {"name": "bot", "from": f"{NOWHERE}/team/base", "system": "hi"},
        )
        assert world.states("lock") == {ref: "added", f"{NOWHERE}/team/base:latest": "failed"}

    def test_entries_stay_until_an_update_is_asked_for(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        world.declare(entry(registry, mario))
        world.run("lock")
        before = world.lock.read_bytes()
        publish(registry, mario, model=WEIGHTS_B, template=b"{{ .Prompt }}")
        assert world.run("lock")[0] == 0
        assert world.lock.read_bytes() == before
        code, text = world.run("lock", "--update")
        assert (code, world.lock.read_bytes() != before) == (0, True)
        assert "weights 115 kB → 115 kB, license 3 B → none: 115 kB new" in text

    def test_an_update_can_be_for_one_model_by_its_own_name_or_by_the_registrys(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        luigi = mario.replace("mario", "luigi")
        publish(registry, luigi)
        refs = {name: f"{registry.host}/{name}" for name in (mario, luigi)}
        world.declare({"name": "mirror", "pull": refs[mario], "insecure": True}, entry(registry, luigi))
        assert set(world.states("lock").values()) == {"added"}
        for path in (mario, luigi):
            publish(registry, path, model=WEIGHTS_B)
        assert world.states("lock", "--update", "mirror") == {refs[mario]: "updated", refs[luigi]: "kept"}
        assert world.states("lock", "--update", refs[luigi]) == {refs[mario]: "kept", refs[luigi]: "updated"}

    def test_entries_that_nobody_declares_any_more_go_unless_only_a_part_was_looked_at(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        luigi = mario.replace("mario", "luigi")
        publish(registry, luigi)
        world.declare(entry(registry, mario), entry(registry, luigi))
        assert set(world.states("lock").values()) == {"added"}
        world.declare(entry(registry, mario))
        only = f"{registry.host}/{mario}"
        assert world.states("lock", "--target", only) == {only: "kept"}
        assert "luigi" in world.lock.read_text()
        assert world.states("lock")[f"{registry.host}/{luigi}"] == "removed"
        assert "luigi" not in world.lock.read_text()

    @pytest.mark.parametrize("update", ["latest", "never"])
    def test_models_that_follow_their_tag_or_are_never_pulled_are_not_locked(
        self, world: World, registry: RunningRegistry, mario: str, update: str
    ) -> None:
        world.declare(entry(registry, mario, update=update))
        assert world.run("lock") == (0, f"nothing to lock; {world.lock} written\n")

    def test_a_registry_that_cannot_be_reached_keeps_its_old_entries(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        world.declare(entry(registry, mario))
        world.run("lock")
        forged = world.lock.read_text().replace(registry.host, NOWHERE)
        world.lock.write_text(forged)
        world.declare(
            entry(registry, mario), {"name": f"{NOWHERE}/{mario}", "insecure": True}, f"{NOWHERE}/team/new"
        )
        code, models = world.json("lock", "--update")
        assert code == 3
        assert {name: model["state"] for name, model in models.items()} == {
            f"{registry.host}/{mario}": "added",
            f"{NOWHERE}/{mario}": "failed",
            f"{NOWHERE}/team/new:latest": "failed",
        }
        text = world.lock.read_text()
        assert f"{NOWHERE}/{mario}" in text
        assert f"{NOWHERE}/team/new" not in text
        assert "connection refused" in str(models[f"{NOWHERE}/{mario}"]["error"])

    def test_no_file_is_made_when_nothing_could_be_asked(self, world: World) -> None:
        world.declare(f"{NOWHERE}/team/new")
        code, text = world.run("lock")
        assert code == 3
        assert "not locked: localhost:1: " in text
        assert not world.lock.exists()

    def test_a_model_that_the_registry_does_not_have_is_named(
        self, world: World, registry: RunningRegistry
    ) -> None:
        world.declare(entry(registry, "team/nobody:v1"))
        code, text = world.run("lock")
        assert code == 3
        assert f"! {registry.host}/team/nobody:v1: not locked: " in text
        assert "status 404" in text

    def test_what_the_manifest_pins_otherwise_is_not_locked(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        world.declare(entry(registry, mario, digest=str(Digest.of(b"other"))))
        code, text = world.run("lock")
        assert code == 3
        assert f"the manifest pins {Digest.of(b'other').short}, the registry has " in text

    def test_the_lock_is_written_where_lock_file_says_and_through_a_link(
        self, world: World, registry: RunningRegistry, mario: str, tmp_path: Path
    ) -> None:
        real, link = tmp_path / "real.lock", tmp_path / "link.lock"
        real.touch()
        real.chmod(0o640)
        link.symlink_to(real)
        real.unlink()
        world.declare(entry(registry, mario))
        assert world.run("lock", "--lock-file", str(link))[0] == 0
        assert link.is_symlink()
        assert real.read_text().startswith("# made by `ollamaops lock`")
        assert not world.lock.exists()
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".real")] == []

    def test_a_new_lock_can_be_read_by_others_and_an_old_one_keeps_its_permissions(
        self, world: World, registry: RunningRegistry, mario: str
    ) -> None:
        world.declare(entry(registry, mario))
        world.run("lock")
        assert stat.S_IMODE(world.lock.stat().st_mode) & 0o044 == 0o044
        world.lock.chmod(0o600)
        world.declare()
        assert world.run("lock")[0] == 0
        assert stat.S_IMODE(world.lock.stat().st_mode) == 0o600

    def test_a_lock_that_cannot_be_written_is_an_error(
        self, world: World, registry: RunningRegistry, mario: str, tmp_path: Path
    ) -> None:
        world.declare(entry(registry, mario))
        code, text = world.run("lock", "--lock-file", str(tmp_path / "no" / "such" / "folder.lock"))
        assert code == 1
        assert "cannot write" in text

    @pytest.mark.parametrize("data", [b"", b"version: 9\nmodels: {}\n", b"\xff\xfe\x00"])
    def test_a_lock_that_cannot_be_read_is_never_overwritten(self, world: World, data: bytes) -> None:
        world.declare("llama3.2")
        world.lock.write_bytes(data)
        for command in ("lock", "plan", "validate"):
            code, text = world.run(command)
            assert code == 65
            assert "ollamaops.lock" in text
        assert world.lock.read_bytes() == data

    @pytest.mark.parametrize("command", ["plan", "lock", "outdated", "validate"])
    def test_a_pipe_is_no_lock_and_nobody_waits_for_it(self, world: World, command: str) -> None:
        world.declare("llama3.2")
        os.mkfifo(world.lock)
        code, text = world.run(command)
        assert (code, f"{world.lock}: the lock: not a regular file" in text) == (65, True)

    def test_a_broken_lock_can_be_made_anew_as_the_hint_says(self, world: World) -> None:
        world.declare()
        world.lock.write_text("<<<<<<< HEAD\nversion: 1\n=======\nversion: 1\n>>>>>>> theirs\n")
        code, text = world.run("lock")
        assert (code, f"{world.lock}:1:1: an unresolved merge conflict" in text) == (65, True)
        assert "delete the file and run `ollamaops lock`" in text
        world.lock.unlink()
        assert world.run("lock")[0] == 0
        assert world.run("plan", "--no-registry")[0] != 65

    @pytest.mark.parametrize(("timeout", "state"), [("150ms", "failed"), (None, "added")])
    def test_a_silent_registry_is_given_up_after_timeout(
        self, world: World, timeout: str | None, state: str
    ) -> None:
        raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "m",
                "config": {"mediaType": "c", "digest": str(Digest.of(b"")), "size": 0},
                "layers": [],
            }
        ).encode()
        ended = threading.Event()

        def answer(_: Request) -> Reply:
            ended.wait(PATIENCE_S if timeout else 0.3)
            return Reply(200, {}, raw)

        with run_server(answer) as server:
            world.declare({"name": f"{server.host}/team/mario", "insecure": True})
            found = world.states("lock", *(["--timeout", timeout] if timeout else []))
            ended.set()
        assert list(found.values()) == [state]

    def test_a_folder_is_no_lock(self, world: World) -> None:
        world.declare("llama3.2")
        world.lock.mkdir()
        assert world.run("lock")[0] == 65

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--check", "--update"], "--check writes nothing"),
            (["--check", "llama3.2"], "--check writes nothing"),
            (["llama3.2"], "MODEL goes with --update"),
            (["--no-registry"], "has to ask registries"),
            (["--update", "qwen3"], "--update qwen3 matches no locked model"),
            (["-o", "html"], "'html' is not one of 'text', 'json'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, world: World, arguments: list[str], said: str) -> None:
        world.declare()
        code, text = world.run("lock", *arguments)
        assert (code, said in text) == (64, True), text

    def test_an_update_of_nothing_can_be_allowed(self, world: World) -> None:
        world.declare()
        assert world.run("lock", "--update", "qwen3", "--allow-no-match")[0] == 0


class TestChecking:
    @pytest.fixture
    def locked(self, world: World, registry: RunningRegistry, mario: str) -> World:
        world.declare(entry(registry, mario))
        assert world.run("lock")[0] == 0
        return world

    def test_a_registry_that_has_moved_on_is_told_with_kinds_and_bytes(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        before = locked.lock.read_bytes()
        publish(registry, mario, model=WEIGHTS_B, template=b"{{ .Prompt }}!", license=b"MIT")
        code, text = locked.run("lock", "--check")
        assert code == 2
        assert f"~ {registry.host}/{mario}: the registry has moved on: " in text
        assert "weights 115 kB → 115 kB, template 13 B → 14 B: 115 kB new" in text
        assert f"ollamaops lock --update {registry.host}/{mario}" in text
        assert locked.lock.read_bytes() == before

    def test_the_same_layers_in_another_manifest_are_told_apart_from_a_change(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        repository, _, tag = mario.partition(":")
        (locked_entry,) = yaml.safe_load(locked.lock.read_text())["models"].values()
        tree = {
            "schemaVersion": 2,
            "mediaType": locked_entry["media_type"],
            "config": _as_descriptor(locked_entry["config"]),
            "layers": [_as_descriptor(layer) for layer in locked_entry["layers"]],
        }
        registry.put_manifest(repository, tag, json.dumps(tree).encode())
        code, text = locked.run("lock", "--check")
        assert code == 2
        assert "the layers are the same, only the registry manifest is written differently" in text

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("size", 7, "weights {weights}: size 114880 in the lock, 7 in the registry"),
            (
                "mediaType",
                "application/vnd.ollama.image.tensor",
                (
                    "weights {weights}: media type application/vnd.ollama.image.model in the lock, "
                    "application/vnd.ollama.image.tensor in the registry"
                ),
            ),
        ],
    )
    def test_a_layer_that_is_only_described_otherwise_is_named_and_not_called_the_same(
        self, locked: World, key: str, value: object, said: str
    ) -> None:
        (locked_entry,) = yaml.safe_load(locked.lock.read_text())["models"].values()
        layers = [_as_descriptor(layer) for layer in locked_entry["layers"]]
        layers[0] = {**layers[0], key: value}
        tree = {
            "schemaVersion": 2,
            "mediaType": locked_entry["media_type"],
            "config": _as_descriptor(locked_entry["config"]),
            "layers": layers,
        }
        raw = json.dumps(tree).encode()
        with run_server(lambda _: Reply(200, {}, raw)) as server:
            (name,) = yaml.safe_load(locked.lock.read_text())["models"]
            host = name.partition("/")[0]
            locked.lock.write_text(locked.lock.read_text().replace(host, server.host))
            locked.declare({"name": name.replace(host, server.host), "insecure": True})
            line = said.format(weights=layers[0]["digest"].removeprefix("sha256:")[:12])
            code, text = locked.run("lock", "--check")
            assert (code, "the layers are the same" in text) == (2, False)
            assert "the same blobs, described otherwise" in text
            assert f"    {line}\n" in text
            _, models = locked.json("lock", "--check")
            altered = models[name.replace(host, server.host)]["altered"]
            assert isinstance(altered, list)
            assert [pair["locked"] == pair["registry"] for pair in altered] == [False]
            code, text = locked.run("lock", "--update")
            now = line.replace(" in the lock", " before").replace(" in the registry", " now")
            assert (code, f"    {now}\n" in text) == (0, True)

    def test_an_incomplete_lock_and_a_surplus_entry_are_named(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        locked.declare(f"{NOWHERE}/team/new")
        code, models = locked.json("lock", "--check")
        assert code == 2
        assert {name: model["state"] for name, model in models.items()} == {
            f"{registry.host}/{mario}": "surplus",
            f"{NOWHERE}/team/new:latest": "missing",
        }

    def test_without_a_lock_everything_is_missing(self, world: World) -> None:
        world.declare(f"{NOWHERE}/team/new")
        code, text = world.run("lock", "--check")
        assert (code, "+ localhost:1/team/new:latest: declared, but not in the lock" in text) == (2, True)

    def test_another_pin_in_the_manifest_is_named(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        locked.declare(entry(registry, mario, digest=str(Digest.of(b"other"))))
        code, text = locked.run("lock", "--check")
        assert code == 2
        assert f"but the manifest pins {Digest.of(b'other').short}" in text

    def test_a_tampered_lock_names_the_layer(self, locked: World) -> None:
        text = locked.lock.read_text()
        forged = text.replace(Digest.of(b"MIT").hex, "0" * 64).replace("size: 13", "size: 14")
        locked.lock.write_text(forged)
        code, said = locked.run("lock", "--check")
        assert code == 2
        assert "tampered with" in said
        template, license_digest = Digest.of(b"{{ .Prompt }}").short, Digest.of(b"MIT").short
        assert f"    template {template}: size 14 in the lock, 13 in the registry\n" in said
        assert (
            f"    license {'0' * 12}: digest {'0' * 12} in the lock, {license_digest} in the registry\n"
            in said
        )

    def test_a_layer_that_is_only_in_the_lock_is_named(self, locked: World) -> None:
        extra = (
            "      - {digest: sha256:"
            + "0" * 64
            + ", size: 5, media_type: application/vnd.ollama.image.system}"
        )
        locked.lock.write_text(locked.lock.read_text() + extra + "\n")
        assert f"    system {'0' * 12} of 5 B: only in the lock\n" in locked.run("lock", "--check")[1]

    def test_a_layer_that_is_only_in_the_registry_is_named(self, locked: World) -> None:
        lines = locked.lock.read_text().splitlines(keepends=True)
        locked.lock.write_text("".join(line for line in lines if "image.license" not in line))
        said = locked.run("lock", "--check")[1]
        assert f"    license {Digest.of(b'MIT').short} of 3 B: only in the registry\n" in said

    @pytest.mark.parametrize("data", [b"evil", b"something much longer than what was there"])
    def test_a_tampered_layer_in_the_registry_is_named(
        self, locked: World, registry: RunningRegistry, mario: str, data: bytes
    ) -> None:
        layer = b"only here: " + mario.encode()
        publish(registry, mario, system=layer)
        locked.run("lock", "--update")
        registry.stored_blob(Digest.of(layer)).write_bytes(data)
        code, said = locked.run("lock", "--check")
        assert code == 2
        assert "tampered with: the registry has 1 layer other than locked" in said
        assert f"    system {Digest.of(layer).short} of {len(layer)} B: " in said
        _, document = locked.run("lock", "--check", "-o", "json")
        (model,) = json.loads(document)["models"]
        assert [flaw["layer"]["kind"] for flaw in model["flaws"]] == ["system"]

    def test_a_layer_that_the_registry_has_lost_is_named(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        layer = b"only here: " + mario.encode()
        publish(registry, mario, system=layer)
        locked.run("lock", "--update")
        registry.stored_blob(Digest.of(layer)).unlink()
        code, said = locked.run("lock", "--check")
        assert code == 2
        assert "the registry does not have it" in said

    def test_a_large_layer_is_looked_for_without_being_read(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        weights = mario.encode() * 200_000
        publish(registry, mario, model=weights)
        locked.run("lock", "--update")
        assert locked.run("lock", "--check")[0] == 0
        registry.stored_blob(Digest.of(weights)).unlink()
        code, said = locked.run("lock", "--check")
        assert code == 2
        assert f"weights {Digest.of(weights).short}" in said

    def test_a_tampered_manifest_in_the_registry_is_named(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        path = registry.stored_blob(publish(registry, mario, system=b"only here: " + mario.encode()))
        locked.run("lock", "--update")
        path.write_bytes(path.read_bytes() + b" ")
        code, said = locked.run("lock", "--check")
        assert code == 2
        assert f"! {registry.host}/{mario}: tampered with: " in said

    def test_a_model_that_the_registry_no_longer_has_is_named(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        locked.lock.write_text(locked.lock.read_text().replace("mario", "nobody"))
        locked.declare(entry(registry, mario.replace("mario", "nobody")))
        code, said = locked.run("lock", "--check")
        assert (code, "the registry no longer has it" in said) == (2, True)

    def test_a_registry_that_cannot_be_reached_leaves_it_unknown(
        self, locked: World, registry: RunningRegistry, mario: str
    ) -> None:
        locked.lock.write_text(locked.lock.read_text().replace(registry.host, NOWHERE))
        locked.declare({"name": f"{NOWHERE}/{mario}", "insecure": True})
        code, said = locked.run("lock", "--check")
        assert code == 3
        assert "not known: localhost:1: " in said

    def test_what_is_the_same_is_told_when_asked_for(self, locked: World) -> None:
        code, said = locked.run("lock", "--check", "-v")
        assert code == 0
        assert "115 kB in 4 layers" in said
        assert "115 kB in 4 layers" in locked.run("lock", "-v")[1]


def _as_descriptor(layer: dict[str, object]) -> dict[str, Any]:
    return {"mediaType": layer["media_type"], "digest": layer["digest"], "size": layer["size"]}
