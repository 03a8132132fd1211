"""Identify this process, its machine and its container, and tell whether another process still lives. Light imports only.

Host names and process ids repeat between containers, and process ids repeat over time. These together distinguish any two
processes: the kernel's boot id, the pid namespace, the process id, and the process's start time.
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
    """Identifies a process, as it described itself in a file."""

    host: str  # for people
    pid: int
    machine: str | None  # None: the file is an older version's, or damaged
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
        """Return the process that a file's values name; keys that are missing or of another type count as unknown."""

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
        """Return whether both describe one process. A host may change its name."""
        mine, others = ((p.machine, p.pid_namespace, p.pid, p.process_start) for p in (self, other))
        return mine == others

    def life(self) -> Life:
        """Return whether the process lives. A process of another machine or another container is unknown."""
        if self.machine is None or self.pid <= 0 or (self.machine, self.pid_namespace) != (_machine(), _pid_namespace()):
            return "unknown"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "dead"
        except PermissionError:  # another user's process
            if not Path(f"/proc/{self.pid}").exists():  # hidden from us (mount option hidepid)
                return "unknown"
        return "alive" if self.process_start is None or process_start(self.pid) == self.process_start else "dead"


def process_start(pid: int) -> str | None:
    """Return when a process began, in clock ticks since the boot (field 22 of /proc/PID/stat, proc(5)).

    The result is None if it is unknown, or if the process has ended and its parent has not read its exit code yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else fields[18]


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux, and so without containers: the host's name identifies the machine
        return f"host {socket.gethostname()}"


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
