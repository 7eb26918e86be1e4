"""`make bench`: how fast ollamaops is, as ratios to other programs that do the same in the same run.

Each row compares two programs that ran in turn on this machine, servers in processes of their own. Easily missed:
weights and stores lie in memory (/dev/shm) where there is room, because programs are compared and not disks. Peers
are ollama-python (`pip install ollama`) and curl; rows whose peer is not installed are left out.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench_rows import Measured, Row
from bench_servers import BLOCK_BYTES, OLLAMAOPS, SERVER_VERSION, Counting, Server, serving, sink

from ollamaops import about
from ollamaops.files.digest import hash_file
from ollamaops.files.gguf_types import GgufValue
from ollamaops.files.gguf_writer import TensorData, build_gguf
from ollamaops.names import Digest
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_blob
from ollamaops.sandbox.app import App
from ollamaops.sandbox.server import Sandbox
from ollamaops.units import format_size, parse_size

PYTHON = sys.executable
RACY_S = 2.1  # the digest of a younger file is not remembered
MODELS = 100
MEMORY_BYTES = 120 << 20
PEER_IMPORTS = "import requests, yaml, jsonschema, click, rich"
PEER_CREATE = """
import sys, ollama
urls, paths = sys.argv[1].split(), sys.argv[2:]
for url in urls:
    client = ollama.Client(host=url)
    for path in paths:
        name = path.rpartition("/")[2]
        digest = client.create_blob(path)
        client.create(model=name.removesuffix(".gguf"), files={name: digest})
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all sections share: a folder to work in, the size of the largest file, how often each is measured."""

    folder: Path
    size_bytes: int
    runs: int

    def state(self) -> Path:
        """A new folder for a ledger that knows nothing yet."""
        return Path(tempfile.mkdtemp(prefix="state-", dir=self.folder))


# inputs


def write_weights(path: Path, size_bytes: int, seed: int = 1) -> Path:
    """A GGUF of about that size, whose only tensor is noise."""
    elements = max(1, size_bytes // 2)
    metadata: dict[str, GgufValue] = {
        "general.architecture": "llama",
        "general.file_type": 1,
        "llama.block_count": 1,
    }
    noise = random.Random(seed)
    with path.open("wb") as file:
        file.write(build_gguf(metadata, [TensorData("token_embd.weight", (elements,), "F16", b"")]))
        for start in range(0, 2 * elements, BLOCK_BYTES):
            file.write(noise.randbytes(min(BLOCK_BYTES, 2 * elements - start)))
    return path


def write_manifest(setting: Setting, name: str, models: Sequence[object], servers: Sequence[Server]) -> Path:
    path = setting.folder / f"{name}.json"
    hosts = {f"host-{number}": {"url": server.url} for number, server in enumerate(servers)}
    path.write_text(json.dumps({"hosts": hosts, "models": models}))
    return path


def ollamaops(command: str, manifest: Path, state: Path) -> list[str | Path]:
    yes = ["-y"] if command == "apply" else []
    return [OLLAMAOPS, command, *yes, "-q", "-f", manifest, "--state-dir", state]


def peer(servers: Sequence[Server], paths: Sequence[Path]) -> list[str | Path]:
    """ollama-python doing what apply does: hash, upload, create."""
    return [PYTHON, "-c", PEER_CREATE, " ".join(server.url for server in servers), *paths]


def curl(url: str, path: Path, digest: Digest) -> list[str | Path]:
    return ["curl", "-sS", "-f", "-o", os.devnull, "-X", "POST", "-T", path, f"{url}/api/blobs/{digest}"]


def has_peer() -> bool:
    return find_spec("ollama") is not None


def has_curl() -> bool:
    return shutil.which("curl") is not None


# sections


def measure_start(setting: Setting) -> Iterator[Row]:
    """What it costs to be started."""
    measured = Measured()
    measured.in_turn(
        4 * setting.runs,
        lambda: measured.program("version", OLLAMAOPS, "--version"),
        lambda: measured.program("pass", PYTHON, "-c", "pass"),
        lambda: measured.program("click", PYTHON, "-c", "import click"),
    )
    yield measured.row("ollamaops --version : python -c pass", "version", "pass")
    yield measured.row("ollamaops --version : import click", "version", "click")


def measure_plan(setting: Setting) -> Iterator[Row]:
    """A plan of a host with many models on which nothing is to be done, and what it asks of the host."""
    measured, state = Measured(), setting.state()
    with serving(setting.folder / "server") as server:
        manifest = write_manifest(setting, "plan", many_models(), [server])
        measured.program("apply", *ollamaops("apply", manifest, state))
        measured.in_turn(
            3 * setting.runs,
            lambda: measured.program("plan", *ollamaops("plan", manifest, state)),
            lambda: measured.program("imports", PYTHON, "-c", PEER_IMPORTS),
        )
    yield measured.row(f"plan, {MODELS} models in sync : {PEER_IMPORTS}", "plan", "imports", 2.3)
    requests = count_requests(setting)
    yield Row(
        what=f"requests to a steady host with {MODELS} models : promised",
        ours=str(requests),
        theirs="3",  # version, tags, and HEAD for the one weights layer
        ratio=requests / 3,
        aim=1.0,
    )


def many_models() -> list[object]:
    derived = [
        {"name": f"bot-{number}", "from": "llama3.2:3b", "system": f"You are number {number}."}
        for number in range(MODELS // 2)
    ]
    aliases = [{"name": f"alias-{number}", "copy": f"bot-{number}"} for number in range(MODELS // 2 - 1)]
    return ["llama3.2:3b", *derived, *aliases]


def count_requests(setting: Setting) -> int:
    """How many requests one plan sends to a host where nothing is to be done."""
    counting: list[Counting] = []

    def wrap(app: App) -> Counting:
        counting.append(Counting(app))
        return counting[0]

    with Sandbox(as_version=SERVER_VERSION, faults=wrap) as sandbox:
        state = setting.state()
        manifest = write_manifest(setting, "count", many_models(), [Server(sandbox.url, setting.folder)])
        Measured().program("apply", *ollamaops("apply", manifest, state))
        before = counting[0].requests
        Measured().program("plan", *ollamaops("plan", manifest, state))
    return counting[0].requests - before


def measure_weights(setting: Setting) -> Iterator[Row]:
    """One large file to one host: for the first time, again, and with its digest in the manifest."""
    path = write_weights(setting.folder / "large.gguf", setting.size_bytes)
    digest = hash_file(path).digest
    time.sleep(RACY_S)
    measured = Measured()
    with serving(setting.folder / "server") as server:
        unknown = write_manifest(setting, "unknown", [as_model(path)], [server])
        known = write_manifest(setting, "known", [as_model(path, digest)], [server])

        def ours() -> None:
            server.forget()
            state = setting.state()
            measured.program("first", *ollamaops("apply", unknown, state))
            measured.program("again", *ollamaops("apply", unknown, state))

        def ours_known() -> None:
            server.forget()
            measured.program("known", *ollamaops("apply", known, setting.state()))

        def with_peer() -> None:
            server.forget()
            measured.program("peer", *peer([server], [path]))

        def with_curl() -> None:
            server.forget()
            measured.program("curl", *curl(server.url, path, digest))

        others = [step for step, is_there in ((with_peer, has_peer()), (with_curl, has_curl())) if is_there]
        measured.in_turn(setting.runs, ours, *others, ours_known)
    what = f"apply, {format_size(path.stat().st_size)}"
    for name, how, aim in (
        ("first", "", 0.95),
        ("again", ", again", 0.15),
        ("known", ", digest known", 0.75),
    ):
        if has_peer():
            yield measured.row(f"{what}{how} : ollama-python create_blob, create", name, "peer", aim)
        if has_curl():
            yield measured.row(f"{what}{how} : curl -T", name, "curl")
    yield memory_row(what, measured.peaks["first"] + measured.peaks["known"])
    path.unlink()


def memory_row(what: str, peaks: Sequence[int]) -> Row:
    peak = max(peaks)
    ratio = peak / MEMORY_BYTES
    return Row(
        what=f"memory of {what} : allowed", ours=_mib(peak), theirs=_mib(MEMORY_BYTES), ratio=ratio, aim=1.0
    )


def measure_files(setting: Setting) -> Iterator[Row]:
    """Eight files, each an eighth of the size, to one host."""
    paths = [
        write_weights(setting.folder / f"part-{number}.gguf", setting.size_bytes // 8, seed=number)
        for number in range(8)
    ]
    with serving(setting.folder / "server") as server:
        yield from compare_with_peer(setting, paths, [server])


def measure_hosts(setting: Setting) -> Iterator[Row]:
    """One file, a quarter of the size, to four hosts."""
    path = write_weights(setting.folder / "shared.gguf", setting.size_bytes // 4)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(setting.folder / f"server-{number}")) for number in range(4)]
        yield from compare_with_peer(setting, [path], servers)


def compare_with_peer(setting: Setting, paths: Sequence[Path], servers: Sequence[Server]) -> Iterator[Row]:
    """The first apply of several files to several hosts, and the same with ollama-python, one after the other."""
    manifest = write_manifest(setting, "several", [as_model(path) for path in paths], servers)
    measured = Measured()

    def forgetting(name: str, command: Callable[[], list[str | Path]]) -> Callable[[], None]:
        def step() -> None:
            for server in servers:
                server.forget()
            measured.program(name, *command())

        return step

    steps = [forgetting("ours", lambda: ollamaops("apply", manifest, setting.state()))]
    if has_peer():
        steps.append(forgetting("peer", lambda: peer(servers, paths)))
    measured.in_turn(setting.runs, *steps)
    size = format_size(paths[0].stat().st_size)
    what = f"apply, {len(paths)} × {size} to {len(servers)} host{'s' * (len(servers) > 1)}"
    if has_peer():
        yield measured.row(f"{what} : ollama-python", "ours", "peer", 0.95)
    yield memory_row(what, measured.peaks["ours"])
    for path in paths:
        path.unlink()


def measure_upload(setting: Setting) -> Iterator[Row]:
    """Sending alone, to a server that drops what it gets."""
    path = write_weights(setting.folder / "sent.gguf", setting.size_bytes)
    facts, measured = hash_file(path), Measured()
    with sink() as url, OllamaClient.connect(url, host_name="sink") as client:

        def ours() -> None:
            measured.call("ours", lambda: upload_blob(client, facts.digest, path, facts.size_bytes))

        def bare() -> None:
            measured.call("sendfile", lambda: send_bare(url, path))

        def with_curl() -> None:
            measured.program("curl", *curl(url, path, facts.digest))

        measured.in_turn(2 * setting.runs, ours, bare, *([with_curl] if has_curl() else []))
    what = f"upload, {format_size(facts.size_bytes)}"
    yield measured.speed_row(f"{what} : bare socket.sendfile", "ours", "sendfile", facts.size_bytes, 0.9)
    if has_curl():
        yield measured.speed_row(f"{what} : curl -T", "ours", "curl", facts.size_bytes, 0.9)
    path.unlink()


def send_bare(url: str, path: Path) -> None:
    """The least that an upload can be: a head, socket.sendfile, and the first line of the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = f"POST /bare HTTP/1.1\r\nHost: {host}\r\nContent-Length: {path.stat().st_size}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection, path.open("rb") as file:
        connection.sendall(head.encode())
        connection.sendfile(file)
        assert connection.recv(BLOCK_BYTES).startswith(b"HTTP/1.1 201")


