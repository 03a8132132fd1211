"""Decoding processes that end, lack a resource or find an error are answered in words, and end with their owner."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from pipeline.data.streams.loader import BatchLoader
from pipeline.data.workers import explained
from pipeline.errors import DataError
from tests.conftest import REPOSITORY
from tests.helpers.streams import make_stream


def test_a_killed_worker_is_answered_in_words(corpus: Path) -> None:
    loader = iter(BatchLoader(make_stream(corpus), num_workers=1, prefetch=1, pin_memory=False))
    next(loader)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a decoding process ended .*memory is full"):
        list(islice(loader, 20))


@pytest.mark.parametrize(
    ("said", "told"),
    [("DataLoader worker (pid 812) is killed by signal: Killed. ", "DataLoader worker is killed by signal: Killed"),
     ("DataLoader worker (pid(s) 812, 9) exited unexpectedly", "DataLoader worker exited unexpectedly")],
)  # fmt: skip
def test_the_same_end_of_a_worker_has_the_same_words(said: str, told: str) -> None:
    """The evaluator's next start would record another failure of the same cause."""
    words = rf"a decoding process ended \({told}\): .* \(lower evaluation.num_workers\)"
    with pytest.raises(DataError, match=words), explained(remedy="evaluation.num_workers"):
        raise RuntimeError(said)


def test_a_limit_of_the_system_is_named_with_the_command_that_raises_it(corpus: Path) -> None:
    """As low as shells and containers set it; the same holds while images are handed over."""
    few = (
        "import resource, sys; from pathlib import Path; from tests.helpers.streams import BatchLoader, make_stream\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "next(iter(BatchLoader(make_stream(Path(sys.argv[1])), num_workers=4, prefetch=1, pin_memory=False)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", few, str(corpus)], cwd=REPOSITORY, timeout=100, capture_output=True, text=True
    )
    told = (
        "DataError: 4 decoding processes cannot be started: this process has as many open files as it may have; "
        "raise the limit "
    )
    assert f"{told}(ulimit -n 65536), or lower num_workers" in result.stderr
    with pytest.raises(DataError, match=r"cannot hand their images over: .*ulimit -n"), explained(remedy="x"):
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")


def test_other_errors_are_not_taken_for_a_workers_end() -> None:
    with pytest.raises(RuntimeError, match="shape"), explained(remedy="x"):
        raise RuntimeError("shape mismatch")


def test_a_process_that_still_holds_an_iterator_exits(corpus: Path) -> None:
    """Workers do not listen to SIGTERM, by which Python would end them, and which it would then wait for."""
    held = (
        "import sys; from pathlib import Path; from tests.helpers.streams import BatchLoader, make_stream\n"
        "held = iter(BatchLoader(make_stream(Path(sys.argv[1])), num_workers=1, prefetch=1, pin_memory=False)); next(held)"
    )
    subprocess.run([sys.executable, "-c", held, str(corpus)], cwd=REPOSITORY, timeout=100, check=True)


def test_an_error_in_a_worker_arrives_as_it_was_said(corpus: Path) -> None:
    loader = BatchLoader(make_stream(corpus, classes=3), num_workers=1, prefetch=1, pin_memory=False)
    with pytest.raises(DataError) as raised:
        list(islice(loader, 3))
    assert str(raised.value).startswith(str(corpus))
    assert "Traceback" not in str(raised.value)


def test_too_little_shared_memory_is_answered_in_words(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = os.statvfs("/dev/shm")
    full = os.statvfs_result((*state[:4], 0, *state[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(DataError, match=r"take \d+ MiB of shared memory, /dev/shm has 0 left"):
        next(iter(BatchLoader(make_stream(corpus), num_workers=1, prefetch=1, pin_memory=False)))
