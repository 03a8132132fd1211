"""Import large libraries without the garbage collector, which costs as much as the imports themselves."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector. Imports make a million objects, all of which live on.

    Importing torch, Lightning and DeepSpeed takes about a fifth less time so.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exit_without_collecting() -> None:
    """Let this process end without the garbage collector's last pass over all that was imported, which takes a second."""
    atexit.register(gc.freeze)
