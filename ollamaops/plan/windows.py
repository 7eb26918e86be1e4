"""Maintenance windows: whether one is open at a given moment, and when the next one opens.

Pure; the clock is a value that is passed in. The fact a reader would miss: hours past midnight belong to the day on
which the window begins, so `sat 22:00-06:00` is open on Sunday at five; and hours are those of a wall clock in the
window's own time zone, whatever its offset is on that day.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta, tzinfo

from ollamaops.manifest.types import Window

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LOOK_AHEAD_DAYS = 8


def is_open(windows: Iterable[Window], now: datetime) -> bool:
    """Whether changes may begin at `now` (an aware moment)."""
    return any(_is_open(window, now) for window in windows)


def next_opening(windows: Iterable[Window], now: datetime) -> datetime | None:
    """When the next window opens, in its own time zone; None when there are no windows."""
    later = (opening for window in windows for opening in _openings(window, now) if opening > now)
    return min(later, default=None, key=lambda opening: opening.astimezone(UTC))


def describe_moment(moment: datetime) -> str:
    """`sat 22:00 (Europe/Paris)`."""
    return f"{DAYS[moment.weekday()]} {moment:%H:%M} ({moment.tzinfo})"


def zone_of(window: Window) -> tzinfo:
    """The window's time zone. ZoneInfoNotFoundError (a KeyError) if this system does not know it."""
    from zoneinfo import ZoneInfo

    return UTC if window.timezone.upper() == "UTC" else ZoneInfo(window.timezone)


def _is_open(window: Window, now: datetime) -> bool:
    here = now.astimezone(zone_of(window))
    minute = here.hour * 60 + here.minute
    if window.begins_minute < window.ends_minute:
        return window.begins_minute <= minute < window.ends_minute and _opens_on(window, here)
    if minute >= window.begins_minute and _opens_on(window, here):
        return True
    return minute < window.ends_minute and _opens_on(window, here - timedelta(days=1))


def _opens_on(window: Window, day: datetime) -> bool:
    return not window.days or DAYS[day.weekday()] in window.days


def _openings(window: Window, now: datetime) -> Iterable[datetime]:
    zone = zone_of(window)
    today = now.astimezone(zone)
    begins = time(window.begins_minute // 60, window.begins_minute % 60)
    for number in range(_LOOK_AHEAD_DAYS):
        day = today + timedelta(days=number)
        if _opens_on(window, day):
            yield datetime.combine(day.date(), begins, tzinfo=zone)
