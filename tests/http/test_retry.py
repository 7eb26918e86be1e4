"""Trying again: only what may pass, as long as asked for, not for ever, and never in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_host import NoWaitToken

from ollamaops.errors import (
    AnswerError,
    BrokenDownload,
    Cancelled,
    ConnectError,
    ConnectionLost,
    CutStream,
    DigestMismatch,
    DiskFull,
    InvalidRequest,
    NotFound,
    OllamaopsError,
    RegistryRefused,
    ServerFault,
    StateError,
    TimeoutExceeded,
    TooManyRequests,
)
from ollamaops.http import retry
from ollamaops.http.retry import attempt

PASSING: list[OllamaopsError] = [
    ConnectError("x"),
    ConnectionLost("x"),
    TimeoutExceeded("x"),
    CutStream("x"),
    BrokenDownload("x"),
    TooManyRequests("x"),
    ServerFault("x"),
]
LASTING: list[OllamaopsError] = [
    DiskFull("x"),
    NotFound("x"),
    InvalidRequest("x"),
    RegistryRefused("x"),
    DigestMismatch("x"),
    StateError("x"),
    Cancelled("x"),
]


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises each of the errors once, then works."""
    left: Iterator[Exception] = iter(errors)

    def work() -> str:
        for error in left:
            raise error
        return "done"

    return work


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_tried_again(error: OllamaopsError) -> None:
    told: list[tuple[int, OllamaopsError]] = []
    answer = attempt(
        failing(error, error),
        retries=2,
        cancel=NoWaitToken(),
        on_retry=lambda number, _, seen: told.append((number, seen)),
    )
    assert answer == "done"
    assert told == [(1, error), (2, error)]


@pytest.mark.parametrize(
    "error", [*LASTING, ZeroDivisionError("a bug")], ids=lambda error: type(error).__name__
)
def test_what_will_not_change_is_not_tried_again(error: Exception) -> None:
    token = NoWaitToken()
    with pytest.raises(type(error)) as caught:
        attempt(failing(error), retries=5, cancel=token)
    assert caught.value is error
    assert token.waits == []


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_number_of_attempts_is_bounded_and_the_last_error_comes_out(retries: int) -> None:
    errors = [ServerFault(str(number)) for number in range(10)]
    token = NoWaitToken()
    with pytest.raises(ServerFault) as caught:
        attempt(failing(*errors), retries=retries, cancel=token)
    assert caught.value is errors[retries]
    assert len(token.waits) == retries


@given(st.integers(1, 12))
def test_waits_double_with_jitter_up_to_a_limit(retries: int) -> None:
    token = NoWaitToken()
    with pytest.raises(ServerFault):
        attempt(failing(*[ServerFault("x")] * 20), retries=retries, cancel=token)
    for number, waited_s in enumerate(token.waits):
        least_s = min(retry.FIRST_WAIT_S * 2**number, retry.LONGEST_WAIT_S)
        assert least_s <= waited_s <= least_s + retry.FIRST_WAIT_S


@pytest.mark.parametrize("error", [TooManyRequests, ServerFault])
def test_retry_after_is_honoured(error: type[AnswerError]) -> None:
    token, told = NoWaitToken(), list[float]()
    work = failing(error("x", retry_after_s=42.0), error("x", retry_after_s=0.0))
    attempt(work, retries=5, cancel=token, on_retry=lambda _, wait_s, __: told.append(wait_s))
    assert token.waits == told
    assert token.waits[0] == 42.0
    assert token.waits[1] < 42.0


def test_a_server_that_wants_more_patience_than_there_is_is_left_alone() -> None:
    token = NoWaitToken()
    error = TooManyRequests("x", retry_after_s=retry.LONGEST_PATIENCE_S + 1)
    with pytest.raises(TooManyRequests):
        attempt(failing(error), retries=5, cancel=token)
    assert token.waits == []


def test_without_a_first_wait_there_is_no_wait() -> None:
    token = NoWaitToken()
    assert attempt(failing(*[ServerFault("x")] * 3), retries=3, cancel=token, first_wait_s=0) == "done"
    assert token.waits == [0, 0, 0]


def test_a_wish_to_stop_ends_the_wait_at_once() -> None:
    class Stopped(NoWaitToken):
        def wait(self, timeout: float | None = None) -> bool:
            threading.Thread(target=self.cancel).start()
            return threading.Event.wait(self._event, timeout)

    error = TooManyRequests("x", retry_after_s=retry.LONGEST_PATIENCE_S)
    with pytest.raises(Cancelled, match="stopped while waiting to try again"):
        attempt(failing(error), retries=1, cancel=Stopped())


def test_every_class_of_the_tree_is_either_worth_it_or_not() -> None:
    """`transient` alone decides, so that a new error has to say it for itself."""
    families: list[type[OllamaopsError]] = [OllamaopsError, *_below(OllamaopsError)]
    assert all(
        retry.is_worth_retrying(family.__new__(family)) is family.transient
        for family in families
        if not issubclass(family, AnswerError)
    )


def _below(family: type[OllamaopsError]) -> list[type[OllamaopsError]]:
    return [each for child in family.__subclasses__() for each in (child, *_below(child))]
