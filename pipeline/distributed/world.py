"""Say who this process is among all ranks, and join the ranks. `launch.environment` reads what launchers say."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed.network import VARIABLES, check_interfaces, check_master, choose_interface_here
from pipeline.errors import ConfigError
from pipeline.launch.environment import read_ranks
from pipeline.launch.ranks import ALONE, Ranks
from pipeline.launch.slurm_job import SlurmJob

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class World(Ranks):
    """Describes the ranks of a job: one process a device."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def slurm_job_id(self) -> str | None:
        """Return the job that this process belongs to, if any."""
        job = SlurmJob.from_environment()
        return None if job is None else job.id

    @staticmethod
    def from_environment() -> World:
        """Read the launcher's variables; without any this process is a world of one.

        Raises:
            ConfigError: they contradict one another.
        """
        ranks = read_ranks()
        world = World(**vars(ranks))
        return world.on_devices(torch.cuda.device_count()) if world.launcher == "slurm" else world

    @staticmethod
    def alone() -> World:
        """Return the world of one process that is all ranks."""
        return World(**vars(ALONE))

    def on_devices(self, num_visible: int) -> World:
        """Return this world as a rank sees it that sees `num_visible` GPUs: `local_rank` is the index of its own among them.

        Where each task sees its own GPU alone (`--gpus-per-task`, `--gpu-bind`), a task is a node of its own to
        Lightning and DeepSpeed, which both take the local rank for the device's index.

        Raises:
            ConfigError: fewer GPUs than tasks, but more than one.
        """
        if num_visible == 1:
            return replace(self, local_rank=0, local_size=1, node=self.rank, num_nodes=self.size)
        if 0 < num_visible < self.local_size:
            raise ConfigError(
                f"{self.local_size} tasks on a node, but each sees {num_visible} GPUs; ask Slurm for as many GPUs a node as "
                f"tasks (--gpus-per-node={self.local_size} --ntasks-per-node={self.local_size}), or one a task "
                "(--gpus-per-task=1)"
            )
        return self

    def export(self) -> None:
        """Set the variables that torch.distributed, DeepSpeed and Lightning read, whatever launched us."""
        host, port = self.master or ("127.0.0.1", _free_port())
        values = {
            "RANK": self.rank,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size,
            "GROUP_RANK": self.node,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in values.items()})


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have Linux signal this process when its launcher dies, so that no orphan keeps training."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def device_of(world: World) -> torch.device:
    """Return this rank's device."""
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def init_process_group(world: World, *, timeout_s: float) -> None:
    """Join all ranks: NCCL where there are GPUs, gloo on CPU.

    Args:
        timeout_s: how long a collective may wait for a rank before the others give up: gloo raises, NCCL's own watchdog
            aborts the process (torch's default since 2.2, TORCH_NCCL_ASYNC_ERROR_HANDLING=3).

    Raises:
        ConfigError: the environment names a machine that is not known, or a network interface that is not here.
    """
    from datetime import timedelta

    import deepspeed

    if world.master is not None:
        check_master(*world.master)
    world.export()
    # On CPU DeepSpeed would compile a shared-memory all-reduce for inference at its first start. That takes half a minute and a
    # C++ compiler, for something that training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    check_interfaces(backend)
    if (
        backend == "gloo"
        and world.num_nodes > 1
        and world.master is not None
        and (name := choose_interface_here(*world.master))
    ):
        os.environ[VARIABLES["gloo"]] = name
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s))


def leave_process_group() -> None:
    """Leave the process group together. A rank that exits early makes the others abort."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def any_rank(fact: bool, *, device: torch.device) -> bool:
    """Return whether it holds on some rank. This is a collective."""
    flag = torch.tensor([fact], dtype=torch.int32, device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def broadcast(value: Any, *, device: torch.device) -> Any:
    """Return rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def minimum(value: float, *, device: torch.device) -> float:
    """Return the least of the ranks' values. This is a collective."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return float(tensor)
