"""Keep the lists of a store's files until the work is done, so that a killed command does not read those files again for them.

SCRATCH/<hash of the task and the file's version>.listing
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data_tools.make.sources.listing import Listing, load_listing
from data_tools.make.sources.stored import check_version, version_of
from pipeline.data.shards.folder import is_remote
from pipeline.errors import DataError
from pipeline.files import Draft

Task = TypeVar("Task")


def keep_listings(function: Callable[[Task], Listing], scratch: Path, *, paths: Sequence[str]) -> Callable[[Task], Listing]:
    """Return a function that keeps its results where the files are a store's. The headers of local files are read quickly.

    Args:
        function: lists a file. Its text (`repr`) and the task's have all that the result depends on, and the file's URL.
        paths: of the files, each in a task at its place.
    """
    if not is_remote(paths[0]):
        return function
    return partial(_list_kept, function, str(scratch), frozenset(paths))


def _list_kept(function: Callable[[Task], Listing], scratch: str, paths: frozenset[str], task: Task) -> Listing:
    values: tuple[Any, ...] = task if isinstance(task, tuple) else (task,)
    path = next(value for value in values if value in paths)
    version = version_of(path)
    options = function.args if isinstance(function, partial) else ()
    name = hashlib.blake2b(repr((options, task, version)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    stored = Path(scratch) / f"{name}.listing"
    if stored.exists():
        try:
            return load_listing(stored)
        except DataError:
            pass  # damaged, or of an older version: listed again
    listing = function(task)
    check_version(path, version, doing="listed")
    stored.parent.mkdir(parents=True, exist_ok=True)
    with Draft(stored) as draft:
        listing.save(draft.path)
        draft.publish()
    return listing
