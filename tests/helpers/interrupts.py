"""Interrupt work between any two lines, as a signal's exception does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupt_after(lines: int, work: Callable[[], None], *, file: str) -> None:
    """Do work, and raise KeyboardInterrupt in this thread when so many lines of a file have run."""
    run = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal run
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            run += 1
            if run > lines:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
