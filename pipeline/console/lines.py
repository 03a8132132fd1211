"""Lines of the log next to a progress bar, and listings that somebody may stop reading."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal

from tqdm import tqdm


def log_line(text: str) -> None:
    """Print a line of its own; a progress bar that is being drawn is drawn again below it."""
    tqdm.write(text)
    sys.stdout.flush()


def print_lines(lines: Iterable[str], *, when_unread: Literal["stop", "go on"]) -> None:
    """Print lines as they come.

    Args:
        when_unread: whether to take the rest of them, for what they do besides, when nobody reads any more (`| head`).

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
