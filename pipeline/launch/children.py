"""Start child processes that do not outlive this one, however it ends. This module imports nothing heavy."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

KILL_TIMEOUT_S = 30.0  # the kernel ends a killed process at once, unless it waits for a disk
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_child(
    command: Sequence[str], *, environment: Mapping[str, str], output: TextIO | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in this one's process group, so that Ctrl-C reaches it. Linux kills it when this process dies.

    Args:
        output: open file that takes all that it prints; this process's own output if None.
    """
    errors = None if output is None else subprocess.STDOUT
    return subprocess.Popen(list(command), env=dict(environment), stdout=output, stderr=errors, preexec_fn=_die_with_parent)


def run_logged(command: Sequence[str], *, environment: Mapping[str, str], output: TextIO) -> int:
    """Run a command to its end, and return its exit code. If this process is asked to stop, so is the command, and waited for.

    Args:
        output: open file that takes all that it prints.
    """
    process = start_child(command, environment={**environment, "PYTHONUNBUFFERED": "1"}, output=output)
    try:
        return process.wait()
    except BaseException:  # a training saves at the end of its step
        process.terminate()
        process.wait()
        raise


def last_line(path: Path) -> str:
    """Return the last line that a command has left in its log, most often its error."""
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it is empty"


@contextmanager
def ended_at_exit(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill a process and its descendants, if they still run, when the block is left."""
    try:
        yield process
    finally:
        kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a process and all its descendants at once, and wait until they have ended."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    for member in (process, *children):
        try:
            member.kill()  # psutil compares the start time too, so a reused process id is left alone
        except psutil.NoSuchProcess:
            pass
    process.wait()
    end = time.monotonic() + KILL_TIMEOUT_S
    while not all(has_ended(child) for child in children) and time.monotonic() < end:
        time.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process is gone, or a zombie that its new parent has not reaped yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def exit_on_signals(*numbers: signal.Signals) -> None:
    """Let these signals unwind the stack, as Ctrl-C does, instead of ending the process at once."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, leave)


def _die_with_parent() -> None:
    """Ask for SIGKILL when the parent dies; called between fork and exec. The request survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
