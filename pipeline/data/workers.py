"""Start decoding processes so that a scheduler's signals do not end them, and end them with their owner."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.errors import DataError
from pipeline.launch.signals import SIGNALS

_LIMITS = {
    errno.EMFILE: "this process has as many open files as it may have; raise the limit (ulimit -n 65536)",
    errno.ENFILE: "the machine has as many open files as it may have; raise fs.file-max",
    errno.ENOSPC: (
        "/dev/shm is full; give the container more (docker --shm-size, or --ipc=host), or remove what crashed programs have "
        "left there"
    ),
    errno.EAGAIN: (
        "this user or container has as many processes as it may have; raise the limit (ulimit -u, docker --pids-limit)"
    ),
    errno.ENOMEM: "the machine's memory is full",
}


@contextmanager
def started(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Yield a loader's iterator. Its workers have ended after the block, or when Python exits before.

    The loader needs `worker_init_fn=start_worker`.

    Python and torch end workers by SIGTERM, which these do not listen to (see `start_worker`), and wait for them: a process
    that still held an iterator would never exit.

    Raises:
        DataError: the system does not let them start.
    """
    others = set(multiprocessing.active_children())
    with _held_signals():  # a worker inherits that, and is not ended while it imports torch
        parts = _start(loader)
    workers = [child for child in multiprocessing.active_children() if child not in others]

    def end() -> None:
        if workers:
            parts._shutdown_workers()  # it signals workers, and waits for five seconds; torch has no public name for it
        for worker in workers:
            worker.kill()

    atexit.register(end)
    try:
        yield parts
    finally:
        atexit.unregister(end)
        end()


def _start(loader: DataLoader[Any]) -> Any:
    try:
        return iter(loader)
    except OSError as error:
        if error.errno not in _LIMITS:
            raise
        count = loader.num_workers
        raise DataError(
            f"{count} decoding process{'es' * (count > 1)} cannot be started: {_LIMITS[error.errno]}, or lower num_workers"
        ) from error


@contextmanager
def _held_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        resource_tracker.ensure_running()  # the first spawn would start it, which unblocks SIGTERM and SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(_worker: int) -> None:
    """Prepare a worker, before anything else."""
    torch.set_num_threads(1)
    ignore_signals()


def ignore_signals() -> None:
    """Ignore a scheduler's signals, which every process of a job may be given. The owner decides: it still needs this one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def start_process(process: BaseProcess) -> None:
    """Start a spawned process that calls `ignore_signals` first; until then they are blocked."""
    with _held_signals():
        process.start()


@contextmanager
def explained(*, remedy: str) -> Iterator[None]:
    """Raise in words what asking a loader for its next part may raise.

    Args:
        remedy: which settings need less memory.

    Raises:
        DataError: a worker has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if os.strerror(errno.EMFILE) in str(error):
            raise DataError(f"decoding processes cannot hand their images over: {_LIMITS[errno.EMFILE]}") from error
        if "DataLoader worker" not in str(error):
            raise
        # Without process ids the same end has the same words.
        reason = re.sub(r" \(pids?(\(s\))?:? ?[\d, ]+\)", "", str(error).splitlines()[0]).rstrip(". ")
        raise DataError(
            f"a decoding process ended ({reason}): most likely the machine's memory is full (lower {remedy}), or an image "
            "broke the decoder (`python -m data_tools verify` finds it)"
        ) from error
