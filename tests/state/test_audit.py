"""The audit log only grows: lines of several writers never mix, and a disk that refuses is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ollamaops.errors import StateError
from ollamaops.state.audit import AuditLog

WRITE_MANY = """
import sys
from pathlib import Path
from ollamaops.state.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
for number in range(200):
    log.append({"who": sys.argv[2], "number": number, "text": "x" * 3000})
"""


def lines(log: AuditLog) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.path.read_text("ascii").splitlines()]


def test_each_entry_is_a_line_and_earlier_ones_stay(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state")
    log.append({"action": "a\nb", "host": "grün"})
    before = log.path.read_bytes()
    AuditLog(tmp_path / "state").append({"action": "c"})
    assert log.path.read_bytes().startswith(before)
    assert lines(log) == [{"action": "a\nb", "host": "grün"}, {"action": "c"}]
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_lines_of_two_processes_and_many_threads_never_mix(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITE_MANY, str(tmp_path)]
    processes = [subprocess.Popen([*arguments, who]) for who in ("one", "two")]
    log = AuditLog(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: log.append({"who": "three", "number": number}), range(200)))
    assert [process.wait() for process in processes] == [0, 0]
    written = lines(log)
    for who in ("one", "two", "three"):
        assert sorted(str(line["number"]) for line in written if line["who"] == who) == sorted(
            map(str, range(200))
        )
    assert [line["number"] for line in written if line["who"] == "one"] == list(range(200))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    log = AuditLog(tmp_path / "state")
    with pytest.raises(StateError) as caught:
        log.append({})
    assert str(caught.value) == f"{log.path}: the audit log cannot be written: file exists"
    assert caught.value.hint == "free some space, or choose another folder with --state-dir"


def test_a_line_that_did_not_fit_on_the_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(StateError, match="only 3 of 11 bytes were written"):
        AuditLog(tmp_path).append({"a": 100})
