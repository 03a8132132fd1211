"""End a rank in which no step has ended for too long, after writing down the stack of every thread."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

from pipeline.errors import ExitCode

FIRST_STEP_FACTOR = 2.0  # the first step also compiles, opens files and warms caches up
LOOKS_PER_TIMEOUT = 20


class Watchdog:
    """Ends the process with code 70, from a daemon thread, when `beat` has not been called for `timeout_s`.

    It is a thread, so that it runs while the main thread waits in a collective, for a file or in C. It takes no lock that the
    main thread could hold.

    Args:
        timeout_s: longest time between two beats; twice that before the first.
        rank: this rank, for the report.
        folder: where the report goes, as rank-N.txt; stderr gets it too.
    """

    def __init__(self, *, timeout_s: float, rank: int, folder: Path) -> None:
        self._timeout_s = timeout_s
        self._rank = rank
        self._folder = folder
        self._phase = "starting"
        self._phase_start = time.monotonic()
        self._step = 0
        # Count polls without progress, not seconds: a process suspended with Ctrl-Z has not hung.
        self._silent_looks = 0
        self._longest_silence = int(LOOKS_PER_TIMEOUT * FIRST_STEP_FACTOR)
        self._stopped = threading.Event()

    def start(self, *, step: int) -> None:
        """Begin to watch, at optimizer step `step`."""
        self._step = step
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the watch: what follows may take its time."""
        self._stopped.set()

    def enter(self, phase: str) -> None:
        """Report what the rank begins to do."""
        self._phase, self._phase_start = phase, time.monotonic()

    def beat(self, *, step: int) -> None:
        """Note that a step has ended."""
        self._step, self._silent_looks, self._longest_silence = step, 0, LOOKS_PER_TIMEOUT

    def _watch(self) -> None:
        interval_s = self._timeout_s / LOOKS_PER_TIMEOUT
        while not self._stopped.wait(interval_s):
            self._silent_looks += 1
            if self._silent_looks > self._longest_silence:
                self._report(self._silent_looks * interval_s)
                os._exit(ExitCode.HUNG)  # sys.exit would end this thread alone, and cleaning up would wait for the hang

    def _report(self, silent_s: float) -> None:
        now = time.monotonic()
        head = (
            f"[watchdog] rank {self._rank} on {socket.gethostname()}, process {os.getpid()}, "
            f"{datetime.now().astimezone().isoformat(timespec='seconds')}: no step has ended for {silent_s:.0f} s "
            f"(trainer.hang_timeout_s={self._timeout_s:g}); {now - self._phase_start:.0f} s in this phase: {self._phase}, "
            f"after step {self._step}\n"
        )
        # A log that nobody reads any more, or a full disk, must not keep the rank from ending.
        with contextlib.suppress(OSError, ValueError):
            _dump(sys.stderr.fileno(), head)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"rank-{self._rank}.txt").open("a") as file:
                _dump(file.fileno(), head)


def _dump(descriptor: int, head: str) -> None:
    """Write the report, then the stack of every thread, straight to a file descriptor: Python's own streams have locks."""
    os.write(descriptor, head.encode())
    faulthandler.dump_traceback(descriptor, all_threads=True)
    os.write(descriptor, b"\n")
