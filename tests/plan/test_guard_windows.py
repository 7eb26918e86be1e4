"""Maintenance windows: open when a wall clock in their time zone says so, and the next opening is when it opens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.manifest.types import Window
from ollamaops.observe.host import clocks_of
from ollamaops.plan import guard
from ollamaops.plan.guard import DAYS, describe_moment

WEEKEND_NIGHTS = Window(
    days=("sat", "sun"), begins_minute=22 * 60, ends_minute=6 * 60, timezone="Europe/Paris"
)
OFFICE = Window(
    days=("mon", "tue", "wed", "thu", "fri"), begins_minute=9 * 60, ends_minute=17 * 60, timezone="UTC"
)
ALWAYS = Window()
FROM_MIDNIGHT_TO_SIX = Window(days=("mon",), ends_minute=6 * 60)
TWENTY_FOUR_HOURS = Window(days=("mon",), begins_minute=12 * 60, ends_minute=12 * 60)

WINDOWS = st.builds(
    Window,
    days=st.lists(st.sampled_from(DAYS), unique=True, max_size=7).map(tuple),
    begins_minute=st.integers(0, 24 * 60 - 1),
    ends_minute=st.integers(1, 24 * 60),
    timezone=st.sampled_from(("UTC", "utc", "Europe/Paris", "Asia/Kathmandu", "America/St_Johns")),
)
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


def is_open(windows: list[Window], now: datetime) -> bool:
    return guard.is_open(windows, clocks_of(windows, now))


def next_opening(windows: list[Window], now: datetime) -> datetime | None:
    return guard.next_opening(windows, clocks_of(windows, now))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "window, moment, expected",
    [
        (OFFICE, "2026-11-23T09:00:00+00:00", True),  # a Monday
        (OFFICE, "2026-11-23T08:59:59+00:00", False),
        (OFFICE, "2026-11-23T16:59:59+00:00", True),
        (OFFICE, "2026-11-23T17:00:00+00:00", False),
        (OFFICE, "2026-11-22T12:00:00+00:00", False),
        (OFFICE, "2026-11-23T04:30:00-05:00", True),
        (ALWAYS, "2026-11-22T23:59:59+00:00", True),
        (WEEKEND_NIGHTS, "2026-11-21T22:00:00+01:00", True),  # a Saturday
        (WEEKEND_NIGHTS, "2026-11-21T21:59:00+01:00", False),
        (WEEKEND_NIGHTS, "2026-11-22T05:59:00+01:00", True),
        (WEEKEND_NIGHTS, "2026-11-22T06:00:00+01:00", False),
        (WEEKEND_NIGHTS, "2026-11-23T05:59:00+01:00", True),  # Monday morning belongs to Sunday
        (WEEKEND_NIGHTS, "2026-11-23T22:30:00+01:00", False),
        (WEEKEND_NIGHTS, "2026-11-21T05:00:00+01:00", False),  # Saturday morning belongs to Friday
        (FROM_MIDNIGHT_TO_SIX, "2026-11-23T00:00:00+00:00", True),
        (FROM_MIDNIGHT_TO_SIX, "2026-11-24T00:00:00+00:00", False),
        (TWENTY_FOUR_HOURS, "2026-11-23T12:00:00+00:00", True),
        (TWENTY_FOUR_HOURS, "2026-11-24T11:59:00+00:00", True),
        (TWENTY_FOUR_HOURS, "2026-11-24T12:00:00+00:00", False),
    ],
)
def test_a_window_is_open_from_its_first_minute_to_the_one_before_its_last(
    window: Window, moment: str, expected: bool
) -> None:
    assert is_open([window], at(moment)) == expected


@pytest.mark.parametrize(
    "moment, expected",
    [
        ("2026-03-29T00:30:00+00:00", True),  # 01:30, then clocks go from 02:00 to 03:00
        ("2026-03-29T01:30:00+00:00", True),  # 03:30
        ("2026-03-29T02:30:00+00:00", False),  # 04:30
        ("2026-10-25T00:30:00+00:00", True),  # 02:30, and once more an hour later
        ("2026-10-25T01:30:00+00:00", True),
        ("2026-10-25T03:30:00+00:00", False),
    ],
)
def test_hours_are_those_of_the_wall_clock_when_clocks_are_changed(moment: str, expected: bool) -> None:
    window = Window(begins_minute=60, ends_minute=4 * 60, timezone="Europe/Paris")
    assert is_open([window], at(moment)) == expected


def test_one_open_window_is_enough_and_none_is_never_open() -> None:
    monday = at("2026-11-23T12:00:00+00:00")
    assert is_open([WEEKEND_NIGHTS, OFFICE], monday)
    assert not is_open([], monday)
    assert next_opening([], monday) is None


def test_the_next_opening_is_the_earliest_of_all_windows_and_says_its_own_time() -> None:
    friday_evening = at("2026-11-20T18:00:00+00:00")
    opening = next_opening([OFFICE, WEEKEND_NIGHTS], friday_evening)
    assert opening is not None
    assert (opening, describe_moment(opening)) == (
        at("2026-11-21T21:00:00+00:00"),
        "sat 22:00 (Europe/Paris)",
    )
    monday = next_opening([OFFICE], friday_evening)
    assert monday is not None
    assert describe_moment(monday) == "mon 09:00 (UTC)"


def test_a_window_that_has_just_opened_opens_again_next_week() -> None:
    assert next_opening([FROM_MIDNIGHT_TO_SIX], at("2026-11-23T00:00:00+00:00")) == at(
        "2026-11-30T00:00:00+00:00"
    )


@given(st.lists(WINDOWS, min_size=1, max_size=3), MOMENTS)
def test_there_is_always_a_next_opening_within_eight_days(windows: list[Window], now: datetime) -> None:
    opening = next_opening(windows, now)
    assert opening is not None
    assert now < opening <= now + timedelta(days=8)


@given(WINDOWS, MOMENTS)
def test_a_window_is_closed_from_now_until_its_next_opening_or_open_now(
    window: Window, now: datetime
) -> None:
    """But for an hour that a change of clocks leaves out or repeats."""
    opening = next_opening([window], now)
    assert opening is not None
    if is_open([window], now):
        return
    steps = int((opening - now) / timedelta(minutes=20))
    open_at = [step for step in range(steps) if is_open([window], now + step * timedelta(minutes=20))]
    assert all(steps - step <= 4 for step in open_at)
