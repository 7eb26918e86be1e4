"""Secrets: where they come from, that they reach the host, and that no message ever shows them."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_host import Asked, ScriptedHost, always

from ollamaops.errors import InvalidValue, OllamaopsError, UsageError
from ollamaops.manifest.types import (
    BasicAuth,
    BearerAuth,
    HostSpec,
    Secret,
    SecretFromCommand,
    SecretFromEnv,
    SecretFromFile,
    Tls,
)
from ollamaops.observe import connect as connecting
from ollamaops.observe.connect import connect, read_secret

SECRET = "s3cr3t-t0ken"


@pytest.fixture
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost(always({"version": "0.33.0"})) as running:
        yield running


def printing(text: str, then: str = "") -> SecretFromCommand:
    return SecretFromCommand((sys.executable, "-c", f"import sys; sys.stdout.write({text!r}); {then}"))


def asked(host: ScriptedHost, spec: HostSpec, environ: dict[str, str]) -> Asked:
    with connect(spec, environ=environ) as client:
        client.version()
    return host.asked[-1]


def sources(tmp_path: Path) -> list[Secret]:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    return [SecretFromEnv("TOKEN"), SecretFromFile(file), printing(f"{SECRET}\r\n")]


@pytest.mark.parametrize("number", range(3), ids=["env", "file", "command"])
def test_a_secret_reaches_the_host_wherever_it_comes_from(
    host: ScriptedHost, tmp_path: Path, number: int
) -> None:
    secret = sources(tmp_path)[number]
    environ = {"TOKEN": SECRET}
    spec = HostSpec(
        name="gpu-1", url=host.url, auth=BearerAuth(secret), headers={"X-Key": secret, "X-Team": "ml"}
    )
    headers = asked(host, spec, environ).headers
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert (headers["X-Key"], headers["X-Team"]) == (SECRET, "ml")

    basic = HostSpec(name="gpu-1", url=host.url, auth=BasicAuth("ops", secret))
    expected = base64.b64encode(f"ops:{SECRET}".encode()).decode()
    assert asked(host, basic, environ).headers["Authorization"] == f"Basic {expected}"


def test_without_auth_nothing_is_sent(host: ScriptedHost) -> None:
    headers = asked(host, HostSpec(name="gpu-1", url=host.url), {}).headers
    assert "Authorization" not in headers


def test_a_file_and_a_command_lose_their_last_newline_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b" a\nb \r\n")
    assert read_secret(SecretFromFile(file), "gpu-1") == " a\nb "
    assert read_secret(printing(" a\nb \n"), "gpu-1") == " a\nb "


def _unusable(tmp_path: Path) -> dict[str, tuple[Secret, str]]:
    binary, empty = tmp_path / "binary", tmp_path / "empty"
    binary.write_bytes(b"\xff\xfe" + SECRET.encode())
    empty.write_text("\n")
    python = sys.executable
    return {
        "no variable": (SecretFromEnv("NONE"), "gpu-1: the environment variable NONE is not set"),
        "empty variable": (SecretFromEnv("EMPTY"), "gpu-1: the environment variable EMPTY is not set"),
        "no file": (
            SecretFromFile(tmp_path / "none"),
            f"gpu-1: cannot read the secret in {tmp_path / 'none'}: no such file or directory",
        ),
        "folder": (SecretFromFile(tmp_path), f"gpu-1: cannot read the secret in {tmp_path}: is a directory"),
        "binary file": (SecretFromFile(binary), f"gpu-1: cannot read the secret in {binary}: not text"),
        "empty file": (SecretFromFile(empty), f"gpu-1: cannot use the secret in {empty}: it is empty"),
        "no command": (
            SecretFromCommand(("/no/such/program", SECRET)),
            "gpu-1: cannot get a secret from '/no/such/program': no such file or directory",
        ),
        "failing command": (
            printing(SECRET, "print(sys.argv, file=sys.stderr); sys.exit(3)"),
            f"gpu-1: cannot get a secret from {python!r}: it ended 3",
        ),
        "binary command": (
            printing("", f"sys.stdout.buffer.write(b'\\xff{SECRET}')"),
            f"gpu-1: cannot get a secret from {python!r}: it does not print text",
        ),
        "silent command": (
            printing(""),
            f"gpu-1: cannot use the secret in what {python!r} prints: it is empty",
        ),
    }


CASES = [
    "no variable",
    "empty variable",
    "no file",
    "folder",
    "binary file",
    "empty file",
    "no command",
    "failing command",
    "binary command",
    "silent command",
]


@pytest.mark.parametrize("case", CASES)
def test_a_secret_that_cannot_be_had_is_named_by_its_place_and_never_shown(tmp_path: Path, case: str) -> None:
    secret, message = _unusable(tmp_path)[case]
    with pytest.raises(UsageError) as caught:
        read_secret(secret, "gpu-1", {"EMPTY": ""})
    assert str(caught.value) == message
    _assert_hidden(caught.value)


def _assert_hidden(error: OllamaopsError) -> None:
    """Neither in the message, nor in the hint, nor in anything that a traceback would print of its causes."""
    said = [str(error), str(error.hint)]
    cause = error.__cause__ if error.__suppress_context__ else error.__context__
    assert cause is None
    assert not any(SECRET in text for text in said)


def test_a_command_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(UsageError, match=r"cannot get a secret from '.*': no answer within 0.2 s$"):
        read_secret(printing("", "import time; time.sleep(60)"), "gpu-1")


def test_a_command_gets_no_shell_and_no_input() -> None:
    echo = "import sys; sys.stdout.write(sys.argv[1] + repr(sys.stdin.read()))"
    secret = SecretFromCommand((sys.executable, "-c", echo, "$HOME;`id`"))
    assert read_secret(secret, "gpu-1") == "$HOME;`id`''"


def test_a_secret_that_http_cannot_carry_is_refused_without_being_shown(host: ScriptedHost) -> None:
    spec = HostSpec(name="gpu-1", url=host.url, auth=BearerAuth(SecretFromEnv("TOKEN")))
    with pytest.raises(InvalidValue) as caught:
        connect(spec, environ={"TOKEN": f"{SECRET}\nX-Evil: 1"})
    assert SECRET not in str(caught.value)
    assert host.asked == []


def test_the_limits_and_certificates_of_the_manifest_are_used(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    spec = HostSpec(name="gpu-1", url="https://gpu-1:11434", timeout_s=7, stall_s=9, tls=Tls(ca=ca))
    with pytest.raises(OllamaopsError, match=f"gpu-1: tls: no file '{ca}'"):
        connect(spec)
    with connect(HostSpec(name="gpu-1", url="http://gpu-1:11434", timeout_s=7, stall_s=9)) as client:
        limits = client.transport.limits
        assert (limits.connect_s, limits.idle_s, limits.stall_s) == (7, 7, 9)
        assert client.host == "gpu-1"
