"""Files → Manifest: what a right manifest means, where files are found, and what holds for any text."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest_folder import EVERYTHING_ELSE, LONG_FORM, WEIGHTS, copy_weights, load_text, write
from properties import shared_fixtures

from ollamaops.errors import ManifestError
from ollamaops.files.gguf_writer import build_gguf
from ollamaops.files.location import RemoteRef
from ollamaops.manifest.load import default_paths, load_manifest
from ollamaops.manifest.schema import manifest_schema
from ollamaops.manifest.types import (
    AbsentSpec,
    BasicAuth,
    BearerAuth,
    Build,
    Copy,
    HostSpec,
    Limit,
    Manifest,
    ModelSpec,
    Place,
    Policy,
    Pull,
    Requirement,
    SecretFromCommand,
    SecretFromEnv,
    SecretFromFile,
    Tls,
    WeightsFile,
    Window,
)
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.settings import Message

PROJECTOR = build_gguf({"general.type": "mmproj", "general.architecture": "clip"})
TINY_A = Digest.parse("78251a19c30a1f70c209d608cf95e731f66f8e615ced8d997d678dd2dc61ccd4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def model(manifest: Manifest, text: str) -> ModelSpec:
    (found,) = [spec for spec in manifest.models if spec.name == name(text)]
    return found


def build(manifest: Manifest, text: str) -> Build:
    source = model(manifest, text).source
    assert isinstance(source, Build)
    return source


def names(manifest: Manifest) -> list[str]:
    return [str(spec.name) for spec in manifest.models]


def said(error: pytest.ExceptionInfo[ManifestError]) -> list[str]:
    return [f"{problem.place}: {problem.message}" for problem in error.value.problems]


def write_long_form(folder: Path) -> Path:
    """The manifest of the manual with all the files that it names."""
    write(folder / "ollamaops.yaml", LONG_FORM.encode())
    write(folder / "hosts.yaml", b"hosts: {}\n")
    write(folder / "models" / "more.yaml", b"models: [more]\n")
    write(folder / "ca.pem", b"")
    write(folder / "prompts" / "support.md", b"Be kind.\n")
    write(folder / "templates" / "chatml.tmpl", b"{{ .Prompt }}")
    write(folder / "weights" / "legal-7b-f16.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes())
    write(folder / "adapters" / "legal-lora.gguf", (WEIGHTS / "tiny-lora.gguf").read_bytes())
    write(folder / "Modelfile", b"FROM llama3.2:3b\nSYSTEM You are Mario.\nPARAMETER temperature 1\n")
    return folder / "ollamaops.yaml"


def test_two_lines_are_a_complete_manifest(folder: Path) -> None:
    manifest = load_text(folder, "models:\n  - llama3.2:3b\n")
    assert manifest == Manifest(
        root=folder,
        files=("m.yaml",),
        hosts=(HostSpec(name="local", url="http://127.0.0.1:11434"),),
        models=(
            ModelSpec(
                name=name("llama3.2:3b"), source=Pull(ref=name("llama3.2:3b")), place=Place("m.yaml", 2, 5)
            ),
        ),
    )


def test_the_long_form_gives_every_host(folder: Path) -> None:
    hosts = load_manifest([write_long_form(folder)], environ={}).hosts
    assert hosts[:2] == (
        HostSpec(
            name="gpu-1",
            url="https://gpu-1.lan:11434",
            labels={"site": "paris", "vram": "48GiB"},
            auth=BearerAuth(SecretFromEnv("OLLAMA_TOKEN")),
            tls=Tls(ca=folder / "ca.pem"),
            place=Place("ollamaops.yaml", 9, 3),
        ),
        HostSpec(
            name="gpu-2",
            url="https://gpu-2.lan:11434",
            labels={"site": "paris", "vram": "24GiB"},
            auth=BasicAuth("ops", SecretFromFile(Path("/run/secrets/pw"))),
            place=Place("ollamaops.yaml", 10, 3),
        ),
    )
    assert [(host.name, host.url) for host in hosts[2:]] == [
        (f"lab-{number:02d}", f"http://lab-{number:02d}.lan:11434") for number in range(1, 21)
    ]


def test_the_long_form_gives_every_model(folder: Path) -> None:
    manifest = load_manifest([write_long_form(folder)], environ={})
    assert names(manifest) == [
        "llama3.2:3b",
        "qwen3:32b",
        "corp/support-bot:2026.11",
        "legal-7b:v3",
        "mario:latest",
        "chat:latest",
        "mirror-bot:latest",
        "embed:latest",
        "more:latest",
    ]
    assert model(manifest, "qwen3:32b") == ModelSpec(
        name=name("qwen3:32b"),
        source=Pull(ref=name("qwen3:32b")),
        where=(Requirement("vram", ">=", ("24GiB",)), Requirement("site", "!=", ("lyon",))),
        update="locked",
        digest=TINY_A,
        resident=True,
        protect=True,
        place=Place("ollamaops.yaml", 14, 11),
    )
    assert model(manifest, "corp/support-bot:2026.11") == ModelSpec(
        name=name("corp/support-bot:2026.11"),
        source=Build(
            base=name("qwen3:32b"),
            system="Be kind.\n",
            template="{{ .Prompt }}",
            parameters={"temperature": 0.2, "num_ctx": 16384, "stop": ("<|im_end|>",)},
            messages=(Message("user", "hi"), Message("assistant", "hello")),
            licenses=("MIT",),
        ),
        ignore=("parameters.num_gpu",),
        expect=(
            {
                "capabilities": ["completion"],
                "prompt": "Reply with the word pong.",
                "matches": "(?i)pong",
                "max_load": "90s",
            },
        ),
        push=name("registry.corp.example:5000/corp/support-bot:2026.11"),
        place=Place("ollamaops.yaml", 20, 11),
    )
    assert build(manifest, "legal-7b:v3") == Build(
        files=(WeightsFile(folder / "weights" / "legal-7b-f16.gguf", "legal-7b-f16.gguf", TINY_A),),
        adapters=(WeightsFile(folder / "adapters" / "legal-lora.gguf", "legal-lora.gguf"),),
        quantize="Q4_K_M",
    )
    assert build(manifest, "mario") == Build(
        base=name("llama3.2:3b"), system="You are Mario.", parameters={"temperature": 1.0}
    )
    assert model(manifest, "chat").source == Copy(source=name("qwen3:32b"))
    assert model(manifest, "mirror-bot").source == Pull(
        ref=name("registry.corp.example:5000/corp/bot:v1"), insecure=True
    )
    assert model(manifest, "embed").moved_from == name("nomic")
    assert manifest.absent == (
        AbsentSpec(pattern=NamePattern.parse("old-bot:*"), place=Place("ollamaops.yaml", 39, 12)),
    )


def test_the_long_form_gives_the_policy(folder: Path) -> None:
    assert load_manifest([write_long_form(folder)], environ={}).policy == Policy(
        protect=(NamePattern.parse("*:golden"),),
        ignore=(NamePattern.parse("scratch/*"),),
        max_delete=Limit(percent=30),
        max_replace=Limit(percent=50),
        registries=("registry.ollama.ai", "hf.co", "registry.corp.example:5000"),
    )


def test_the_long_form_has_an_environment(folder: Path) -> None:
    manifest = load_manifest([write_long_form(folder)], environment="staging", environ={})
    assert "gpu-2" not in [host.name for host in manifest.hosts]
    assert model(manifest, "llama3.2:3b").update == "latest"
    assert model(manifest, "qwen3:32b").update == "locked"


def test_every_other_key_is_read_too(folder: Path) -> None:
    write(folder / "ollamaops.yaml", EVERYTHING_ELSE.encode())
    for file in ("client.pem", "client.key"):
        write(folder / file, b"")
    write(folder / "LICENSE", b"MIT")
    for file in ("a.gguf", "d.gguf"):
        write(folder / file, (WEIGHTS / "tiny-a.gguf").read_bytes())
    manifest = load_manifest((), environ={})
    assert manifest.hosts == (
        HostSpec(
            name="a",
            url="http://a:80",
            auth=None,
            headers={
                "X-Team": "search",
                "X-Key": SecretFromCommand(("pass", "show", "key")),
                "X-Api-Key": SecretFromEnv("KEY"),
            },
            tls=Tls(cert=folder / "client.pem", key=folder / "client.key", verify=False),
            proxy="http://proxy.lan:3128",
            timeout_s=10.0,
            stall_s=120.0,
            disk_bytes=500 * 10**9,
            place=Place("ollamaops.yaml", 4, 3),
        ),
    )
    first = model(manifest, "a")
    assert (first.resident, first.staged, first.keep_previous, first.retries) == (1800.0, True, 2, 0)
    assert (first.push, first.push_insecure, len(first.expect)) == (name("me/a"), True, 3)
    assert first.insecure is False
    assert build(manifest, "b") == Build(
        files=(WeightsFile(folder / "a.gguf", "a.gguf"),),
        drafts=(WeightsFile(folder / "d.gguf", "d.gguf"),),
        draft_quantize="Q8_0",
        renderer="r",
        parser="p",
        requires="0.14.0",
        system="text",
        licenses=("MIT",),
        parameters={"num_gpu": None, "stop": ("x",), "foo": True},
    )
    last = model(manifest, "c")
    assert (last.resident, last.insecure, last.push_insecure) == (False, True, False)
    assert manifest.policy == Policy(
        prune=(NamePattern.parse("scratch/*"),),
        max_delete=Limit(count=3),
        licenses=("MIT",),
        min_version="0.12.6",
        busy="wait",
        windows=(Window(days=("sat", "sun"), begins_minute=1320, ends_minute=360, timezone="Europe/Paris"),),
    )
    assert manifest.state == "server"
    prod = load_manifest((), environment="prod", environ={})
    assert (names(prod), prod.policy.prune, model(prod, "b").retries, prod.state) == (
        ["b:latest", "c:latest"],
        "owned",
        1,
        "local",
    )
    assert names(load_manifest((), environment="dev", environ={})) == [f"{one}:latest" for one in "abcde"]


# where files are found


def test_the_default_is_ollamaops_yaml_else_the_folder_manifests(folder: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        default_paths(folder)
    assert said(caught) == [f"{folder}: no manifest here: neither ollamaops.yaml nor a folder manifests"]
    assert caught.value.problems[0].hint == "write one with: ollamaops init, or name one with -f"
    write(folder / "manifests" / "a.yaml", b"models: [a]")
    assert default_paths(folder) == (folder / "manifests",)
    assert names(load_manifest((), environ={})) == ["a:latest"]
    write(folder / "ollamaops.yaml", b"models: [b]")
    assert default_paths(folder) == (folder / "ollamaops.yaml",)


def test_a_folder_means_all_its_manifests(folder: Path) -> None:
    write(folder / "d" / "b.yml", b"models: [b]")
    write(folder / "d" / "a.yaml", b"hosts: {x: {url: http://x}}")
    write(folder / "d" / "c.json", b'{"models": ["c"]}')
    write(folder / "d" / "ollamaops.schema.json", json.dumps(manifest_schema()).encode())
    write(folder / "d" / ".hidden.yaml", b"nonsense")
    write(folder / "d" / "readme.txt", b"nonsense")
    write(folder / "d" / "sub.yaml" / "x.yaml", b"nonsense")
    manifest = load_manifest(["d"], environ={})
    assert manifest.files == ("d/a.yaml", "d/b.yml", "d/c.json")
    assert (names(manifest), manifest.root) == (["b:latest", "c:latest"], folder / "d")


def test_a_dash_is_standard_input(folder: Path) -> None:
    write(folder / "prompt.md", b"hi")
    text = b"models: [{name: a, from: b, system: {file: prompt.md}}]"
    manifest = load_manifest(["-"], environ={}, stdin=io.BytesIO(text))
    assert (manifest.files, build(manifest, "a").system) == (("<stdin>",), "hi")


def test_a_file_is_read_once_however_often_it_is_named(folder: Path) -> None:
    write(folder / "a.yaml", b"include: [c.yaml]\nmodels: [a]")
    write(folder / "b.yaml", b"include: [c.yaml, '*.yaml']\nmodels: [b]")
    write(folder / "c.yaml", b"models: [c]")
    with pytest.raises(ManifestError) as caught:
        load_manifest(["b.yaml"], environ={})
    assert said(caught) == ["b.yaml:1:19: files include each other in a cycle: b.yaml → b.yaml"]
    write(folder / "b.yaml", b"include: [c.yaml, '[ac].yaml']\nmodels: [b]")
    manifest = load_manifest(["a.yaml", "b.yaml", "./c.yaml"], environ={})
    assert manifest.files == ("a.yaml", "c.yaml", "b.yaml")


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    write(folder / "top.yaml", b"include: ['models/**/*.yaml']\n")
    write(folder / "models" / "x" / "a.yaml", b"models: [{name: a, from: b, system: {file: ../p.md}}]")
    write(folder / "models" / "p.md", b"hi")
    assert build(load_manifest(["top.yaml"], environ={}), "a").system == "hi"
    assert build(load_manifest(["models/x"], environ={}, allow_outside=True), "a").system == "hi"
    with pytest.raises(ManifestError, match=r"'\.\./p\.md' is outside the manifest's folder"):
        load_manifest(["models/x/a.yaml"], environ={})


def test_files_outside_the_folder_are_used_when_that_is_allowed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "p.md", b"hi")
    write(outside / "h.yaml", b"models: [h]")
    text = (
        f"include: ['{outside}/*.yaml']\nmodels: [{{name: a, from: b, system: {{file: '{outside}/p.md'}}}}]\n"
    )
    manifest = load_text(folder, text, allow_outside=True)
    assert build(manifest, "a").system == "hi"
    assert names(manifest) == ["a:latest", "h:latest"]


def test_a_link_that_leads_out_of_the_folder_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "h.yaml", b"models: [h]")
    (folder / "link.yaml").symlink_to(outside / "h.yaml")
    with pytest.raises(ManifestError) as caught:
        load_text(folder, "include: ['l*.yaml']\nmodels: []\n")
    assert said(caught) == [
        f"m.yaml:1:11: 'link.yaml' is outside the manifest's folder: a symbolic link leads to {outside}/h.yaml"
    ]


def test_a_folder_that_cannot_be_listed_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "d").mkdir()

    def refuse(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ManifestError) as caught:
        load_manifest(["d"], environ={})
    assert said(caught) == ["d: the folder cannot be read: permission denied"]


def test_weights_in_a_folder_that_may_not_be_entered_are_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_weights(folder, "tiny-hf")

    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ManifestError) as caught:
        load_text(folder, "models: [{name: a, files: [tiny-hf]}]")
    assert said(caught) == ["m.yaml:1:28: tiny-hf: cannot be read: permission denied"]


def test_a_file_outside_the_current_folder_is_shown_with_its_whole_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "m.yaml", b"models: [a]")
    assert load_manifest([outside / "m.yaml"], environ={}).files == (f"{outside}/m.yaml",)


def test_a_path_that_no_disk_can_hold_is_a_problem(folder: Path) -> None:
    long = "x" * 300
    with pytest.raises(ManifestError) as caught:
        load_manifest([long], environ={})
    assert said(caught) == [f"{long}: cannot be read: file name too long"]
    manifest = load_text(folder, f"models: [{{name: a, modelfile: {{text: 'FROM {long}/a/b'}}}}]")
    assert build(manifest, "a").base == name(f"{long}/a/b")


# hosts


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": ""}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": "https://gpu.lan/ollama"}, "https://gpu.lan:443/ollama"),
    ],
)
def test_without_hosts_it_is_the_one_of_ollama_host(
    folder: Path, environ: Mapping[str, str], url: str
) -> None:
    manifest = load_text(folder, "models: []\ndefaults: {host: {timeout: 3s}}", environ=environ)
    assert [(host.name, host.url, host.timeout_s) for host in manifest.hosts] == [("local", url, 3.0)]


def test_defaults_are_merged_under_every_host(folder: Path) -> None:
    manifest = load_text(
        folder,
        """
        models: []
        defaults: {host: {labels: {site: paris, gpu: a100}, parallel: 4, auth: {bearer: {env: T}}}}
        hosts:
          a: {url: http://a}
          b: {url: http://b, labels: {site: lyon}, auth: {basic: {user: u, password: {file: pw}}}}
          c-[1:2]: {url: "http://c-{}", labels: {rack: "r{}", n: 3, spot: true}}
        """,
    )
    a, b, c, _ = manifest.hosts
    assert (a.labels, a.parallel, a.auth) == (
        {"site": "paris", "gpu": "a100"},
        4,
        BearerAuth(SecretFromEnv("T")),
    )
    assert (b.labels, b.auth) == (
        {"site": "lyon", "gpu": "a100"},
        BasicAuth("u", SecretFromFile(folder / "pw")),
    )
    assert c.labels == {"site": "paris", "gpu": "a100", "rack": "r1", "n": "3", "spot": "true"}


# models


def test_defaults_are_merged_under_the_models_that_have_a_use_for_them(folder: Path) -> None:
    manifest = load_text(
        folder,
        """
        defaults:
          model:
            {retries: 1, update: never, parameters: {num_ctx: 8, top_k: 3}, system: hi, where: host=local,
            quantize: Q8_0}
        models:
          - pulled
          - {name: made, from: pulled, parameters: {num_ctx: 16}, retries: 2}
          - {name: filed, modelfile: {text: "FROM pulled\\nSYSTEM own"}}
          - {name: gone, ensure: absent}
        """,
    )
    assert model(manifest, "pulled").retries == 1
    assert (model(manifest, "made").retries, model(manifest, "made").update) == (2, "never")
    made, filed = build(manifest, "made"), build(manifest, "filed")
    assert (made.parameters, made.system) == ({"num_ctx": 16, "top_k": 3}, "hi")
    assert (filed.parameters, filed.system, filed.quantize) == ({}, "own", "Q8_0")
    assert manifest.absent[0].where == (Requirement("host", "=", ("local",)),)


def test_update_is_locked_by_default_when_there_is_a_lock_file(folder: Path) -> None:
    write(folder / "m.yaml", b"models: [a, {name: b, update: latest}]")
    manifest = load_manifest(["m.yaml"], environ={}, locked=True)
    assert [spec.update for spec in manifest.models] == ["locked", "latest"]


def test_a_safetensors_folder_is_the_files_that_ollama_would_take(folder: Path) -> None:
    copy_weights(folder, "tiny-hf")
    manifest = load_text(folder, "models: [{name: a, files: [tiny-hf]}]")
    assert [(file.name, file.path) for file in build(manifest, "a").files] == [
        (file, folder / "tiny-hf" / file)
        for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    ]


def test_files_of_several_folders_are_named_from_the_one_they_share(folder: Path) -> None:
    write(folder / "w/a/model.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes())
    write(folder / "w/b/mmproj.gguf", PROJECTOR)
    manifest = load_text(folder, "models: [{name: x, files: [w/a/model.gguf, ./w/b/../b/mmproj.gguf]}]")
    assert [file.name for file in build(manifest, "x").files] == ["a/model.gguf", "b/mmproj.gguf"]


def test_one_shard_of_a_split_gguf_stands_for_all_of_them(folder: Path) -> None:
    names = [f"w/m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for file in (*names, "w/other.gguf"):
        write(folder / file, (WEIGHTS / "tiny-a.gguf").read_bytes())
    write(folder / "w/mmproj.gguf", PROJECTOR)
    digest = TINY_A.hex
    entry = f"{{name: a, files: [{names[1]}, w/mmproj.gguf], sha256: {{{names[2]}: {digest}}}}}"
    files = build(load_text(folder, f"models: [{entry}]"), "a").files
    assert files == (
        *(WeightsFile(folder / file, file[2:], TINY_A if file == names[2] else None) for file in names),
        WeightsFile(folder / "w" / "mmproj.gguf", "mmproj.gguf"),
    )


def test_a_shard_found_beside_another_may_not_lead_out_of_the_folder(folder: Path) -> None:
    (folder / "in").mkdir()
    write(folder / "out.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes())
    write(folder / "in" / "m-00001-of-00002.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes())
    (folder / "in" / "m-00002-of-00002.gguf").symlink_to(folder / "out.gguf")
    write(folder / "in" / "m.yaml", b"models: [{name: a, files: [m-00001-of-00002.gguf]}]")
    with pytest.raises(ManifestError, match=r"'m-00002-of-00002\.gguf' is outside the manifest's folder"):
        load_manifest([folder / "in" / "m.yaml"])


def test_shards_in_a_folder_that_cannot_be_listed_are_looked_for_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> list[Path]:
        raise PermissionError

    for number in (1, 2):
        write(folder / f"m-0000{number}-of-00002.gguf", (WEIGHTS / "tiny-a.gguf").read_bytes())
    monkeypatch.setattr(Path, "iterdir", refuse)
    manifest = load_text(folder, "models: [{name: a, files: [m-00001-of-00002.gguf]}]")
    assert [file.name for file in build(manifest, "a").files] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]


def test_weights_may_be_remote(folder: Path) -> None:
    web = "https://host/w/mmproj.gguf"
    hub = [f"hf://org/repo@v1/m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    digest = TINY_A.hex
    entry = f'{{name: a, files: ["{hub[1]}", "{web}"], sha256: {{"{web}": {digest}}}}}'
    assert build(load_text(folder, f"models: [{entry}]"), "a").files == (
        *(WeightsFile(RemoteRef(text), text.rpartition("/")[2]) for text in hub),
        WeightsFile(RemoteRef(web), "mmproj.gguf", TINY_A),
    )


def test_safetensors_may_be_listed_one_by_one(folder: Path) -> None:
    copy_weights(folder, "tiny-hf")
    listed = ["config.json", "tokenizer.json", "model.safetensors"]
    manifest = load_text(
        folder, f"models: [{{name: a, files: [{', '.join(f'tiny-hf/{name}' for name in listed)}]}}]"
    )
    assert [file.name for file in build(manifest, "a").files] == listed


def test_a_modelfile_is_read_as_ollama_create_reads_it(folder: Path) -> None:
    for weights in ("tiny-a.gguf", "tiny-b.gguf", "tiny-lora.gguf"):
        copy_weights(folder / "m", weights)
    text = (
        "FROM ./tiny-a.gguf\nFROM tiny-b.gguf\nADAPTER nothing\nADAPTER ./tiny-lora.gguf\nTEMPLATE {{ .Prompt }}\n"
        "PARAMETER stop a\nPARAMETER stop b\nMESSAGE user hi\nLICENSE MIT\nLICENSE BSD\n"
        "REQUIRES v0.14.0\nDRAFT tiny-lora.gguf\n"
    )
    write(folder / "m" / "Modelfile", text.encode())
    entry = "{name: a, modelfile: m/Modelfile, system: more, parameters: {seed: 1}, quantize: q8_0}"
    source = build(load_text(folder, f"models: [{entry}]"), "a")
    assert source == Build(
        files=(
            WeightsFile(folder / "m" / "tiny-a.gguf", "tiny-a.gguf"),
            WeightsFile(folder / "m" / "tiny-b.gguf", "tiny-b.gguf"),
        ),
        adapters=(WeightsFile(folder / "m" / "tiny-lora.gguf", "tiny-lora.gguf"),),
        drafts=(WeightsFile(folder / "m" / "tiny-lora.gguf", "tiny-lora.gguf"),),
        template="{{ .Prompt }}",
        system="more",
        parameters={"stop": ("a", "b"), "seed": 1},
        messages=(Message("user", "hi"),),
        licenses=("MIT", "BSD"),
        quantize="Q8_0",
        requires="0.14.0",
    )


def test_from_names_a_model_unless_something_of_that_name_is_there(folder: Path) -> None:
    manifest = load_text(folder, "models: [{name: a, modelfile: {text: FROM llama3}}]")
    assert build(manifest, "a").base == name("llama3")
    copy_weights(folder, "tiny-hf").rename(folder / "llama3")
    manifest = load_text(folder, "models: [{name: a, modelfile: {text: FROM llama3}}]")
    assert build(manifest, "a").base is None
    assert build(manifest, "a").files[0].path == folder / "llama3" / "model.safetensors"


def test_the_last_model_that_from_names_wins_over_all_files(folder: Path) -> None:
    copy_weights(folder, "tiny-a.gguf")
    text = 'models: [{name: a, modelfile: {text: "FROM b\\nFROM ./tiny-a.gguf\\nFROM c"}}]'
    assert build(load_text(folder, text), "a") == Build(base=name("c"))


def test_a_modelfile_that_is_legal_but_surely_not_meant_gives_warnings(folder: Path) -> None:
    write(folder / "sub" / "Modelfile", "FROM b\nSYSTEM a\u200db\n".encode())
    manifest = load_text(
        folder,
        "models:\n- {name: a, modelfile: sub/Modelfile}\n"
        '- {name: c, modelfile: {text: "FROM b\\nSYSTEM x\\nSYSTEM y"}}\n',
    )
    first, second = manifest.warnings
    assert (second.place, second.message) == (
        "sub/Modelfile:2:9",
        "U+200D ZERO WIDTH JOINER is dropped from SYSTEM",
    )
    assert first.place == "m.yaml:3:31"
    assert first.message.endswith("(line 3 of the Modelfile)")


def test_a_model_that_no_host_gets_is_warned_of(folder: Path) -> None:
    manifest = load_text(folder, "models: [{name: a, where: gpu}, b]\n")
    (warning,) = manifest.warnings
    assert (warning.place, warning.message) == (
        "m.yaml:1:17",
        "'a:latest' matches no host: none has the labels that its where: asks for",
    )


# variables and environments


def test_variables_are_filled_in_and_nothing_else(folder: Path) -> None:
    manifest = load_text(
        folder,
        """
        vars: {who: "${env:WHO}", greeting: "hi ${vars.who}", ctx: 4096, text: "4096", no: false}
        models:
          - name: ${vars.who}/bot
            from: ${env:BASE:-llama3}
            system: "${vars.greeting} $5 ${who} $${vars.who} {{ .System }} $$ ${env:EMPTY:-none}${env:EMPTY}"
            parameters: {num_ctx: "${vars.ctx}", seed: 1}
            keep_previous: ${vars.keep}
            retries: ${env:RETRIES}
            protect: ${vars.no}
            push: ${vars.who}/${vars.text}
        """.replace("ctx: 4096", "ctx: 4096, keep: 2"),
        environ={"WHO": "me", "EMPTY": "", "RETRIES": "7"},
        public={"WHO", "BASE"},
    )
    spec = model(manifest, "me/bot")
    source = build(manifest, "me/bot")
    assert source.base == name("llama3")
    assert source.system == "hi me $5 ${who} ${vars.who} {{ .System }} $$ none"
    assert source.parameters == {"num_ctx": 4096, "seed": 1}
    assert (spec.keep_previous, spec.retries, spec.protect, spec.push) == (2, 7, False, name("me/4096"))


def test_a_reference_in_quotes_is_text_and_an_unquoted_one_has_the_type_of_its_value(folder: Path) -> None:
    text = "vars: {n: 3, t: '3'}\nmodels:\n- name: a\n  retries: "
    assert model(load_text(folder, text + "${vars.n}\n"), "a").retries == 3
    for reference in ('"${vars.n}"', "${vars.t}", "$${vars.n}", "0${vars.n}"):
        with pytest.raises(ManifestError, match="retries: expected a whole number"):
            load_text(folder, text + reference + "\n")


def test_texts_of_files_are_taken_as_they_are(folder: Path) -> None:
    write(folder / "p.md", b"\xef\xbb\xbf${vars.x}\r\n")
    manifest = load_text(folder, "models: [{name: a, from: b, system: {file: p.md}}]")
    assert build(manifest, "a").system == "${vars.x}\r\n"


def test_an_environment_is_laid_over_the_rest(folder: Path) -> None:
    text = """
    vars: {registry: prod.example, size: 3b, gone: "${env:NOT_SET}"}
    defaults: {model: {retries: 1, expect: {prompt: a, contains: a}}, host: {labels: {site: paris}}}
    hosts:
      a: {url: http://a, labels: {gpu: a100, rack: r1}, headers: {X-A: {env: A}}}
      lab-[1:3]: {url: "http://lab-{}"}
    models:
      - llama3:${vars.size}
      - {name: bot, from: "llama3:${vars.size}", parameters: {seed: 1, top_k: 2}}
      - {name: old}
    policy: {prune: owned, protect: [a], max_change: {delete: 1}}
    environments:
      prod:
      test:
        vars: {size: 1b, gone: null}
        defaults: {model: {retries: null, expect: {max_load: 3s}}}
        hosts:
          a: {labels: {rack: null, tier: test}, headers: {X-A: {file: f}}}
          lab-[2:3]: null
          new: {url: http://new}
        models:
          BOT: {parameters: {seed: null, num_ctx: null}, system: hi}
          old: null
          extra: {from: bot}
        policy: {prune: null, protect: [b], max_change: {delete: 2}}
      other:
        models:
          - {name: bot, system: other}
          - added
    """
    plain = load_text(folder, text)
    assert load_text(folder, text, environment="prod") == plain
    assert names(plain) == ["llama3:3b", "bot:latest", "old:latest"]
    test = load_text(folder, text, environment="test")
    assert names(test) == ["llama3:1b", "bot:latest", "extra:latest"]
    assert build(test, "bot") == Build(
        base=name("llama3:1b"), parameters={"top_k": 2, "num_ctx": None}, system="hi"
    )
    assert (model(test, "bot").retries, model(test, "bot").expect) == (5, ({"max_load": "3s"},))
    assert [host.name for host in test.hosts] == ["a", "lab-1", "new"]
    assert test.hosts[0].labels == {"site": "paris", "gpu": "a100", "tier": "test"}
    assert test.hosts[0].headers == {"X-A": SecretFromFile(folder / "f")}
    assert test.policy == Policy(protect=(NamePattern.parse("b"),), max_delete=Limit(count=2))
    other = load_text(folder, text, environment="other")
    assert names(other) == ["llama3:3b", "bot:latest", "old:latest", "added:latest"]
    assert build(other, "bot").system == "other"


def test_an_environment_may_bring_hosts_and_models_of_its_own(folder: Path) -> None:
    text = (
        "environments: {s: {hosts: {a: {url: http://a}}, models: [x, 'a b']}, t: {models: null}}\nmodels: []"
    )
    with pytest.raises(ManifestError) as caught:
        load_text(folder, text, environment="s")
    assert said(caught)[0].startswith("m.yaml:1:61: 'a b' is not a model name")
    with pytest.raises(ManifestError) as caught:
        load_text(folder, text, environment="t")
    assert said(caught) == ["m.yaml: no models: a manifest lists them, even if the list is []"]


def test_several_files_are_one_manifest(folder: Path) -> None:
    write(
        folder / "a.yaml",
        b"models: [a]\npolicy: {protect: [x]}\nvars: {v: 1b}\nenvironments: {s: {models: [p]}}\n",
    )
    write(
        folder / "b.yaml",
        b"models: ['b:${vars.v}']\npolicy: {protect: [y], prune: owned}\nenvironments: {s: {models: [q]}}\n",
    )
    manifest = load_manifest(["a.yaml", "b.yaml"], environment="s", environ={})
    assert names(manifest) == ["a:latest", "b:1b", "p:latest", "q:latest"]
    assert manifest.policy == Policy(prune="owned", protect=(NamePattern.parse("x"), NamePattern.parse("y")))


# what holds for any text

KEYS = sorted(
    {
        key
        for schema in (manifest_schema(), *manifest_schema()["$defs"].values())  # type: ignore[attr-defined] # a dict
        for key in schema.get("properties", {})
    }
)
WORDS = (
    "a|b:1|A|x:local|e:*||a b|30s|24GiB|30%|latest|absent|http://a|http://b-{}|tiny-a.gguf|tiny-hf|Modelfile|../x"
    "|/etc/passwd|~|FROM a\nSYSTEM b|FROM ./tiny-a.gguf|${vars.x}|${vars.y}|${env:TOKEN}|${env:NO}|${env:NO:-a}|$${"
    "|vram>=1|(|owned|😀"
)
LEAVES = st.sampled_from(WORDS.split("|")) | st.sampled_from([None, True, False, 0, 1, -1, 2.5, 10**20])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
ENTRIES = (
    st.dictionaries(st.sampled_from(KEYS), TREES, max_size=3).map(lambda entry: {"name": "a", **entry})
    | LEAVES
)
HOSTS = st.dictionaries(
    st.sampled_from(["a", "b", "l-[1:3]", "l-2", "["]),
    st.dictionaries(st.sampled_from(KEYS), TREES, max_size=3).map(lambda host: {"url": "http://a", **host})
    | TREES,
    max_size=3,
)
PARTS = st.fixed_dictionaries(
    {"models": st.lists(ENTRIES, max_size=4)},
    optional={"hosts": HOSTS, "policy": TREES, "defaults": TREES, "vars": TREES, "version": LEAVES},
)
MANIFESTS = st.fixed_dictionaries(
    {"models": st.lists(ENTRIES, max_size=3)},
    optional={
        "hosts": HOSTS,
        "environments": st.dictionaries(st.sampled_from(["s", "t"]), PARTS | TREES, max_size=2),
        "policy": TREES,
        "include": st.sampled_from([["b.yaml"], ["*.yaml"], "x", ["nope", 3]]),
    },
)


def outcome(paths: list[str | Path], environment: str | None = None) -> Manifest | ManifestError:
    try:
        return load_manifest(paths, environment=environment, environ={"TOKEN": "hunter2"})
    except ManifestError as error:
        return error


@shared_fixtures()
@given(text=st.text(max_size=80))
def test_any_text_is_a_manifest_or_a_list_of_problems(folder: Path, text: str) -> None:
    write(folder / "m.yaml", text.encode("utf-8", "surrogatepass"))
    result = outcome(["m.yaml"])
    assert isinstance(result, Manifest) or result.problems


@shared_fixtures()
@given(first=MANIFESTS, second=PARTS | TREES, environment=st.sampled_from([None, "s"]))
def test_any_tree_is_a_manifest_or_a_list_of_problems_without_secrets(
    folder: Path, first: object, second: object, environment: str | None
) -> None:
    for weights in ("tiny-a.gguf", "tiny-hf"):
        if not (folder / weights).exists():
            copy_weights(folder, weights)
    write(folder / "Modelfile", b"FROM ./tiny-a.gguf\nSYSTEM x\nPARAMETER seed 1\n")
    write(folder / "a.yaml", json.dumps(first).encode())
    write(folder / "b.yaml", json.dumps(second).encode())
    result = outcome(["a.yaml"], environment)
    if isinstance(result, ManifestError):
        assert "hunter2" not in "\n".join(f"{p.place} {p.message} {p.hint}" for p in result.problems)


SPECS = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            {"name": "c", "from": "a"},
            {"name": "d", "copy": "c"},
            {"name": "e:*", "ensure": "absent"},
        ]
    ),
    max_size=3,
    unique_by=str,
)


@shared_fixtures()
@given(parts=st.lists(SPECS, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_order_of_files_changes_neither_models_nor_problems(
    folder: Path, parts: list[list[object]], seed: int
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as here:
        paths = [Path(here) / f"{index}.yaml" for index in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            path.write_text(json.dumps({"models": part}))
        one, other = outcome([*paths]), outcome(random.Random(seed).sample(paths, len(paths)))
    if isinstance(one, Manifest):
        assert isinstance(other, Manifest)
        assert {repr(spec) for spec in one.models} == {repr(spec) for spec in other.models}
        assert {repr(spec) for spec in one.absent} == {repr(spec) for spec in other.absent}
    else:
        assert isinstance(other, ManifestError)


def test_the_environment_of_the_process_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "m.yaml", b"models: [{name: a, from: b, system: '${env:MODEL_OF_TEST}'}]")
    monkeypatch.setitem(os.environ, "MODEL_OF_TEST", "a")
    assert build(load_manifest(["m.yaml"]), "a").system == "a"


@pytest.mark.parametrize(
    ("source", "is_secret"),
    [("FROM a\nSYSTEM ${env:X}", False), ("FROM ${vars.a}\nSYSTEM ${env:X}", False), ("FROM ${env:X}", True)],
)
def test_the_base_in_a_modelfile_may_not_come_from_the_environment(
    folder: Path, source: str, is_secret: bool
) -> None:
    text = f"vars: {{a: base}}\nmodels: [{{name: m, modelfile: {{text: {json.dumps(source)}}}}}]"
    if is_secret:
        with pytest.raises(ManifestError, match="a name is shown to everybody"):
            load_text(folder, text, environ={"X": "hunter2"})
    public = {"X"} if is_secret else ()
    assert build(load_text(folder, text, environ={"X": "hunter2"}, public=public), "m").base is not None
