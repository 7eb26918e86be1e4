"""Models in a registry that pretend servers can pull, and a folder with a manifest that pulls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from registry_fixture import MANIFEST_TYPE, RunningRegistry

from ollamaops.cli.main import run
from ollamaops.names import Digest

_WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
WEIGHTS_A = (_WEIGHTS / "tiny-a.gguf").read_bytes()
WEIGHTS_B = (_WEIGHTS / "tiny-b.gguf").read_bytes()
CONFIG = json.dumps(
    {"model_format": "gguf", "model_family": "llama", "model_type": "1M", "file_type": "F16"}
).encode()


def publish(registry: RunningRegistry, path: str, *, model: bytes = WEIGHTS_A, **layers: bytes) -> Digest:
    """Put `team/mario:v1` into the registry; the digest of its registry manifest.

    The manifest is written with line breaks, as no server writes it: those before 0.19 show another digest for it.
    """
    repository, _, tag = path.partition(":")
    tree = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(registry, repository, "application/vnd.docker.container.image.v1+json", CONFIG),
        "layers": [
            _descriptor(registry, repository, f"application/vnd.ollama.image.{kind}", data)
            for kind, data in {"model": model, **layers}.items()
        ],
    }
    return registry.put_manifest(repository, tag, json.dumps(tree, indent=2).encode())


def _descriptor(
    registry: RunningRegistry, repository: str, media_type: str, data: bytes
) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(registry.put_blob(repository, data)), "size": len(data)}


def entry(registry: RunningRegistry, path: str, **keys: object) -> dict[str, object]:
    """An entry that pulls `team/mario:v1` and calls it that."""
    return {"name": f"{registry.host}/{path}", "insecure": True, **keys}


class World:
    """A folder with a manifest and a lock, and the program run in it. `hosts` are declared every time."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], *, hosts: Mapping[str, object] | None = None
    ) -> None:
        self.folder = folder
        self.lock = folder / "ollamaops.lock"
        self._capsys, self._hosts = capsys, hosts

    def declare(self, *models: object) -> None:
        """Write the manifest."""
        hosts = {"hosts": dict(self._hosts)} if self._hosts else {}
        (self.folder / "ollamaops.yaml").write_text(yaml.safe_dump({"models": list(models), **hosts}))

    def forget(self) -> None:
        """Lose what was remembered of earlier runs."""
        shutil.rmtree(self.folder / "state")

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and all that was printed."""
        shared = ["-f", str(self.folder / "ollamaops.yaml"), "--state-dir", str(self.folder / "state")]
        progress = () if "--progress" in arguments else ("--progress", "none")
        code = run([*arguments, *shared, *progress])
        shown = self._capsys.readouterr()
        return code, shown.out + shown.err

    def json(self, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
        """Exit code, and the models of the JSON document by name."""
        code, text = self.run(*arguments, "-o", "json")
        return code, {model["model"]: model for model in json.loads(text)["models"]}

    def states(self, *arguments: str) -> dict[str, object]:
        return {name: model["state"] for name, model in self.json(*arguments)[1].items()}
