"""Print lines of the log next to a progress bar, and listings whose reader may leave."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal

from tqdm import tqdm


def log_line(text: str) -> None:
    """Print a line of its own. A progress bar in progress is drawn again below it."""
    tqdm.write(text)
    sys.stdout.flush()


def print_lines(lines: Iterable[str], *, when_unread: Literal["stop", "go on"]) -> None:
    """Print lines as they come.

    Args:
        when_unread: whether to take the other lines, for their side effects, when nobody reads any more (`| head`).

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    unread: BrokenPipeError | None = None
    for line in lines:
        try:
            if unread is None:
                print(line, flush=True)
        except BrokenPipeError as error:
            if when_unread == "stop":
                raise
            unread = error
    if unread is not None:
        raise unread
