"""What the head of an answer means: the error that a status is, and the wait that Retry-After asks for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import AccessDenied, AnswerError, InvalidRequest, NotFound, ServerFault, TooManyRequests
from ollamaops.http.answer import error_kind, parse_retry_after

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((401, 403), AccessDenied),
        ((404,), NotFound),
        ((429,), TooManyRequests),
        ((304, 400, 405, 410, 412, 418), InvalidRequest),
        ((0, 200, 408, 425, 499, 500, 502, 503, 599), ServerFault),
    ],
)
def test_a_status_is_one_kind_of_error(statuses: tuple[int, ...], kind: type[AnswerError]) -> None:
    assert {error_kind(status) for status in statuses} == {kind}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 12:01:30 -0000", 90.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("Thu, 99 Jan 2026 99:99:99 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [A-Z0-9+-]{3,5}"))
def test_no_retry_after_whatever_makes_this_fail(header: str) -> None:
    seconds = parse_retry_after(header, NOW)
    assert seconds is None or seconds >= 0
