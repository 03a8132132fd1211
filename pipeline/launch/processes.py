"""Which process this is, on which machine and in which container; and whether another one still lives. Imports nothing heavy.

Host names and process ids repeat between containers, and process ids repeat in time. Together these tell any two processes
apart: the kernel's boot id, the pid namespace, the process id, and when the process began.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Process:
    """A process, as it described itself in a file."""

    host: str  # for people
    pid: int
    machine: str | None  # None: an older version's file, or one that was damaged
    pid_namespace: str | None
    process_start: str | None  # None where the system does not say

    @staticmethod
    def myself() -> Process:
        pid = os.getpid()
        return Process(
            host=socket.gethostname(),
            pid=pid,
            machine=_machine(),
            pid_namespace=_pid_namespace(),
            process_start=process_start(pid),
        )

    @staticmethod
    def described_by(values: Mapping[str, Any]) -> Process:
        """The process that a file's values name; keys that are missing or of another type count as unknown."""

        def text(name: str) -> str | None:
            value = values.get(name)
            return value if isinstance(value, str) else None

        pid = values.get("pid")
        return Process(
            host=text("host") or "",
            pid=pid if isinstance(pid, int) else 0,
            machine=text("machine"),
            pid_namespace=text("pid_namespace"),
            process_start=text("process_start"),
        )

    def is_same_as(self, other: Process) -> bool:
        """Whether both describe one process. A host may change its name."""
        mine, others = ((p.machine, p.pid_namespace, p.pid, p.process_start) for p in (self, other))
        return mine == others

    def life(self) -> Life:
        """Whether the process lives. Of another machine's, or another container's, nothing is known."""
        if self.machine is None or self.pid <= 0 or (self.machine, self.pid_namespace) != (_machine(), _pid_namespace()):
            return "unknown"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "dead"
        except PermissionError:  # another user's
            if not Path(f"/proc/{self.pid}").exists():  # hidden from us (mount option hidepid)
                return "unknown"
        return "alive" if self.process_start is None or process_start(self.pid) == self.process_start else "dead"


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since the boot (field 22 of /proc/PID/stat, proc(5)).

    None if it is unknown, or the process has ended and its parent has not asked for its exit code yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else fields[18]


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux, and so without containers: the host's name is its own
        return f"host {socket.gethostname()}"


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
