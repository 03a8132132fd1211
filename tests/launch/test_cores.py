"""Cores are counted by affinity and by the quotas of cgroups, in the forms in which containers and schedulers set them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch.cores import threads_of_a_rank, usable_cores
from tests.conftest import REPOSITORY

ALL = len(os.sched_getaffinity(0))
V1 = "4:cpu,cpuacct:/kubepods/pod7\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, ALL),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),  # a container
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # half a core
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, ALL),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, ALL),  # more than the affinity
        ({"proc/self/cgroup": "0::/slurm/job_7/step_0\n", "sys/fs/cgroup/slurm/job_7/cpu.max": "100000 100000\n",
          "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000\n"}, 1),  # of the job, above the step
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/kubepods/pod7/cpu.cfs_quota_us": "100000",
          "sys/fs/cgroup/cpu,cpuacct/kubepods/pod7/cpu.cfs_period_us": "100000"}, 1),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
         ALL),
        ({"proc/self/cgroup": "nonsense\n:::\n0::/\n", "sys/fs/cgroup/cpu.max": "1 0\n"}, ALL),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, ALL),
    ],
)  # fmt: skip
def test_a_quota_counts_whoever_set_it(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_affinity_counts() -> None:
    first = min(os.sched_getaffinity(0))
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os; os.sched_setaffinity(0, [{first}])\nfrom pipeline.launch.cores import usable_cores; "
            "print(usable_cores())",
        ],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
    )
    assert told.stdout == "1\n"


def test_ranks_share_what_is_there_and_one_on_cores_of_its_own_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    assert threads_of_a_rank(local_size=4, has_own_cores=False) == 3  # taskset, or a container, around all of them
    assert threads_of_a_rank(local_size=8, has_own_cores=True) == 12  # srun has given each task its own
    assert threads_of_a_rank(local_size=48, has_own_cores=True) == 2
    assert threads_of_a_rank(local_size=99, has_own_cores=False) == 1
