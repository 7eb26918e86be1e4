"""No secret that we send comes back in a text of ours, whoever echoes it and in whatever form."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_host import Asked, Script, ScriptedHost, Wire, reply, routes

from ollamaops.cli.main import run
from ollamaops.errors import AccessDenied, ProtocolError, RemoteError
from ollamaops.http.redaction import BLOT, Redaction, secrets_of_headers, secrets_of_proxy
from ollamaops.http.session import Credentials
from ollamaops.names import ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.registry.client import RegistryClient

TOKEN, KEY = "zz-secret-77", "k3y of mine/9"
FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in JSON": lambda secret: json.dumps(secret)[1:-1],
    "in HTML": html.escape,
    "in a URL": lambda secret: quote(secret, safe=""),
}


def echo(status: int, shape: str = "you sent {Authorization} key {X-Key}") -> Script:
    """Answers everything with what it was sent."""

    def script(asked: Asked, wire: Wire) -> None:
        text = shape
        for name in ("Authorization", "X-Key"):
            text = text.replace("{" + name + "}", asked.headers.get(name, "nothing"))
        wire.answer(status, text.encode(), "text/plain")

    return script


def client_of(host: ScriptedHost) -> OllamaClient:
    return OllamaClient.connect(
        host.url, host_name="h", headers={"X-Key": KEY}, auth=Credentials(bearer=TOKEN)
    )


@pytest.mark.parametrize("form", FORMS)
@given(secret=st.text(min_size=8).filter(lambda text: text.strip() == text and "|" not in text))
def test_a_secret_is_hidden_in_every_form(form: str, secret: str) -> None:
    shown = Redaction([secret]).hide(f"|{FORMS[form](secret)}|")
    assert shown == f"|{BLOT}|"


def test_a_short_value_is_hidden_as_a_word_and_leaves_other_words_alone() -> None:
    assert Redaction(["a"]).hide("a model says a, not that") == "*** model says ***, not that"


def test_without_secrets_nothing_changes() -> None:
    assert Redaction([" "]).hide("a text") == "a text"
    assert repr(Redaction(["zz-secret-77"])) == "Redaction(***)"
    assert repr(Redaction()) == "Redaction(none)"


def test_what_is_hidden_in_json_is_hidden_at_every_depth() -> None:
    value = {"error": {"message": "zz-secret-77", "also": ["zz-secret-77", 3]}}
    assert Redaction([TOKEN]).hide_in(value) == {"error": {"message": BLOT, "also": [BLOT, 3]}}


def test_basic_credentials_are_hidden_whole_in_part_and_encoded() -> None:
    encoded = base64.b64encode(b"ann:pass-word-1").decode()
    hidden = Redaction(secrets_of_headers({"Authorization": f"Basic {encoded}"}))
    assert (
        hidden.hide(f"Basic {encoded} | {encoded} | ann:pass-word-1 | pass-word-1") == "*** | *** | *** | ***"
    )
    assert list(secrets_of_headers({"X": "Basic no base64"})) == ["Basic no base64", "no base64"]


def test_the_password_of_a_proxy_is_hidden() -> None:
    hidden = Redaction(secrets_of_proxy("http://ann:p%40ss-word@proxy:3128"))
    assert hidden.hide("p@ss-word at proxy, ann:p%40ss-word") == "*** at proxy, ***"
    assert list(secrets_of_proxy("http://proxy:3128")) == []


@pytest.mark.parametrize(
    ("status", "shape"),
    [
        (401, "you sent {Authorization} key {X-Key}"),
        (500, '{"error": "you sent {Authorization} key {X-Key}"}'),
        (400, '{"error": {"message": "{Authorization} {X-Key}"}}'),
        (502, "<html><title>{Authorization} {X-Key}</title>"),
        (404, "no page, {Authorization} {X-Key}"),
        (200, "<html><title>{Authorization} {X-Key}</title>"),
    ],
)
def test_an_answer_that_echoes_secrets_becomes_an_error_without_them(status: int, shape: str) -> None:
    with ScriptedHost(echo(status, shape)) as host, client_of(host) as client:
        with pytest.raises(RemoteError) as caught:
            client.tags()
        assert BLOT in str(caught.value)
        assert TOKEN not in f"{caught.value} {vars(caught.value)}"
        assert KEY not in f"{caught.value} {vars(caught.value)}"


def test_a_redirect_that_carries_a_secret_is_told_without_it() -> None:
    script = reply(302, Location=f"http://elsewhere/{quote(TOKEN)}/x")
    told = r"redirected to 'http://elsewhere/\*\*\*/x'"
    with ScriptedHost(script) as host, client_of(host) as client, pytest.raises(ProtocolError, match=told):
        client.tags()


@pytest.mark.parametrize("last", [b'{"error":"%s"}\n', b'["%s"]\n', b"%s\n"])
def test_neither_progress_nor_the_error_of_a_stream_shows_a_secret(last: bytes) -> None:
    lines = b'{"status":"hello %s"}\n' % TOKEN.encode() + last % TOKEN.encode()
    seen: list[str] = []
    with (
        ScriptedHost(routes({"/api/pull": reply(200, lines)})) as host,
        client_of(host) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.pull(ModelName.parse("m"), on_progress=lambda progress: seen.append(progress.status))
    assert seen == ["hello ***"]
    assert TOKEN not in str(caught.value)
    assert BLOT in str(caught.value)


def test_a_model_that_happens_to_hold_a_header_value_is_read_as_it_is() -> None:
    shown = json.dumps({"system": f"say {TOKEN}", "modified_at": ""}).encode()
    with ScriptedHost(routes({"/api/show": reply(200, shown)})) as host, client_of(host) as client:
        assert client.show(ModelName.parse("m")).system == f"say {TOKEN}"


def test_a_registry_that_echoes_its_token_is_told_without_it() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.path.startswith("/token"):
            wire.json({"token": TOKEN})
        elif "Authorization" in asked.headers:
            echo(403, '{"errors": [{"message": "you sent {Authorization}"}]}')(asked, wire)
        else:
            wire.answer(401, WWW_Authenticate=f'Bearer realm="{host.url}/token",service="s"')

    with (
        ScriptedHost(script) as host,
        RegistryClient(endpoints={"reg.example": host.url}) as client,
        pytest.raises(AccessDenied, match=r"you sent \*\*\*$"),
    ):
        client.manifest(ModelName.parse("reg.example/a/b:c"))


@pytest.mark.parametrize("command", [["plan", "--out", "sp.json"], ["status"], ["drift"]])
def test_no_output_of_a_command_shows_a_secret_that_the_server_echoes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOK", TOKEN)
    monkeypatch.setenv("KEY", KEY)
    with ScriptedHost(echo(401)) as host:
        Path("ollamaops.yaml").write_text(
            f"hosts:\n  a: {{url: '{host.url}', auth: {{bearer: {{env: TOK}}}}}}\n"
            f"  b: {{url: '{host.url}/b', auth: {{headers: {{X-Key: {{env: KEY}}}}}}}}\nmodels: [m]\n"
        )
        run([*command, "-o", "json", "--state-dir", "state", "--no-registry"])
        run([*command[:1], "--state-dir", "state", "--no-registry"])
    output = "".join(capfd.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert BLOT in output
    for secret in (TOKEN, KEY):
        assert secret not in output
        assert secret.encode() not in written
