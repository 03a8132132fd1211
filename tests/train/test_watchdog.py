"""A rank in which no step ends reports where it is and exits, also while its main thread is stuck in C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ExitCode
from tests.conftest import REPOSITORY, environment
from tests.helpers.store import free_port
from tests.helpers.trainings import WriteConfig, folder_of, reached, wait_until

STUCK = """
import socket, sys
from pathlib import Path
from pipeline.train.watchdog import Watchdog
watchdog = Watchdog(timeout_s=float(sys.argv[2]), rank=3, folder=Path(sys.argv[1]))
watchdog.enter("waiting for data")
watchdog.start(step=6)
watchdog.beat(step=7)
print("ready", flush=True)
one, other = socket.socketpair()
def wait_for_ever(): one.recv(1)  # in C, as a collective would be
wait_for_ever()
"""


def start_stuck(folder: Path, *, timeout_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(folder), str(timeout_s)],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_hang_is_written_down_and_ended(tmp_path: Path) -> None:
    process = start_stuck(tmp_path / "hangs", timeout_s=0.5)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.HUNG
    report = (tmp_path / "hangs" / "rank-3.txt").read_text()
    assert report.splitlines()[0] == errors.splitlines()[0]
    assert f"[watchdog] rank 3 on {socket.gethostname()}, process {process.pid}" in report
    assert "in this phase: waiting for data, after step 7" in report
    assert "in wait_for_ever" in report  # the main thread's stack


def test_time_in_which_the_process_was_stopped_is_no_hang(tmp_path: Path) -> None:
    """Ctrl-Z or a debugger suspends it."""
    process = start_stuck(tmp_path / "hangs", timeout_s=2.0)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_rank_that_waits_for_a_halted_one_says_so(write_config: WriteConfig) -> None:
    """There are two real gloo ranks."""
    config = write_config(trainer={"hang_timeout_s": 8, "duration": "1000 steps"}, data={"read_patience_s": 1})
    folder = folder_of(config)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "train", str(config)],
            cwd=REPOSITORY,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
        )
        for rank in range(2)
    ]
    try:
        wait_until(lambda: reached(folder, 5), ranks[0])
        ranks[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        _, errors = ranks[0].communicate(timeout=60)
        waited_s = time.monotonic() - begin
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == ExitCode.HUNG, errors
    assert 8 <= waited_s < 30
    # The rank waits in the gradients' exchange or in the metrics', wherever the other was halted.
    assert re.search(r"in this phase: (in a step|at a step's end)", errors)
    assert "torch/distributed" in (folder.root / "hangs" / "rank-0.txt").read_text()
    assert not (folder.root / "hangs" / "rank-1.txt").exists()
