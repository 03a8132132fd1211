"""Who this process is among all ranks, and how the ranks join. What launchers say is read by `launcher_environment`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import ConfigError
from pipeline.interruption import EXIT_INTERRUPTED
from pipeline.launcher_environment import Launcher, SlurmJob, read_ranks

SHUTDOWN_TIMEOUT_S = 600
PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun's own list lacks the last, a warning that time is short
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class World:
    """Ranks of a job: one process a device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    num_nodes: int
    launcher: Launcher
    master: tuple[str, int] | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def slurm_job_id(self) -> str | None:
        """The job this process belongs to, if any."""
        job = SlurmJob.from_environment()
        return None if job is None else job.id

    @staticmethod
    def from_environment() -> World:
        """Read the launcher's variables; without any this process is a world of one.

        Raises:
            ConfigError: they contradict one another.
        """
        ranks = read_ranks()
        world = World(**{field.name: getattr(ranks, field.name) for field in fields(ranks)})
        return world.on_devices(torch.cuda.device_count()) if world.launcher == "slurm" else world

    @staticmethod
    def alone() -> World:
        """One process that is all ranks."""
        return World(rank=0, size=1, local_rank=0, local_size=1, node=0, num_nodes=1, launcher="none")

    def on_devices(self, num_visible: int) -> World:
        """As seen by a rank that sees `num_visible` GPUs: `local_rank` is the index of its own among them.

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
                f"tasks (--gpus-per-node={self.local_size} --ntasks-per-node={self.local_size}), or one a task (--gpus-per-task=1)"
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


def die_with_parent() -> None:
    """Ask Linux to kill this process when its launcher dies, so that no orphan goes on training."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def launch_local(arguments: Sequence[str], *, num_ranks: int) -> int:
    """Run `python -m pipeline <arguments>` as `num_ranks` ranks on this machine, through torchrun.

    Returns:
        The exit code: that of the first rank that failed, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # Ranks are given time to finish a step and save before torchrun kills them.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S))
    options = [
        "--standalone",
        f"--signals-to-handle={PASSED_ON}",
        f"--nproc-per-node={num_ranks}",
        "--max-restarts=0",
        "-m",
        "pipeline",
        *arguments,
    ]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    try:
        run(get_args_parser().parse_args(options))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:
        return EXIT_INTERRUPTED  # told to stop: torchrun has passed the signal on and waited for the ranks to save
    return 0


def init_process_group(world: World, *, timeout_s: float) -> None:
    """Join all ranks: NCCL where there are GPUs, gloo on CPU.

    Args:
        timeout_s: how long a collective may wait for a rank before the others give up: gloo raises, NCCL's own watchdog
            aborts the process (torch's default since 2.2, TORCH_NCCL_ASYNC_ERROR_HANDLING=3).
    """
    from datetime import timedelta

    import deepspeed

    world.export()
    # On CPU DeepSpeed would compile a shared-memory all-reduce for inference at its first start: half a minute, and a
    # C++ compiler, for something training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s))


def leave_process_group() -> None:
    """Part together: a rank that exits while another still listens to it makes that one abort instead of ending."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def broadcast(value: Any, *, device: torch.device) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def minimum(value: float, *, device: torch.device) -> float:
    """The least of the ranks' values. A collective."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return float(tensor)


def check_devices(num_ranks: int) -> None:
    """Refuse more ranks on this machine than it has GPUs, where it has any.

    Raises:
        ConfigError: naming both numbers.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < num_ranks:
        raise ConfigError(
            f"trainer.devices={num_ranks}, but this machine has {gpus} GPUs; use at most that many, or hide them "
            f"to train on the CPU: CUDA_VISIBLE_DEVICES= python -m pipeline train ..."
        )


def default_num_ranks() -> int:
    """Ranks on one machine where nobody says: its GPUs, or one."""
    return max(1, torch.cuda.device_count())
