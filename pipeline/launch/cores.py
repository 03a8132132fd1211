"""Count the processor cores that this process may use: a container or a job often gets fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Return the cores allowed by affinity (taskset, Slurm, docker --cpuset-cpus) and by cgroups' quotas (docker --cpus).

    With more threads they wait for one another while the kernel holds them up: an OpenMP program with as many threads as the
    machine has cores runs at a tenth of the speed, or slower.

    Args:
        root: where proc and sys are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def threads_of_a_rank(*, local_size: int, has_own_cores: bool) -> int:
    """Return a rank's share of the cores.

    Args:
        has_own_cores: the launcher (srun, mpirun) may give each rank cores of its own instead of all of them.
    """
    if has_own_cores:
        return max(1, min(usable_cores(), (os.cpu_count() or 1) // local_size))
    return max(1, usable_cores() // local_size)


def _quotas(root: Path) -> list[float]:
    """Yield the quotas of this process's cgroups and of those above them, in cores; cgroup v2 and v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found: list[float | None] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = PurePosixPath(path.lstrip("/"))
        folders = [inside, *inside.parents]  # a container sees its own cgroup at the top
        if controllers == "":
            found += [_read_v2(root / "sys/fs/cgroup" / folder / "cpu.max") for folder in folders]
        elif "cpu" in controllers.split(","):
            found += [
                _read_v1(root / "sys/fs/cgroup" / mount / folder) for mount in ("cpu", "cpu,cpuacct") for folder in folders
            ]
    return [quota for quota in found if quota is not None]


def _read_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max": no quota
        return None


def _read_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None  # -1: no quota
    except (OSError, ValueError, ZeroDivisionError):
        return None
