"""Launchers' variables in the environment are read together, used where they agree, and refused in one sentence otherwise."""

from __future__ import annotations

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.launch.environment import LOCAL_LAUNCHER, read_ranks
from pipeline.launch.ranks import ALONE, Ranks

TORCH = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
}
TORCHRUN = {**TORCH, "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1"}
JOB = {
    "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "gpu[007-008]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2",
    "SLURM_NODELIST": "gpu[007-008]", "SLURM_JOB_NAME": "l16",
}  # fmt: skip
SRUN = {
    **JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_TASKS_PER_NODE": "8(x2)",
    "SLURM_LOCALID": "3", "SLURM_NODEID": "1",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def position(ranks: Ranks) -> tuple[int, ...]:
    return ranks.rank, ranks.size, ranks.local_rank, ranks.local_size, ranks.node, ranks.num_nodes


TASK_11 = (11, 16, 3, 8, 1, 2)
RANK_5 = (5, 8, 1, 4, 1, 2)
UNDERSTOOD = {
    "nothing": ({}, ALONE.launcher, (0, 1, 0, 1, 0, 1)),
    "an address alone, as shells export it": ({"MASTER_ADDR": "x", "MASTER_PORT": "1"}, "none", (0, 1, 0, 1, 0, 1)),
    "torchrun": (TORCHRUN, "torchrun", RANK_5),
    "the same variables set by hand": (TORCH, "torchrun", RANK_5),
    "DeepSpeed's launcher": ({**without(TORCH, "LOCAL_WORLD_SIZE"), "LOCAL_SIZE": "4"}, "torchrun", RANK_5),
    "Kubeflow, a rank a pod": (without(TORCH, "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "torchrun", (5, 8, 0, 1, 5, 8)),
    "by hand on one machine": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "torchrun", (1, 2, 1, 2, 0, 1),
    ),
    "an address as it is written in a URL": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "[::1]", "MASTER_PORT": "29500"}, "torchrun", (1, 2, 1, 2, 0, 1),
    ),
    "srun": (SRUN, "slurm", TASK_11),
    "srun, newer variables": (
        {**without(SRUN, "SLURM_NTASKS", "SLURM_TASKS_PER_NODE"), "SLURM_STEP_NUM_TASKS": "16",
         "SLURM_STEP_TASKS_PER_NODE": "8,8"},
        "slurm", TASK_11,
    ),
    "a step that is smaller than its job": (
        {**SRUN, "SLURM_NTASKS": "32", "SLURM_TASKS_PER_NODE": "8(x4)", "SLURM_STEP_NUM_TASKS": "16",
         "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
        "slurm", TASK_11,
    ),
    "srun, with what the job script exported for its tasks": (
        {**SRUN, "WORLD_SIZE": "16", "MASTER_ADDR": "gpu007", "MASTER_PORT": "12345"}, "slurm", TASK_11,
    ),
    "srun with an MPI plugin": ({**SRUN, "PMI_RANK": "11", "PMI_SIZE": "16", "PMIX_RANK": "11"}, "slurm", TASK_11),
    "torchrun inside srun": ({**SRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", **TORCHRUN}, "torchrun", RANK_5),
    "another launcher inside srun, one a node": (
        {**SRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0", **TORCH},
        "torchrun", RANK_5,
    ),
    "a batch script": ({**JOB, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291", "SLURM_NTASKS": "16"}, "none",
                       (0, 1, 0, 1, 0, 1)),
    "a batch script without a step": ({**JOB, "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, "none", (0, 1, 0, 1, 0, 1)),
    "salloc's shell": ({**JOB, "SLURM_NTASKS": "16", "SLURM_TASKS_PER_NODE": "8(x2)"}, "none", (0, 1, 0, 1, 0, 1)),
    "salloc's interactive step": ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, "none", (0, 1, 0, 1, 0, 1)),
    "srun --pty bash": ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, "none", (0, 1, 0, 1, 0, 1)),
    "one task, half of whose variables are missing": ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}, "none",
                                                      (0, 1, 0, 1, 0, 1)),
    "mpirun of one": ({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, "none", (0, 1, 0, 1, 0, 1)),
    "mpirun with an address": ({**MPIRUN, "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}, "mpi", (1, 2, 1, 2, 0, 1)),
    "Intel MPI with an address": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "n1",
         "MASTER_PORT": "29500"},
        "mpi", (1, 2, 1, 2, 0, 1),
    ),
    "torchrun inside mpirun": ({**MPIRUN, **TORCHRUN}, "torchrun", RANK_5),
    "a launch of our own": ({**SRUN, **TORCH, LOCAL_LAUNCHER: str(os.getppid())}, "local", RANK_5),
    "left behind by a launch of our own": ({LOCAL_LAUNCHER: "1"} if os.getppid() != 1 else {}, "none", (0, 1, 0, 1, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_what_agrees_is_used(case: str) -> None:
    environment, launcher, expected = UNDERSTOOD[case]
    ranks = read_ranks(environment)
    assert "[" not in (ranks.master or ("",))[0]  # which no resolver knows
    assert (ranks.launcher, position(ranks)) == (launcher, expected)


REFUSED = {
    "half of torchrun's": (
        {"RANK": "0", "WORLD_SIZE": "1"},
        r"RANK=0 and WORLD_SIZE=1 in the environment, without MASTER_ADDR and MASTER_PORT.*env -u RANK -u WORLD_SIZE python",
    ),
    "a size alone": ({"WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}, r"without RANK"),
    "a local rank alone": (
        {"LOCAL_RANK": "3"},
        r"LOCAL_RANK=3 in the environment, without RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
    ),
    "an empty address": ({**TORCH, "MASTER_ADDR": ""}, r"without MASTER_ADDR"),
    "a rank beyond the world": ({**TORCHRUN, "RANK": "8"}, r"RANK=8 is not below WORLD_SIZE=8"),
    "no number": ({**TORCH, "RANK": "one"}, r"RANK='one' in the environment is not a whole number"),
    "a negative one": ({**TORCH, "RANK": "-1"}, r"RANK='-1' in the environment is not a whole number of 0 or more"),
    "a world of none": ({**TORCH, "RANK": "0", "WORLD_SIZE": "0"}, r"RANK=0 is not below WORLD_SIZE=0"),
    "a local rank out of range": ({**TORCH, "LOCAL_RANK": "4"}, r"LOCAL_RANK=4, LOCAL_WORLD_SIZE=4 .* contradict"),
    "more ranks here than anywhere": ({**TORCH, "LOCAL_WORLD_SIZE": "16"}, r"LOCAL_WORLD_SIZE=16 and WORLD_SIZE=8 contradict"),
    "nodes with different numbers": (
        {**TORCH, "LOCAL_WORLD_SIZE": "3"},
        r"WORLD_SIZE=8 is not a multiple of LOCAL_WORLD_SIZE=3",
    ),
    "a local rank of unknown many": (without(TORCH, "LOCAL_WORLD_SIZE"), r"LOCAL_RANK=1 without LOCAL_WORLD_SIZE"),
    "no port": ({**TORCH, "MASTER_PORT": "0"}, r"MASTER_PORT=0 is not a port"),
    "an address that all machines share": (
        {**TORCH, "MASTER_ADDR": "localhost"},
        r"MASTER_ADDR=localhost is every machine's own address, but the ranks are on 2",
    ),
    "Kubeflow that expects torchrun": (
        {**without(TORCH, "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "PET_NPROC_PER_NODE": "8"},
        r"PET_NPROC_PER_NODE=8 \(Kubeflow\) asks for 8 ranks a pod",
    ),
    "srun without tasks a node": (without(SRUN, "SLURM_TASKS_PER_NODE"), r"SLURM_PROCID=11 .*without SLURM_TASKS_PER_NODE"),
    "srun without tasks": (without(SRUN, "SLURM_NTASKS"), r"without SLURM_NTASKS"),
    "srun without a local id": (without(SRUN, "SLURM_LOCALID"), r"without SLURM_LOCALID"),
    "srun without a node list": (without(SRUN, "SLURM_JOB_NODELIST", "SLURM_NODELIST"), r"without SLURM_JOB_NODELIST"),
    "a task without a step": (without(SRUN, "SLURM_STEP_ID"), r"SLURM_PROCID=11, but SLURM_STEP_ID names no step"),
    "uneven tasks": (
        {**SRUN, "SLURM_NTASKS": "7", "SLURM_PROCID": "3", "SLURM_TASKS_PER_NODE": "2(x3),1"},
        r"2,2,2,1 tasks on the nodes, which must all have as many: ask with --ntasks-per-node",
    ),
    "unreadable tasks": ({**SRUN, "SLURM_TASKS_PER_NODE": "8(x2"}, r"SLURM_TASKS_PER_NODE=8\(x2 cannot be read"),
    "tasks that do not add up": (
        {**SRUN, "SLURM_TASKS_PER_NODE": "8(x4)"},
        r"SLURM_TASKS_PER_NODE names 32 tasks, SLURM_NTASKS 16",
    ),
    "another job's task": ({**SRUN, "SLURM_PROCID": "17"}, r"SLURM_PROCID=17 is not below the 16 tasks"),
    "another node's task": ({**SRUN, "SLURM_LOCALID": "9"}, r"SLURM_LOCALID=9 is not below the 8 tasks of a node"),
    "parts of a heterogeneous job": ({**SRUN, "SLURM_PROCID": "17", "SLURM_HET_SIZE": "2"}, r"heterogeneous .*--het-group=0"),
    "srun, and a rank left behind": (
        {**SRUN, "RANK": "0", "WORLD_SIZE": "1"},
        "RANK=0 and WORLD_SIZE=1 in the environment, but Slurm has started this process as rank 11 of 16.*env -u RANK "
        "-u WORLD_SIZE",
    ),
    "srun, and a whole world left behind": (
        {**SRUN, **TORCH, "RANK": "0", "LOCAL_RANK": "0"},
        r"but Slurm has started this process as rank 11",
    ),
    "srun, and every machine's own address": (
        {**SRUN, "MASTER_ADDR": "127.0.0.1"},
        r"MASTER_ADDR=127.0.0.1 is every machine's own",
    ),
    "mpirun": (
        MPIRUN,
        r"mpirun has started this process as one of 2 \(OMPI_COMM_WORLD_SIZE\), without MASTER_ADDR and MASTER_PORT.*-x "
        "MASTER_ADDR=HOST",
    ),
    "mpirun, and a rank left behind": (
        {**MPIRUN, "MASTER_ADDR": "n1", "MASTER_PORT": "1", "RANK": "0"},
        r"RANK=0 and OMPI_COMM_WORLD_RANK=1 contradict",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_is_named_with_the_way_out(case: str) -> None:
    environment, pattern = REFUSED[case]
    with pytest.raises(ConfigError, match=pattern) as refused:
        read_ranks(environment)
    assert "\n" not in str(refused.value)


def test_ranks_of_a_step_meet_at_one_place_and_steps_at_different_ones() -> None:
    others = {**SRUN, "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODEID": "0"}
    assert read_ranks(SRUN).master == read_ranks(others).master
    assert read_ranks(SRUN).master != read_ranks({**SRUN, "SLURM_STEP_ID": "1"}).master
    assert read_ranks({**SRUN, "SLURM_STEP_NODELIST": "gpu[008]"}).master[0] == "gpu008"  # type: ignore[index]
    assert read_ranks({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4711"}).master == ("10.0.0.7", 4711)
