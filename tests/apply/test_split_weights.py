"""A split GGUF from the manifest to a server: one shard is named, all are sent, or the reason is told.

The versions here are those at the boundary; test_weights_eras.py has the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import split

from ollamaops.cli.main import run
from ollamaops.sandbox.server import Sandbox


def manifest(folder: Path, url: str) -> list[str]:
    path = folder / "m.yaml"
    path.write_text(
        f"hosts: {{h: {{url: {url}}}}}\nmodels: [{{name: m, files: [w/m-00002-of-00002.gguf]}}]\n"
    )
    return ["-f", str(path)]


@pytest.mark.parametrize("version", ["0.30.0"])
def test_naming_one_shard_sends_all_and_converges(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(tmp_path / "w")
    with Sandbox(as_version=version) as sandbox:
        options = manifest(tmp_path, sandbox.url)
        assert run(["apply", "-y", *options]) == 0
        assert "2 uploaded, 1 created; 1 host as declared" in capsys.readouterr().out
        assert run(["drift", *options]) == 0
        assert run(["drift", *options, "--state-dir", str(tmp_path / "no-memory")]) == 0


@pytest.mark.parametrize("version", ["0.24.0"])
def test_servers_that_cannot_merge_are_sent_nothing(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(tmp_path / "w")
    with Sandbox(as_version=version) as sandbox:
        assert run(["apply", "-y", *manifest(tmp_path, sandbox.url)]) == 3
        said = capsys.readouterr().out
        assert f"cannot be made by Ollama {version}: it does not merge a GGUF in shards" in said
        assert "upgrade to 0.30.0" in said
        assert list(sandbox.store.blobs.iterdir()) == []


def test_shards_of_different_splits_are_told_apart_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(tmp_path / "w", promised=99)
    with Sandbox() as sandbox:
        assert run(["apply", "-y", *manifest(tmp_path, sandbox.url)]) == 65
        said = capsys.readouterr().err
        assert "its header promises 99 tensors in all shards" in said
        assert list(sandbox.store.blobs.iterdir()) == []
