"""Lines of the log beside a progress bar."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line of its own; a progress bar that is being drawn is drawn anew below it."""
    tqdm.write(text)
    sys.stdout.flush()
