"""A process finds its rank from what srun and torchrun set."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from pipeline.distributed.world import World
from pipeline.errors import ConfigError

LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in LAUNCHERS or name.startswith(("SLURM_", "OMPI_", "PMI_", "PET_")):
            monkeypatch.delenv(name)


def test_alone() -> None:
    world = World.from_environment()
    assert (world.rank, world.size, world.launcher) == (0, 1, "none")


TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1", "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


def test_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (5, 8, 1, 4)
    assert (world.node, world.num_nodes, world.launcher) == (1, 2, "torchrun")


SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "3",
    "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_NODELIST": "gpu[007-008]", "SLURM_JOB_NAME": "l16",
}  # fmt: skip


def test_under_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (11, 16, 3, 8)
    assert (world.node, world.num_nodes, world.launcher) == (1, 2, "slurm")
    with mock.patch.dict(os.environ):
        world.export()
        assert os.environ["MASTER_ADDR"] == "gpu007"  # every rank finds the same first node
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["GROUP_RANK"]) == ("11", "3", "1")
        assert 1024 < int(os.environ["MASTER_PORT"]) < 65536


RANK_11 = World(rank=11, size=16, local_rank=3, local_size=8, node=1, num_nodes=2, launcher="slurm")


@pytest.mark.parametrize("num_visible", [0, 8])
def test_a_rank_that_sees_all_gpus_of_its_node_takes_its_own(num_visible: int) -> None:
    assert RANK_11.on_devices(num_visible) == RANK_11


def test_a_rank_that_sees_its_own_gpu_alone_finds_it_at_index_zero() -> None:
    world = RANK_11.on_devices(1)
    assert (world.rank, world.size) == (11, 16)  # nothing changes between the ranks
    assert (world.local_rank, world.local_size, world.node, world.num_nodes) == (0, 1, 11, 16)


def test_gpus_for_some_tasks_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"8 tasks on a node, but each sees 4 GPUs; .*--gpus-per-node=8"):
        RANK_11.on_devices(4)
