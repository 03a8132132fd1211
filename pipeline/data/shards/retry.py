"""Retry a call to a store, with growing random waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError

Result = TypeVar("Result")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 20.0
# No retry fixes these. Any other error may be a passing fault of the network or server: libraries raise almost anything.
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    NotImplementedError,
    ImportError,
    TypeError,
    AttributeError,
    ValueError,
    PipelineError,
)
PERMANENT_NAMES = ("OfflineModeIsEnabled",)  # errors of libraries that need not be installed
PASSING = (
    408,
    425,
    429,
)  # of the answers from 300 to 499, which mean that the request is wrong, a later try may succeed with these


def is_permanent(error: Exception) -> bool:
    """Return whether no retry can help."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    is_refusal = isinstance(status, int) and 300 <= status < 500 and status not in PASSING
    return is_refusal or isinstance(error, PERMANENT) or type(error).__name__ in PERMANENT_NAMES


def retry(
    function: Callable[[], Result], *, patience_s: float, on_failure: Callable[[Exception], None] | None = None
) -> Result:
    """Call a function until it succeeds, with growing random waits between the tries.

    Args:
        patience_s: time for retries since the first failure; then the last error is raised.
        on_failure: called with each error that is followed by another try.

    Raises:
        what the function raises: at once if it is permanent.
    """
    first_failure: float | None = None
    longest_wait_s = FIRST_WAIT_S
    while True:
        try:
            return function()
        except Exception as error:
            if is_permanent(error):
                raise
            first_failure = first_failure or time.monotonic()
            if time.monotonic() - first_failure > patience_s:
                raise
            if on_failure is not None:
                on_failure(error)
        time.sleep(random.uniform(0, longest_wait_s))  # the whole wait is random: a thousand readers must not return at once
        longest_wait_s = min(LONGEST_WAIT_S, 2 * longest_wait_s)
