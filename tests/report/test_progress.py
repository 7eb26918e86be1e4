"""Progress while it happens: plain lines, JSON lines, a live display, or nothing."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from golden import Golden
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import values_of
from rich.console import Console

from ollamaops.events import (
    ActionEnded,
    ActionStarted,
    Event,
    Failed,
    HostObserved,
    HostUnreached,
    Interrupted,
    Noted,
    Outcome,
    Progressed,
    Refused,
    Retrying,
    RoundEnded,
    Sink,
    Skipped,
    Succeeded,
)
from ollamaops.report.live_display import RichProgress, build_console, draw_rows
from ollamaops.report.progress import (
    JsonLines,
    OnDemand,
    PlainProgress,
    ProgressKind,
    Silence,
    progress_sink,
)
from ollamaops.report.progress_board import Board, Flow, render_event, render_flow, title_of
from ollamaops.report.words import Paint

START = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
PULL = "pull/qwen3:32b"
LAYER = "9f2c9f2c9f2c"
GB = 10**9


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and refuses to be written to once `error` is set."""

    error: type[Exception] | None = None

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if self.error:
            raise self.error
        return super().write(text)


def an_event(kind: type[Any], after_s: float, action: str = "", host: str = "gpu-1", **fields: object) -> Any:
    at = (START + timedelta(seconds=after_s)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    action_id = f"{host}/{action}" if action else ""
    return kind(run_id="r", at=at, host=host, action_id=action_id, **fields)


def a_start(after_s: float = 0, action: str = PULL, host: str = "gpu-1") -> Event:
    verb, _, subject = action.partition("/")
    return an_event(ActionStarted, after_s, action, host, verb=verb, subject=subject)  # type: ignore[no-any-return]


def a_move(
    after_s: float,
    done: int,
    total: int = 4 * GB,
    layer: str = LAYER,
    action: str = PULL,
    host: str = "gpu-1",
) -> Progressed:
    return an_event(  # type: ignore[no-any-return]
        Progressed,
        after_s,
        action,
        host,
        status=f"pulling {layer}" if layer else "verifying sha256 digest",
        layer=layer,
        completed_bytes=done,
        total_bytes=total,
    )


def an_end(after_s: float, outcome: Outcome, action: str = PULL, host: str = "gpu-1") -> Event:
    return an_event(ActionEnded, after_s, action, host, outcome=outcome)  # type: ignore[no-any-return]


def a_story() -> list[Event]:
    """Two hosts at work, a third away, a retry, a failure and a second round."""
    create = "create/bot:latest"
    return [
        an_event(HostObserved, 0, version="0.33.0", models=14, requests=2),
        an_event(HostUnreached, 0, host="gpu-3", error="gpu-3: connection refused", hint="start it"),
        a_start(1),
        a_start(1, create, "gpu-2"),
        *(a_move(2 + second, second * GB // 10) for second in range(20)),
        an_event(Progressed, 22, create, "gpu-2", status="using existing layer sha256:ab"),
        an_event(Retrying, 22, PULL, attempt=1, attempts=5, wait_s=3.2, error="gpu-1: connection lost"),
        an_end(23, Succeeded(seconds=22), create, "gpu-2"),
        *(a_move(26 + second, (20 + second) * GB // 10) for second in range(21)),
        a_move(47, 0, 0, layer=""),
        a_move(70, 0, 0, layer=""),
        an_end(75, Failed(error="gpu-1: digest mismatch \x1b[31m!")),
        an_end(75, Skipped(because="gpu-1/pull/qwen3:32b failed"), "copy/chat:latest"),
        an_event(RoundEnded, 76, round=1, remaining=("qwen3:32b", "chat:latest")),
        an_event(RoundEnded, 76, host="gpu-2", round=1),
        an_event(Noted, 77, level="warning", message="the clock of gpu-1 is 90s behind"),
    ]


def lines_of(events: Iterable[Event]) -> list[str]:
    out = io.StringIO()
    with PlainProgress(out) as progress:
        for event in events:
            progress(event)
    return out.getvalue().splitlines()


def test_plain_progress_reads_as_its_golden_file(golden: Golden) -> None:
    golden("progress-plain.txt", "".join(f"{line}\n" for line in lines_of(a_story())))


def test_progress_as_json_reads_as_its_golden_file(golden: Golden) -> None:
    out = io.StringIO()
    with JsonLines(out) as progress:
        for event in a_story():
            progress(event)
    golden("progress.jsonl", out.getvalue())
    assert len([json.loads(line) for line in out.getvalue().splitlines()]) == len(a_story())


@pytest.mark.parametrize("after", [8, 20, 46])
def test_the_live_display_reads_as_its_golden_file(after: int, golden: Golden) -> None:
    board, out = Board(), io.StringIO()
    for event in a_story()[:after]:
        board.take(event)
    Console(file=out, width=80).print(draw_rows(board.rows()))
    golden(f"progress-rich-{after}.txt", out.getvalue())


@pytest.mark.parametrize(
    "outcome, said",
    [
        (Succeeded(seconds=42), "done in 42s"),
        (Succeeded(seconds=1, changed=False), "done in 1.0s, nothing to transfer"),
        (Failed(error="gpu-1: no space left"), "failed: no space left"),
        (Skipped(because="x failed"), "skipped: x failed"),
        (Refused(because="it has changed"), "refused: it has changed"),
        (Interrupted(), "not started"),
        (Interrupted(started=True), "stopped halfway"),
    ],
)
def test_every_outcome_is_said(outcome: Outcome, said: str) -> None:
    assert render_event(an_end(1, outcome))[0] == f"gpu-1: pull qwen3:32b: {said}"


@pytest.mark.parametrize(
    "event, said",
    [
        (an_event(Noted, 0, level="info", message="gpu-1: hello"), "gpu-1: hello"),
        (an_event(Noted, 0, host="", level="info", message="hello"), "hello"),
        (an_event(RoundEnded, 0, round=1), "gpu-1: round 1: as declared"),
        (
            an_event(RoundEnded, 0, round=1, lasting=1, unknown=2),
            "gpu-1: round 1: nothing more to do; 1 cannot be changed, 2 unknown",
        ),
        (a_move(0, 1), "gpu-1: pull qwen3:32b: pulling 9f2c9f2c9f2c"),
        (
            an_event(Progressed, 0, "upload/sha256:ab", status="sending", layer="ab12"),
            "gpu-1: upload sha256:ab: sending ab12",
        ),
        (an_event(Progressed, 0, PULL, status="writing manifest"), "gpu-1: pull qwen3:32b: writing manifest"),
    ],
)
def test_an_event_is_one_line(event: Event, said: str) -> None:
    assert render_event(event)[0] == said


def test_a_slow_layer_gets_a_line_every_ten_seconds() -> None:
    moves = [a_move(second, second * GB // 1000) for second in range(61)]
    assert len(lines_of(moves)) == 6


def test_a_fast_layer_gets_a_line_per_tenth() -> None:
    moves = [a_move(second, second * 4 * GB // 20) for second in range(21)]
    assert len(lines_of(moves)) == 10


def test_a_layer_that_is_there_at_once_gets_no_line() -> None:
    assert lines_of([a_move(step / 100, step * 4 * GB // 20) for step in range(21)]) == []


def test_layers_are_measured_apart() -> None:
    moves = [a_move(second, 0, layer=layer) for second in range(11) for layer in ("a", "b")]
    assert [line.split()[4] for line in lines_of(moves)] == ["a:", "b:"]


def test_a_part_that_starts_again_is_measured_from_there() -> None:
    assert lines_of([a_move(0, GB), a_move(2, 0), a_move(4, GB // 4), a_move(6, GB // 2)]) == [
        "gpu-1: pull qwen3:32b: pulling 9f2c9f2c9f2c: 12 %, 500 MB of 4.0 GB, 125 MB/s, 28s left"
    ]


def test_a_second_attempt_is_measured_from_its_own_start() -> None:
    events = [a_move(0, GB), an_end(1, Interrupted(started=True)), a_move(30, GB), a_move(31, GB)]
    assert len(lines_of(events)) == 1


def test_an_event_without_a_readable_moment_is_no_error() -> None:
    event = Progressed(run_id="r", at="yesterday", host="gpu-1", action_id="gpu-1/pull/x", status="s")
    assert lines_of([event]) == []


def test_the_speed_is_that_of_the_last_seconds() -> None:
    flow = Flow()
    for second in range(100):
        flow.move(second, second * 1000 if second < 50 else 50_000, 100_000)
    assert flow.rate == 0
    assert render_flow(flow, flow.rate) == "50 %, 50.0 kB of 100 kB"


def test_a_speed_needs_two_moments() -> None:
    flow = Flow()
    assert flow.rate == 0
    flow.move(0, 10, 100)
    assert flow.rate == 0
    flow.move(0, 20, 100)
    assert flow.rate == 0
    flow.move(2, 40, 100)
    assert flow.rate == 15


def test_a_long_silence_does_not_empty_the_speed() -> None:
    flow = Flow()
    flow.move(0, 0, 100)
    flow.move(60, 60, 100)
    assert flow.rate == 1


def test_the_board_has_a_row_per_host_action_and_layer() -> None:
    board = Board()
    for event in (
        a_start(),
        a_move(1, GB, layer="aaa"),
        a_move(1, GB, layer="bbb"),
        a_move(3, 2 * GB, layer="aaa"),
        a_start(1, "create/bot", "gpu-2"),
        an_event(HostObserved, 3, version="0.33.0", models=1, requests=2),
        an_event(Retrying, 3, PULL, attempt=1, attempts=2, wait_s=1, error="x"),
    ):
        board.take(event)
    assert [(row.label, row.text, row.share) for row in board.rows()] == [
        ("gpu-1", "37 %, 3.0 GB of 8.0 GB, 500 MB/s, 10s left; 0 done, 1 running", 0.375),
        ("  pull qwen3:32b aaa", "50 %, 2.0 GB of 4.0 GB, 500 MB/s, 4.0s left", 0.5),
        ("  pull qwen3:32b bbb", "25 %, 1.0 GB of 4.0 GB", 0.25),
        ("gpu-2", "0 done, 1 running", None),
        ("  create bot", "", None),
    ]
    board.take(an_end(5, Succeeded()))
    board.take(an_end(5, Succeeded(), "create/bot", "gpu-2"))
    assert board.rows() == []


def test_progress_of_an_action_that_was_never_announced_is_shown() -> None:
    board = Board()
    board.take(a_move(1, GB))
    assert board.rows()[1].label == "  pull qwen3:32b"
    assert board.flow(a_move(1, GB, host="gpu-9")) is None


def test_a_title_is_read_from_the_id_of_the_action() -> None:
    assert title_of(a_start(action="push/reg:5000/a/b:c")) == "push reg:5000/a/b:c"


@pytest.mark.parametrize(
    "kind, stream, environ, expected",
    [
        ("auto", Terminal(), {"TERM": "xterm"}, RichProgress),
        ("auto", Terminal(), {"TERM": "dumb"}, PlainProgress),
        ("auto", io.StringIO(), {}, PlainProgress),
        ("plain", Terminal(), {}, PlainProgress),
        ("rich", io.StringIO(), {}, RichProgress),
        ("none", Terminal(), {}, Silence),
    ],
)
def test_the_display_fits_the_stream(
    kind: ProgressKind, stream: io.StringIO, environ: dict[str, str], expected: type
) -> None:
    assert type(progress_sink(kind, stream, environ)) is expected
    assert type(progress_sink(kind, stream, environ, as_json=True)) is JsonLines


def test_a_display_on_demand_opens_at_the_first_event_and_closes_only_what_it_opened() -> None:
    terminal = Terminal()
    built: list[RichProgress] = []

    def build() -> RichProgress:
        built.append(RichProgress(build_console(terminal, color=False)))
        return built[-1]

    with OnDemand(build):
        pass
    assert (built, terminal.getvalue()) == ([], "")
    with OnDemand(build) as progress:
        progress(an_event(Noted, 1, level="info", message="one"))
        progress(an_event(Noted, 2, level="info", message="two"))
    assert len(built) == 1
    assert is_given_back(terminal)
    assert ["one" in terminal.getvalue(), "two" in terminal.getvalue()] == [True, True]


def test_what_is_on_no_host_is_done_on_this_machine() -> None:
    board = Board()
    stamp = {"run_id": "r", "at": "", "action_id": "hash/w/a.gguf"}
    board.take(ActionStarted(verb="hash", subject="w/a.gguf", **stamp))
    board.take(Progressed(status="hashing", completed_bytes=1, total_bytes=2, **stamp))
    assert [(row.label, row.text) for row in board.rows()] == [
        ("this machine", "0 done, 1 running"),
        ("  hash w/a.gguf", "50 %, 1 B of 2 B"),
    ]


def test_silence_is_silent() -> None:
    out = io.StringIO()
    with progress_sink("none", out, {}) as progress:
        for event in a_story():
            progress(event)
    assert out.getvalue() == ""


def test_colors_are_for_those_who_want_them() -> None:
    out = io.StringIO()
    PlainProgress(out, Paint(color=True))(an_end(1, Failed(error="x")))
    PlainProgress(out, Paint(color=True))(an_event(Noted, 1, level="info", message="x"))
    assert out.getvalue() == "\x1b[31mgpu-1: pull qwen3:32b: failed: x\x1b[0m\ngpu-1: x\n"


@pytest.mark.parametrize("sink", [PlainProgress, JsonLines])
def test_a_stream_that_breaks_does_not_stop_the_run(sink: type[PlainProgress | JsonLines]) -> None:
    closed, broken = io.StringIO(), Terminal()
    closed.close()
    broken.error = BrokenPipeError
    for stream in (broken, closed):
        with sink(stream) as progress:
            for event in a_story():
                progress(event)


def test_signs_that_the_stream_cannot_encode_are_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainProgress(stream)(an_event(Noted, 1, level="info", message="0.7 → 0.2 日"))
    assert raw.getvalue() == b"gpu-1: 0.7 -> 0.2 ?\n"


def play_in_threads(sink: Sink, stories: Mapping[str, Iterable[Event]]) -> None:
    """Each story in a thread of its own."""

    def play(events: Iterable[Event]) -> None:
        for event in events:
            sink(event)

    with ThreadPoolExecutor(len(stories)) as pool:
        for future in [pool.submit(play, events) for events in stories.values()]:
            future.result()


@pytest.mark.parametrize("sink", [PlainProgress, JsonLines])
def test_lines_of_several_threads_stay_whole(sink: type[PlainProgress | JsonLines]) -> None:
    out = io.StringIO()
    play_in_threads(sink(out), {host: [a_start(host=host)] * 50 for host in "abcdefgh"})
    lines = out.getvalue().splitlines()
    assert len(lines) == 400
    assert len(set(lines)) == 8


def test_the_live_display_scrolls_what_ended_and_gives_the_terminal_back() -> None:
    out = Terminal()
    with RichProgress(build_console(out, color=False)) as progress:
        for event in a_story():
            progress(event)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    for line in (
        "gpu-3: not reached: connection refused",
        "gpu-1: pull qwen3:32b: attempt 1 of 5 failed: connection lost; again in 3.2s",
        "gpu-2: create bot:latest: done in 22s",
        "gpu-1: pull qwen3:32b: failed: digest mismatch \\x1b[31m!",
    ):
        assert plain.count(line) == 1
    assert is_given_back(out)


def is_given_back(out: io.StringIO) -> bool:
    """Whether the cursor was hidden, and shown again at the end."""
    return out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def stumble(progress: RichProgress) -> None:
    with progress:
        progress(a_start())
        raise KeyboardInterrupt


def test_the_terminal_is_given_back_after_an_exception() -> None:
    out = Terminal()
    with pytest.raises(KeyboardInterrupt):
        stumble(RichProgress(build_console(out, color=True)))
    assert is_given_back(out)


def test_the_live_display_takes_events_of_several_threads() -> None:
    out = Terminal()
    with RichProgress(build_console(out, color=False)) as progress:
        play_in_threads(progress, {number: a_story() * 3 for number in "abcd"})
    assert out.getvalue().count("gpu-2: create bot:latest: done in 22s") == 12


@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
def test_a_terminal_that_goes_away_does_not_stop_the_run(error: type[Exception]) -> None:
    out = Terminal()
    with RichProgress(build_console(out, color=False)) as progress:
        out.error = error
        for event in a_story():
            progress(event)
        progress._live.refresh()  # what the redrawing thread does
    assert "digest mismatch" not in out.getvalue()


def test_without_color_the_live_display_has_none() -> None:
    out = Terminal()
    with RichProgress(build_console(out, color=False)) as progress:
        progress(an_end(1, Failed(error="x")))
    assert "\x1b[31m" not in out.getvalue()


@given(st.lists(st.one_of(*map(values_of, get_args(Event))), max_size=4))
def test_no_event_can_write_to_the_terminal_raw(events: list[Event]) -> None:
    out = io.StringIO()
    with PlainProgress(out) as progress:
        for event in events:
            progress(event)
    board = Board()
    for event in events:
        board.take(event)
    shown = out.getvalue() + "".join(row.label + row.text for row in board.rows())
    assert not [sign for sign in shown if sign != "\n" and (ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0)]


def test_only_the_live_display_imports_rich() -> None:
    rooms = Path(__file__).parents[2] / "ollamaops" / "report"
    modules = [
        f"ollamaops.report.{path.stem}" for path in rooms.glob("[a-z]*.py") if path.stem != "live_display"
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('rich' in sys.modules or 'requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