def as_model(path: Path, digest: Digest | None = None) -> dict[str, object]:
    """A manifest's entry for the file."""
    known = {"sha256": {path.name: digest.hex}} if digest else {}
    return {"name": path.stem, "files": [path.name], **known}


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "start": measure_start,
    "plan": measure_plan,
    "weights": measure_weights,
    "files": measure_files,
    "hosts": measure_hosts,
    "upload": measure_upload,
}


def choose_folder(size_bytes: int) -> Path:
    """In memory if there is ample room, else where temporary files go."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 8 * size_bytes:
        return memory
    return Path(tempfile.gettempdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the speed of ollamaops as ratios to peers.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {' '.join(SECTIONS)} (all)")
    parser.add_argument("--size", default="1GiB", help="bytes of the largest weights (%(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="how often each is measured (%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: use {' '.join(SECTIONS)}")
    size_bytes = parse_size(options.size)
    compileall.compile_dir(Path(about.__file__).parent, quiet=1)  # as pip does with what it installs
    if not has_peer():
        print("ollama-python is not installed, its rows are left out: pip install ollama", file=sys.stderr)
    print(f"{'ours : theirs':<74} {'ours':>11} {'theirs':>11} {'ratio':>7}   aim")
    with tempfile.TemporaryDirectory(prefix="ollamaops-bench-", dir=choose_folder(size_bytes)) as folder:
        setting = Setting(folder=Path(folder), size_bytes=size_bytes, runs=options.runs)
        for name in options.sections or SECTIONS:
            for row in SECTIONS[name](setting):
                print(row.render(), flush=True)


if __name__ == "__main__":
    main()
