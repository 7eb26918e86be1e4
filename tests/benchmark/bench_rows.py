"""What the benchmark measures with and how it says it: programs run in turn, medians, ratios, a table."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ollamaops.units import format_size


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. `aim` bounds the ratio ours / theirs from above, from below if `more_is_better`."""

    what: str
    ours: str
    theirs: str
    ratio: float
    aim: float | None = None
    more_is_better: bool = False

    def render(self) -> str:
        """A line of the table."""
        aim = ""
        if self.aim is not None:
            is_met = self.ratio >= self.aim if self.more_is_better else self.ratio <= self.aim
            aim = f"{'≥' if self.more_is_better else '≤'} {self.aim:<5g}{'' if is_met else ' missed'}"
        return f"{self.what:<74} {self.ours:>11} {self.theirs:>11} {self.ratio:>7.2f}   {aim}".rstrip()


@dataclass
class Measured:
    """Seconds and peak memory of programs that ran in turn, by the name that a section gives them."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, list[int]] = field(default_factory=dict)

    def program(self, name: str, *command: str | Path) -> None:
        """Run a program that must succeed; its largest resident size counts as memory."""
        began = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        self.peaks.setdefault(name, []).append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\nended {process.returncode}")

    def call(self, name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def in_turn(self, runs: int, *steps: Callable[[], object]) -> None:
        """Every step once per run, in changing order, so that no one always profits from a warm machine."""
        for number in range(runs):
            for step in steps if number % 2 == 0 else steps[::-1]:
                step()

    def row(self, what: str, ours: str, theirs: str, aim: float | None = None) -> Row:
        """Medians of seconds, and of the ratios run by run."""
        mine, other = statistics.median(self.seconds[ours]), statistics.median(self.seconds[theirs])
        ratio = self._ratio(ours, theirs)
        return Row(what=what, ours=f"{mine:.3f} s", theirs=f"{other:.3f} s", ratio=ratio, aim=aim)

    def speed_row(self, what: str, ours: str, theirs: str, size_bytes: int, aim: float) -> Row:
        """Medians of bytes per second, and of the ratios run by run."""
        mine, other = (size_bytes / statistics.median(self.seconds[name]) for name in (ours, theirs))
        units = (f"{format_size(int(mine))}/s", f"{format_size(int(other))}/s")
        return Row(
            what=what,
            ours=units[0],
            theirs=units[1],
            ratio=self._ratio(theirs, ours),
            aim=aim,
            more_is_better=True,
        )

    def _ratio(self, above: str, below: str) -> float:
        """What ran next to each other is compared: a machine that others share is now fast, now slow."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(one / other for one, other in pairs)
