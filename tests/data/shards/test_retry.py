"""These errors of a store are retried, and for this long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
import requests
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.data.shards.retry import is_permanent, retry
from pipeline.errors import DataError


def failing(*errors: Exception) -> tuple[Callable[[], str], list[float]]:
    """Return a function that raises these, then succeeds, and the times of its calls."""
    left, calls = list(errors), []

    def function() -> str:
        calls.append(time.monotonic())
        if left:
            raise left.pop(0)
        return "done"

    return function, calls


def aiohttp_answer(status: int) -> Exception:
    info: Any = aiohttp.RequestInfo(URL("http://host/a.tar"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://host/a.tar"))
    return aiohttp.ClientResponseError(info, (), status=status)


def requests_answer(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize("answer", [aiohttp_answer, requests_answer])
def test_answers_that_may_change_are_tried_again(answer: Callable[[int], Exception]) -> None:
    """RFC 9110: 4xx says that the request is wrong, except a timeout, too early and too many, which ask for another try."""
    assert [status for status in range(400, 600) if not is_permanent(answer(status))] == [408, 425, 429, *range(500, 600)]


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError(), ConnectionResetError(), aiohttp.ServerDisconnectedError()])
def test_a_passing_failure_is_tried_again(error: Exception) -> None:
    function, calls = failing(error, error)
    told: list[Exception] = []
    assert retry(function, patience_s=60, on_failure=told.append) == "done"
    assert (len(calls), told) == (3, [error, error])
    assert calls[1] - calls[0] <= 5  # the first wait is short


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), DataError("x"), ValueError(), aiohttp_answer(403)])
def test_what_no_second_try_mends_is_raised_at_once(error: Exception) -> None:
    function, calls = failing(error)
    told: list[Exception] = []
    with pytest.raises(type(error)):
        retry(function, patience_s=60, on_failure=told.append)
    assert (len(calls), told) == (1, [])


def test_without_patience_there_is_one_try() -> None:
    function, calls = failing(OSError("one"), OSError("two"))
    with pytest.raises(OSError, match="one"):
        retry(function, patience_s=0)
    assert len(calls) == 1


def test_patience_lasts_from_the_first_failure_and_the_last_error_is_raised() -> None:
    calls: list[float] = []
    told: list[Exception] = []

    def function() -> None:
        time.sleep(0 if calls else 0.3)  # a slow first call costs no patience
        calls.append(time.monotonic())
        raise OSError(len(calls))

    with pytest.raises(OSError) as raised:
        retry(function, patience_s=0.25, on_failure=told.append)
    assert time.monotonic() - calls[0] > 0.25
    assert len(calls) > 1
    assert raised.value.args == (len(calls),)
    assert [error.args for error in told] == [(number,) for number in range(1, len(calls))]
