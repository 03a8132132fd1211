"""Run trainings as ranks forked from this process, which has imported torch, Lightning and DeepSpeed already.

A launch through torchrun spends ten seconds on imports, and a campaign needs a hundred launches. The ranks run the command
itself, `python -m pipeline train`, in a process group of their own over gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

NUM_RANKS = 2


@dataclass
class Launch:
    """Holds the ranks of one launch, and how those that ended did."""

    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)  # by rank; minus the signal of one that was killed

    def poll(self) -> bool:
        """Return whether some rank still runs."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self.pids)

    def signal(self, number: signal.Signals, *, ranks: list[int] | None = None) -> None:
        """Signal the ranks that still run."""
        for rank in ranks if ranks is not None else range(len(self.pids)):
            if rank not in self.codes:
                os.kill(self.pids[rank], number)

    def wait(self, *, timeout_s: float = 120.0, grace_s: float = 20.0) -> bool:
        """Wait until all have ended. Once one has failed the others get `grace_s`, as a launcher gives them.

        Returns:
            Whether they ended by themselves.
        """
        end = time.monotonic() + timeout_s
        failed_at = None
        while self.poll():
            now = time.monotonic()
            if failed_at is None and any(code not in (0, 75) for code in self.codes.values()):
                failed_at = now
            if now > end or (failed_at is not None and now > failed_at + grace_s):
                self.signal(signal.SIGKILL)
                while self.poll():
                    time.sleep(0.01)
                return False
            time.sleep(0.005)
        return True


def start(config: Path, *overrides: str, log: Path) -> Launch:
    """Fork the ranks of a training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(NUM_RANKS):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become_rank(rank, port, log, ["train", str(config), *overrides])
        pids.append(pid)
    return Launch(pids, log)


def _become_rank(rank: int, port: int, log: Path, arguments: list[str]) -> None:
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        numbers = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": NUM_RANKS,
            "LOCAL_WORLD_SIZE": NUM_RANKS,
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
        from pipeline.__main__ import main

        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
