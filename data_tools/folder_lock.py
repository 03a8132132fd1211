"""Let one command at a time write into a folder. A second one is refused, with the name of the first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DataError
from pipeline.run.claims import Owner
from pipeline.run.lock import FolderLock

LOCK_NAME = ".data-tools.lock"


@contextmanager
def lock_folder(folder: Path, *, advice: str, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist. The stale lock of a killed process is taken over.

    Args:
        name: the lock file's name; commands that write different files into a folder have locks of their own.
        advice: what to do where nothing can be written there: the option that names another path.

    Raises:
        DataError: another command works there, or nothing can be written there.
    """
    lock = FolderLock(folder / name, refuse=_refuse(folder), tell=_tell)
    try:
        messages = lock.take()
    except OSError as error:
        raise DataError(f"{folder}: nothing can be written there ({error.strerror or error}); {advice}") from error
    for message in messages:
        _tell(message)
    try:
        yield
    finally:
        lock.release()


def _refuse(folder: Path) -> Callable[[Owner, str], DataError]:
    def refuse(owner: Owner, known: str) -> DataError:
        return DataError(
            f"{folder} is being written by another command, of {owner}{f'; {known}' if known else ''}; wait for it, or end it"
        )

    return refuse


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
