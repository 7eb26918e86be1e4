"""The program as its users and their scripts see it: exit codes, streams, saved plans, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
import yaml
from patience import PATIENCE_S

from ollamaops.cli.main import COMMANDS, run
from ollamaops.sandbox.fault_injection import with_faults
from ollamaops.sandbox.fault_script import parse_faults
from ollamaops.sandbox.server import Sandbox

DERIVED = {
    "models": [
        "llama3.2:3b",
        {"name": "bot", "from": "llama3.2:3b", "system": "Be brief.", "parameters": {"temperature": 0.2}},
        {"name": "chat", "copy": "bot"},
    ]
}
Write = Callable[[object], Path]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        yield sandbox


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes ./ollamaops.yaml in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(manifest: object) -> Path:
        path = tmp_path / "ollamaops.yaml"
        path.write_text(manifest if isinstance(manifest, str) else yaml.safe_dump(manifest))
        return path

    return write


def tags(host: Sandbox) -> dict[str, str]:
    models = requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    return {model["name"]: model["digest"] for model in models}


def tamper(host: Sandbox, name: str, **fields: object) -> None:
    body = {"model": name, "from": "llama3.2:3b", "stream": False, **fields}
    assert requests.post(f"{host.url}/api/create", json=body, timeout=PATIENCE_S).status_code == 200


# usage


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["frobnicate"], "no command 'frobnicate'"),
        (["aply"], "did you mean 'apply'"),
        (["plan", "--nonsense"], "No such option '--nonsense'"),
        (["plan", "-o", "xml"], "'xml' is not one of"),
        (["plan", "-j", "0"], "0 is not in the range"),
        (["diff"], "Missing argument 'MODEL'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["status", "-o", "html"], "'html' is not one of 'text', 'json'"),
        (["-o", "html", "status"], "-o html is not possible here"),
        (["plan", "--force", "WRONGNAME"], "--force: no safety rule 'WRONGNAME'\n"),
        (["apply", "-y", "--force", "max-change"], "did you mean 'max_change'?"),
        (["plan", "--lock-file", "nofile.lock"], "--lock-file: no such file: nofile.lock"),
        (["lock", "--check", "--lock-file", "nofile.lock"], "--lock-file: no such file: nofile.lock"),
        (["outdated", "--lock-file", "nofile.lock"], "ollamaops lock --lock-file nofile.lock"),
        (["plan", "--host", "nowhere-*"], "no host matches"),
        (["plan", "--target", "absent-model"], "matches no declared model"),
        (["plan", "-l", ">>"], "selector"),
        (["plan", "--timeout", "soon"], "'soon' is not a duration"),
        (["apply"], "there is no terminal to ask on"),
    ],
)
def test_a_wrong_command_line_ends_64_or_65_and_says_what_is_wrong(
    arguments: list[str], said: str, host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    code = run(arguments)
    shown = capsys.readouterr()
    assert (code in (64, 65), said in shown.err, shown.out) == (True, True, "")


@pytest.mark.parametrize(
    "command, formats",
    [
        ("apply", "[text|json|markdown|html]"),
        ("ps", "[text|json]"),
        ("history", "[text|json]"),
        ("init", "[text]"),
    ],
)
def test_help_lists_the_formats_that_the_command_has(
    command: str, formats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    assert f"--output {formats}" in capsys.readouterr().out


def test_no_arguments_show_help_and_end_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 64
    assert "Commands:" in capsys.readouterr().err


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ollamaops 0.")


@pytest.mark.parametrize("arguments", [["-o", "json", "plan"], ["plan", "-o", "json"]])
def test_shared_options_stand_before_or_after_the_command(
    arguments: list[str], host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "ollamaops-plan"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_OLLAMAOPS_COMPLETE" in capsys.readouterr().out


def test_completion_offers_commands() -> None:
    environ = {
        **os.environ,
        "_OLLAMAOPS_COMPLETE": "bash_complete",
        "COMP_WORDS": "ollamaops pl",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).parent / "ollamaops"
    done = subprocess.run([program], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "plain,plan\n"


# the cycle


def test_plan_changes_nothing_apply_does_and_drift_is_then_silent(host: Sandbox, write: Write) -> None:
    write(DERIVED)
    assert run(["plan"]) == 0
    assert run(["plan", "--detailed-exitcode"]) == 2
    assert tags(host) == {}
    assert run(["drift"]) == 2
    assert run(["apply", "-y"]) == 0
    assert set(tags(host)) == {"llama3.2:3b", "bot:latest", "chat:latest"}
    assert run(["plan", "--detailed-exitcode"]) == 0
    assert run(["drift"]) == 0


def test_drift_is_reported_to_ci_as_tests_are(
    host: Sandbox, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("models: [llama3.2:3b]\n")
    report = tmp_path / "report.xml"
    for failures, code in ((1, 2), (0, 0)):
        assert run(["drift", "--junit", str(report)]) == code
        (suite,) = ElementTree.parse(report).getroot()
        assert (suite.get("tests"), suite.get("failures")) == ("1", str(failures))
        assert run(["apply", "-y"]) == 0
    assert run(["drift", "--junit", str(tmp_path)]) == 64
    assert f"cannot write {tmp_path}: is a directory" in capsys.readouterr().err


def test_drift_names_the_field_and_apply_mends_that_alone(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    before = tags(host)
    tamper(host, "bot", system="Be rude.", parameters={"temperature": 0.9})
    capsys.readouterr()
    assert run(["drift"]) == 2
    shown = capsys.readouterr().out
    assert "parameters.temperature 0.9 → 0.2" in shown
    assert "system" in shown
    assert run(["apply", "-y"]) == 0
    assert tags(host) == before


def test_diff_shows_one_model_field_by_field(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    tamper(host, "bot", system="Be rude.", parameters={"temperature": 0.2})
    capsys.readouterr()
    assert run(["diff", "bot"]) == 0
    shown = capsys.readouterr().out
    assert ("-Be rude." in shown, "+Be brief." in shown) == (True, True)
    assert run(["diff", "bot", "--detailed-exitcode"]) == 2
    assert run(["diff", "llama3.2:3b", "--detailed-exitcode"]) == 0


def test_status_shows_every_model(host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    requests.delete(f"{host.url}/api/delete", json={"model": "chat"}, timeout=PATIENCE_S)
    requests.post(f"{host.url}/api/copy", json={"source": "bot", "destination": "stray"}, timeout=PATIENCE_S)
    capsys.readouterr()
    assert run(["status", "-v"]) == 0
    shown = capsys.readouterr().out
    assert [word in shown for word in ("in sync", "missing", "stray:latest")] == [True, True, True]


def test_prune_is_never_implied_and_spares_what_is_not_ours(host: Sandbox, write: Write) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    requests.post(f"{host.url}/api/copy", json={"source": "bot", "destination": "stray"}, timeout=PATIENCE_S)
    write({"models": ["llama3.2:3b"]})
    assert run(["drift"]) == 0
    assert run(["apply", "-y"]) == 0
    assert len(tags(host)) == 4
    assert run(["drift", "--prune"]) == 2
    assert run(["apply", "-y", "--prune=owned"]) == 0
    assert set(tags(host)) == {"llama3.2:3b", "stray:latest"}
    assert run(["apply", "-y", "--prune=stray:*"]) == 0
    assert set(tags(host)) == {"llama3.2:3b"}


def test_a_refused_plan_ends_4_and_changes_nothing(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    before = tags(host)
    protected = {**DERIVED, "policy": {"protect": ["bot"]}, "models": [*DERIVED["models"][:1]]}
    write({**protected, "models": ["llama3.2:3b", {"name": "bot", "from": "llama3.2:3b", "system": "New."}]})
    capsys.readouterr()
    assert run(["apply", "-y"]) == 4
    assert "--force protect" in capsys.readouterr().out
    assert tags(host) == before
    assert run(["apply", "-y", "--force", "protect"]) == 0
    assert tags(host)["bot:latest"] != before["bot:latest"]


def test_a_family_of_rules_is_lifted_by_its_name(host: Sandbox, write: Write) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    write({"models": ["llama3.2:3b"], "policy": {"prune": "owned", "max_change": {"delete": 0}}})
    assert run(["apply", "-y"]) == 4
    assert run(["apply", "-y", "--force", "max_change"]) == 0
    assert set(tags(host)) == {"llama3.2:3b"}


@pytest.mark.usefixtures("hurry")
def test_an_unreachable_host_is_unknown_and_the_others_go_on(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = {"live": {"url": host.url}, "dead": {"url": "http://127.0.0.1:9", "timeout": "1s"}}
    write({**DERIVED, "hosts": hosts})
    assert run(["apply", "-y"]) == 3
    assert set(tags(host)) == {"llama3.2:3b", "bot:latest", "chat:latest"}
    shown = capsys.readouterr().out
    assert "its state is unknown" in shown
    last = shown.splitlines()[-1]
    assert last.startswith("partly done in")
    assert last.endswith("1 host as declared, 1 not reached")
    assert run(["drift"]) == 3


@pytest.mark.parametrize("output", ["json", "markdown", "html", "text"])
def test_apply_reports_in_every_format(
    output: str, host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    assert run(["apply", "-y", "-o", output, "--progress", "none"]) == 0
    shown = capsys.readouterr()
    assert ("bot:latest" in shown.out, shown.err) == (True, "")
    if output == "json":
        assert json.loads(shown.out)["format"] == "ollamaops-run"


# locks


def test_pretend_servers_have_a_lock_of_their_own(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": ["llama3.2:3b"]})
    (tmp_path / "ollamaops.lock").write_text("not for pretend servers")
    assert run(["plan", "--sandbox=pretend", "--locked"]) == 4
    assert run(["lock", "--sandbox=pretend"]) == 0
    assert (tmp_path / "pretend" / "ollamaops.lock").is_file()
    assert (tmp_path / "ollamaops.lock").read_text() == "not for pretend servers"
    assert run(["lock", "--sandbox=pretend", "--check"]) == 0
    assert run(["apply", "--sandbox=pretend", "--locked", "-y"]) == 0
    assert run(["lock", "--sandbox=pretend", "--lock-file", "other.lock"]) == 0
    assert (tmp_path / "other.lock").is_file()
    assert run(["validate"]) == 65


# saved plans


def test_a_saved_plan_does_exactly_what_it_says(host: Sandbox, write: Write, tmp_path: Path) -> None:
    write(DERIVED)
    assert run(["plan", "--out", "plan.json"]) == 0
    assert run(["apply", "plan.json"]) == 0
    assert run(["drift"]) == 0


def test_a_saved_plan_is_refused_when_a_fact_has_changed(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    tamper(host, "bot", system="Be rude.")
    run(["plan", "--out", "plan.json"])
    tamper(host, "bot", system="Be ruder.")
    before = tags(host)
    capsys.readouterr()
    assert run(["apply", "plan.json"]) == 4
    assert "'bot:latest' on local was" in capsys.readouterr().err
    assert tags(host) == before


def test_a_saved_plan_is_refused_when_the_manifest_has_changed(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["plan", "--out", "plan.json"])
    write({"models": ["llama3.2:3b"]})
    assert run(["apply", "plan.json"]) == 4
    assert "the manifest has changed" in capsys.readouterr().err
    assert tags(host) == {}


@pytest.mark.parametrize(
    "text, said", [("{", "it is not JSON"), ("{}", "plan"), (None, "no such file or directory")]
)
def test_a_file_that_is_no_plan_is_refused(
    text: str | None,
    said: str,
    host: Sandbox,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(DERIVED)
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    assert run(["apply", "plan.json"]) == 64
    assert said in capsys.readouterr().err.lower().replace("json", "JSON")


# import, init, version


def test_what_import_writes_plans_nothing(
    host: Sandbox, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(DERIVED)
    run(["apply", "-y"])
    tamper(host, "odd", system="Two\nlines", parameters={"stop": ["a", "b"]}, license=["MIT"])
    (tmp_path / "ollamaops.yaml").unlink()
    assert run(["import", "--out", "ollamaops.yaml"]) == 0
    assert run(["plan", "--detailed-exitcode", "--state-dir", "elsewhere"]) == 0
    written = (tmp_path / "ollamaops.yaml").read_text()
    assert ("from: llama3.2:3b" in written, "copy: " in written) == (True, True)
    assert run(["import", "--out", "ollamaops.yaml"]) == 64


def test_import_reads_one_host(host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write({"models": [], "hosts": {"a": {"url": host.url}, "b": {"url": "http://127.0.0.1:9"}}})
    assert run(["import", "-f", "ollamaops.yaml"]) == 64
    assert "a, b" in capsys.readouterr().err
    assert run(["import", "-f", "ollamaops.yaml", "--host", "a"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["hosts"] == {"a": {"url": host.url}}


def test_init_writes_a_manifest_that_applies_and_never_overwrites(write: Write, tmp_path: Path) -> None:
    write("models: []")
    assert run(["init"]) == 64
    assert run(["init", "fresh"]) == 0
    assert run(["validate", "-f", "fresh/ollamaops.yaml"]) == 0
    assert json.loads((tmp_path / "fresh/ollamaops.schema.json").read_text())["$schema"]


def test_version_tells_the_servers_too(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": [], "hosts": {"live": {"url": host.url}, "dead": {"url": "http://127.0.0.1:9"}}})
    assert run(["version", "--servers", "-o", "json"]) == 3
    hosts = json.loads(capsys.readouterr().out)["hosts"]
    assert (hosts["live"], hosts["dead"].startswith("not reached")) == ("Ollama 0.33.0-rc2", True)
    assert run(["version"]) == 0


def test_validate_reports_as_json_too(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("models: [{name: x, sytem: y}]")
    assert run(["validate", "-o", "json"]) == 65
    problem = json.loads(capsys.readouterr().out)["problems"][0]
    assert problem["line"] == 1
    write(DERIVED)
    assert run(["validate", "-o", "json"]) == 0


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].endswith("2020-12/schema")


def test_a_bug_is_told_in_a_line_and_shown_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "broken", "A command without a module.")
    assert run(["broken"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run(["broken", "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err


# interruption


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_next_run_completes(
    number: signal.Signals, code: int, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(DERIVED)
    stall = parse_faults(
        "faults: [{on: {endpoint: create}, call: 1, do: {stall: {with_progress: true, for: 60s}}}]"
    )
    with Sandbox(faults=with_faults(stall)) as host:
        environ = {**os.environ, "OLLAMA_HOST": host.url}
        program = [sys.executable, "-m", "ollamaops", "apply", "-y", "--log-format", "json"]
        with subprocess.Popen(
            program, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stderr is not None
            for line in running.stderr:
                if '"progressed"' in line and "create/bot" in line:
                    break
            running.send_signal(number)
            running.communicate(timeout=PATIENCE_S)
        assert running.returncode == code
        monkeypatch.setenv("OLLAMA_HOST", host.url)
        assert "llama3.2:3b" in tags(host)
        assert run(["apply", "-y"]) == 0
        assert run(["drift"]) == 0


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_the_shell_has_closed_is_one_that_nobody_reads(
    host: Sandbox, write: Write, closed: str
) -> None:
    write({"models": ["llama3.2:3b"]})
    program = [sys.executable, "-m", "ollamaops", "drift"]
    redirection = {"stdout": ">&-", "stderr": "2>&-"}[closed]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *program], capture_output=True, timeout=PATIENCE_S
    )
    assert (done.returncode, b"internal error" in done.stderr) == (2, False)


def test_a_run_names_each_host_that_was_not_reached(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write({"hosts": {"dead": {"url": "http://127.0.0.1:9", "timeout": "1s"}}, "models": ["llama3.2:3b"]})
    assert run(["apply", "-y", "-o", "json"]) == 3
    [host] = json.loads(capsys.readouterr().out)["hosts"]
    assert (host["host"], host["as_declared"], "refused" in host["unreached"]["error"]) == (
        "dead",
        False,
        True,
    )


def test_a_plan_that_was_saved_is_said_to_be(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": ["llama3.2:3b"]})
    assert run(["plan", "--out", "p.json"]) == 0
    assert "saved 1 action to p.json; to do exactly that: ollamaops apply p.json" in capsys.readouterr().err
    assert run(["plan", "--out", "p.json", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_the_sandbox_is_no_version_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sandbox", "serve", "--as-version", "abc", "--port", "0"]) == 64
    assert "--as-version: 'abc' is no version of Ollama" in capsys.readouterr().err
