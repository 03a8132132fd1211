"""Start the ranks of one machine, pass signals on to them, and wait for them. This module imports nothing heavy.

torchrun does more (several machines, restarts). But it notices a signal only once its own handlers are installed, gives its
ranks sessions of their own, which a terminal's keys do not reach, and prints a traceback after an ordinary stop. Ranks here
start with the signals blocked (see `launch.signals`), so that no signal is lost while Python starts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ExitCode
from pipeline.launch.cores import threads_of_a_rank
from pipeline.launch.environment import LOCAL_LAUNCHER
from pipeline.launch.signals import StopRequest

POLL_S = 0.1
# If a rank ends early, the others have this time before they are killed. They may be saving, or wait in a collective for the
# lost rank, which not every backend notices.
PATIENCE_S = {0: 600.0, ExitCode.STOPPED: 600.0, ExitCode.ERROR: 60.0}
PATIENCE_AFTER_A_CRASH_S = 30.0


@dataclass
class Rank:
    """Holds one rank's process."""

    number: int
    process: subprocess.Popen[bytes]

    @property
    def code(self) -> int | None:
        """Return the exit code as a shell reports it: 128 and the signal's number for a rank that was killed."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code


def launch_local(command: Sequence[str], *, num_ranks: int, stop: StopRequest) -> int:
    """Run a command as `num_ranks` ranks on this machine.

    Returns:
        The exit code: that of the rank that ended first otherwise than well, or 0.
    """
    reserved = _reserve_port()
    ranks = [
        Rank(number, subprocess.Popen(command, env=_environment(number, num_ranks, reserved))) for number in range(num_ranks)
    ]
    try:
        return _wait(ranks, stop)
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.kill()
        for rank in ranks:
            rank.process.wait()
        reserved.close()


def _wait(ranks: list[Rank], stop: StopRequest) -> int:
    handed_on, first_end, deadline = 0, None, float("inf")
    while any(rank.code is None for rank in ranks):
        time.sleep(POLL_S)
        for name in stop.received[handed_on:]:
            _signal(ranks, signal.Signals[name])
            handed_on += 1
        ended = [rank for rank in ranks if rank.code is not None]
        if first_end is None and ended:
            first_end = next((rank for rank in ended if rank.code), ended[0])
            deadline = time.monotonic() + PATIENCE_S.get(first_end.code or 0, PATIENCE_AFTER_A_CRASH_S)
            if first_end.code:
                _tell_of(first_end)
                _signal(ranks, signal.SIGTERM)
        elif first_end is not None and first_end.code == 0 and any(rank.code for rank in ended):
            first_end = next(rank for rank in ended if rank.code)
            deadline = min(deadline, time.monotonic() + PATIENCE_AFTER_A_CRASH_S)
            _tell_of(first_end)
        if time.monotonic() > deadline:
            late = [str(rank.number) for rank in ranks if rank.code is None]
            print(f"[run] killing rank {', '.join(late)}, which did not follow", file=sys.stderr, flush=True)
            break
    codes = [rank.code for rank in ranks if rank.code is not None]
    return (first_end.code if first_end is not None else None) or next((code for code in codes if code), 0)


def _tell_of(rank: Rank) -> None:
    """Report a rank that was killed: it could not do so itself."""
    code = rank.code or 0
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        hint = ": most likely by the kernel, for lack of memory" if name == "SIGKILL" else ""
        print(f"[run] rank {rank.number} was ended by {name}{hint}", file=sys.stderr, flush=True)


def _signal(ranks: list[Rank], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.code is None:
            rank.process.send_signal(number)


def _reserve_port() -> socket.socket:
    """Return a free port, bound so that no other program gets it. Rank 0 may still listen there (SO_REUSEADDR)."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _environment(number: int, num_ranks: int, reserved: socket.socket) -> dict[str, str]:
    threads = str(threads_of_a_rank(local_size=num_ranks, has_own_cores=False))
    ours = {
        "RANK": number,
        "WORLD_SIZE": num_ranks,
        "LOCAL_RANK": number,
        "LOCAL_WORLD_SIZE": num_ranks,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": reserved.getsockname()[1],
        LOCAL_LAUNCHER: os.getpid(),
    }
    return {"OMP_NUM_THREADS": threads, **os.environ, **{name: str(value) for name, value in ours.items()}}
