"""List a source part by part, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from data_tools.make.sources.concatenate import concatenate
from data_tools.make.sources.listing import Listing
from data_tools.parallel import Workers
from pipeline.console.progress import track

Task = TypeVar("Task")


def list_parts(
    function: Callable[[Task], Listing], tasks: Sequence[Task], *, workers: Workers, description: str, unit: str
) -> Listing:
    """Return the listings of all tasks, joined in the order of the tasks.

    Args:
        tasks: at least one, all different.
    """
    if workers.count == 1 or len(tasks) == 1:  # starting a process takes longer than many listings
        return concatenate([function(task) for task in track(tasks, description=description, unit=unit)])
    parts = dict(workers.map(function, tasks, description=description, unit=unit))
    return concatenate([parts.pop(task) for task in tasks])
