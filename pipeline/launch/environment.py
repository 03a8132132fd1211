"""Read what launchers and schedulers put into the environment; no other module does. This module imports nothing heavy.

Ranks come from srun, from torchrun (and whatever sets the same variables: DeepSpeed's launcher, Kubeflow), from mpirun, or from
`launch.local`, which this program starts by itself. Variables of several launchers may be set at once, by nesting (torchrun
inside srun), by a job script's exports, or because an earlier program left them. They are read together: variables that are
complete and agree are used, anything else is refused in a sentence that names the variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError

Launcher = Literal["slurm", "torchrun", "mpi", "local", "none"]
Environment = Mapping[str, str]
LOCAL_LAUNCHER = "PIPELINE_LOCAL_LAUNCHER"  # its own process id, which `launch.local` sets for its ranks

# Slurm numbers these steps for the batch script, its extern step and interactive shells. No rank runs there.
BATCH_STEPS = {"4294967291", "4294967292", "4294967290", "batch", "extern", "interactive"}
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# rank, size, rank on the node, ranks on the node: Open MPI, MVAPICH, MPICH and Intel MPI
MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)  # fmt: skip
LOOPBACK = ("localhost", "127.", "::1", "[::1]")


@dataclass(frozen=True)
class SlurmJob:
    """Describes a Slurm job, as its processes know it."""

    id: str
    restart: int  # number of earlier requeues; 0 where nothing says
    cluster: str | None

    @staticmethod
    def from_environment(environment: Environment | None = None) -> SlurmJob | None:
        """Return the job that this process belongs to, if any."""
        env = os.environ if environment is None else environment
        job = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID")
        if not job:
            return None
        return SlurmJob(job, restart=_count(env.get("SLURM_RESTART_COUNT")), cluster=env.get("SLURM_CLUSTER_NAME"))

    @staticmethod
    def described_by(values: Mapping[str, Any]) -> SlurmJob | None:
        """Return the job that a file's values describe."""
        job, cluster = values.get("slurm_job_id"), values.get("slurm_cluster")
        if not isinstance(job, str) or not job:
            return None
        restart = _count(values.get("slurm_restart"))
        return SlurmJob(job, restart=restart, cluster=cluster if isinstance(cluster, str) else None)

    def to_values(self) -> dict[str, str | None]:
        return {"slurm_job_id": self.id, "slurm_restart": str(self.restart), "slurm_cluster": self.cluster}

    def is_later_start_of(self, other: SlurmJob) -> bool:
        """Return whether Slurm has requeued the job since `other`."""
        # Slurm counts from 1, and says nothing before. Without a count (srun into a running job) this is not a later start.
        return self.is_same_job_as(other) and other.restart < self.restart

    def is_same_job_as(self, other: SlurmJob) -> bool:
        return self.id == other.id and not self.is_of_another_cluster_than(other)

    def is_of_another_cluster_than(self, other: SlurmJob) -> bool:
        return None not in (self.cluster, other.cluster) and self.cluster != other.cluster


@dataclass(frozen=True)
class Ranks:
    """Says which place a launcher has given this process among the ranks."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    num_nodes: int
    launcher: Launcher
    master: tuple[str, int] | None = None  # host and port of rank 0; None where this process may choose them


ALONE = Ranks(rank=0, size=1, local_rank=0, local_size=1, node=0, num_nodes=1, launcher="none", master=None)


def read_ranks(environment: Environment | None = None) -> Ranks:
    """Return what the environment says of this process, or `ALONE` if no launcher has started it.

    Raises:
        ConfigError: variables are missing, are not numbers, or contradict one another.
    """
    env = os.environ if environment is None else environment
    if env.get(LOCAL_LAUNCHER) == str(os.getppid()):
        return _read_torch(env, launcher="local")
    if env.get(LOCAL_LAUNCHER) and "RANK" in env:
        raise ConfigError(
            f"{LOCAL_LAUNCHER}={env[LOCAL_LAUNCHER]} in the environment: the launcher of this rank has ended, or its variables "
            f"were left behind. {_way_out([LOCAL_LAUNCHER, *(name for name in RANK_VARIABLES if name in env)])}"
        )
    if "TORCHELASTIC_RUN_ID" in env:  # torchrun, also inside srun or mpirun
        return _read_torch(env, launcher="torchrun")
    step = _read_step(env)
    if step is not None and step.size > 1:
        return _check_step_against_others(step, env)
    for names in MPI_VARIABLES:
        if _count(env.get(names[1])) > 1:
            return _read_mpi(env, names)
    if any(name in env for name in RANK_VARIABLES):
        return _read_torch(env, launcher="torchrun")
    return ALONE


# ------------------------------------------------------------------------------------------------------------ torchrun


def _read_torch(env: Environment, *, launcher: Launcher) -> Ranks:
    found = [name for name in (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT") if name in env]
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ConfigError(
            f"{_name(env, found)} in the environment, without {_enumerate(missing)}: half a launcher's variables, or left "
            f"behind by another program. {_way_out(found)}; or start the ranks with torchrun or srun"
        )
    rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    _check_range(env, "RANK", "WORLD_SIZE", found)
    local_rank, local_size = _read_local(env, rank=rank, size=size, found=found)
    _refuse_kubeflow_without_torchrun(env, local_size)
    if size % local_size:
        raise ConfigError(
            f"WORLD_SIZE={size} is not a multiple of LOCAL_WORLD_SIZE={local_size}: every node must have as many ranks; start "
            "all of them with the same --nproc-per-node"
        )
    num_nodes = size // local_size
    node = _number(env, "GROUP_RANK") if "GROUP_RANK" in env and num_nodes > 1 else rank // local_size
    return Ranks(
        rank=rank, size=size, local_rank=local_rank, local_size=local_size, node=node, num_nodes=num_nodes,
        launcher=launcher, master=_read_master(env, num_nodes=num_nodes),
    )  # fmt: skip


def _read_local(env: Environment, *, rank: int, size: int, found: list[str]) -> tuple[int, int]:
    """Return the local rank. Launchers that start one rank a machine (Kubeflow) do not set it."""
    size_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), None)
    if size_name is None:
        is_here = size == 1 or env["MASTER_ADDR"].startswith(LOOPBACK)
        if "LOCAL_RANK" not in env:
            return (rank, size) if is_here else (0, 1)
        if not is_here and _number(env, "LOCAL_RANK") > 0:
            raise ConfigError(
                f"LOCAL_RANK={env['LOCAL_RANK']} without LOCAL_WORLD_SIZE: nothing says how many ranks a machine has; set "
                f"LOCAL_WORLD_SIZE, or start the ranks with torchrun"
            )
        local_size = size if is_here else 1
    else:
        local_size = _number(env, size_name)
    local_rank = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank % max(1, local_size)
    if not 0 <= local_rank < local_size or local_size > size:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, {size_name or 'LOCAL_WORLD_SIZE'}={local_size} and WORLD_SIZE={size} contradict one "
            f"another: the local rank counts from 0 to below the ranks of this machine. {_way_out(found)}; or start the ranks "
            "with torchrun or srun"
        )
    return local_rank, local_size


def _read_master(env: Environment, *, num_nodes: int) -> tuple[str, int]:
    host, port = env["MASTER_ADDR"].strip("[]"), _number(env, "MASTER_PORT")  # an IPv6 address as it is written in a URL
    if not 0 < port < 65536:
        raise ConfigError(f"MASTER_PORT={port} is not a port: set one from 1024 to 65535, the same for all ranks")
    if num_nodes > 1 and host.startswith(LOOPBACK):
        raise ConfigError(
            f"MASTER_ADDR={host} is every machine's own address, but the ranks are on {num_nodes} machines: set it to the name "
            "of the machine of rank 0"
        )
    return host, port


def _refuse_kubeflow_without_torchrun(env: Environment, local_size: int) -> None:
    wanted = env.get("PET_NPROC_PER_NODE", "")
    if wanted.isdigit() and int(wanted) > 1 and local_size == 1:
        raise ConfigError(
            f"PET_NPROC_PER_NODE={wanted} (Kubeflow) asks for {wanted} ranks a pod, but this is the only one here: start the "
            "pod with `torchrun -m pipeline train ...`, which reads it"
        )


# ----------------------------------------------------------------------------------------------------------------- MPI


def _read_mpi(env: Environment, names: tuple[str, str, str, str]) -> Ranks:
    rank_name, size_name, local_rank_name, local_size_name = names
    own = {"RANK": rank_name, "WORLD_SIZE": size_name, "LOCAL_RANK": local_rank_name, "LOCAL_WORLD_SIZE": local_size_name}
    what = f"mpirun has started this process as one of {env[size_name]} ({size_name})"
    for name, mpi_name in own.items():
        if env.get(name) and env.get(mpi_name) and env[name] != env[mpi_name]:
            raise ConfigError(
                f"{what}, but {name}={env[name]} and {mpi_name}={env[mpi_name]} contradict each other: unset {name}, or start "
                "the ranks with torchrun or srun"
            )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ConfigError(
            f"{what}, without {_enumerate(missing)}, through which the ranks meet: add `-x MASTER_ADDR=HOST -x "
            "MASTER_PORT=29500` with the host of rank 0, or start the ranks with torchrun or srun instead of mpirun"
        )
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise ConfigError(f"{what}, without {_enumerate(missing)}: start the ranks with torchrun or srun instead")
    return _read_torch({**env, **{name: env[mpi_name] for name, mpi_name in own.items()}}, launcher="mpi")


# --------------------------------------------------------------------------------------------------------------- Slurm


def is_in_step(env: Environment) -> bool:
    """Return whether srun has started this process, or a process above it."""
    return env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", "")) not in ("", *BATCH_STEPS)


def _read_step(env: Environment) -> Ranks | None:
    """Return this process's rank in an srun step; None where it is not a task of one."""
    if not env.get("SLURM_PROCID"):
        return None
    if not is_in_step(env):
        if _number(env, "SLURM_PROCID") > 0:
            raise ConfigError(
                f"SLURM_PROCID={env['SLURM_PROCID']}, but SLURM_STEP_ID names no step of srun: left behind by another program, "
                f"or kept from the container. {_way_out(['SLURM_PROCID'])}; or start the ranks with srun"
            )
        return None
    size = _first_number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    if size == 1:
        return ALONE
    if size is None:
        raise _half_a_step(env, "SLURM_NTASKS")
    for name in ("SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID"):
        if not env.get(name):
            raise _half_a_step(env, name)
    listing = next((env[name] for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if env.get(name)), None)
    if listing is None:
        raise _half_a_step(env, "SLURM_TASKS_PER_NODE")
    counts = parse_tasks_per_node(listing)
    return _check_step(env, size=size, counts=counts)


def _check_step(env: Environment, *, size: int, counts: list[int]) -> Ranks:
    rank, local_rank, node = (_number(env, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
    if len(set(counts)) > 1:
        raise ConfigError(
            f"Slurm has put {','.join(map(str, counts))} tasks on the nodes, which must all have as many: ask with "
            "--ntasks-per-node"
        )
    contradictions = [
        text for wrong, text in (
            (not rank < size, f"SLURM_PROCID={rank} is not below the {size} tasks of SLURM_NTASKS"),
            (sum(counts) != size, f"SLURM_TASKS_PER_NODE names {sum(counts)} tasks, SLURM_NTASKS {size}"),
            (not local_rank < counts[0], f"SLURM_LOCALID={local_rank} is not below the {counts[0]} tasks of a node"),
            (not node < len(counts), f"SLURM_NODEID={node} is not below the {len(counts)} nodes of SLURM_TASKS_PER_NODE"),
        ) if wrong
    ]  # fmt: skip
    if contradictions and _count(env.get("SLURM_HET_SIZE")) > 1:
        raise ConfigError(
            f"{'; '.join(contradictions)}: the job is heterogeneous (SLURM_HET_SIZE={env['SLURM_HET_SIZE']}); start all ranks "
            "in one of its parts, srun --het-group=0 ..."
        )
    if contradictions:
        raise ConfigError(
            f"{'; '.join(contradictions)}: variables of another step or job, left behind or set by hand. Start the ranks with "
            f"srun, from a shell without them: {_unset(_slurm_task_variables(env))}"
        )
    return Ranks(
        rank=rank, size=size, local_rank=local_rank, local_size=counts[0], node=node, num_nodes=len(counts),
        launcher="slurm", master=_slurm_master(env, num_nodes=len(counts)),
    )  # fmt: skip


def _check_step_against_others(step: Ranks, env: Environment) -> Ranks:
    """Check a job script's MASTER_ADDR and WORLD_SIZE for srun's tasks: they must agree with Slurm."""
    expected = {"RANK": step.rank, "WORLD_SIZE": step.size, "LOCAL_RANK": step.local_rank, "LOCAL_WORLD_SIZE": step.local_size}
    wrong = [name for name, value in expected.items() if env.get(name, str(value)) != str(value)]
    if not wrong:
        return step
    if all(env.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):  # a launcher other than torchrun inside srun
        inner = _read_torch(env, launcher="torchrun")
        if inner.size == step.size * inner.local_size and inner.node == step.rank:
            return inner
    raise ConfigError(
        f"{_name(env, wrong)} in the environment, but Slurm has started this process as rank {step.rank} of {step.size}: left "
        f"behind by another program, or exported before srun. {_way_out([name for name in RANK_VARIABLES if name in env])}"
    )


def _half_a_step(env: Environment, missing: str) -> ConfigError:
    names = [name for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS") if name in env]
    return ConfigError(
        f"{_name(env, names)} in the environment, without {missing}: half of what srun sets, left behind or not handed on to "
        f"the container. {_way_out(['SLURM_PROCID'])}; or start the ranks with srun"
    )


def _slurm_task_variables(env: Environment) -> list[str]:
    return [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_NTASKS") if name in env]


def _slurm_master(env: Environment, *, num_nodes: int) -> tuple[str, int]:
    """Return where rank 0 listens: on the step's first node, at a port that every rank finds and other steps do not use."""
    nodes = next((env[name] for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if env.get(name)), None)
    host = env.get("MASTER_ADDR") or (first_node(nodes) if nodes else None)
    if host is None:
        raise _half_a_step(env, "SLURM_JOB_NODELIST")
    step = env.get("SLURM_STEP_ID", "0")
    default = 15_000 + (_number(env, "SLURM_JOB_ID") * 7 + (int(step) if step.isdigit() else 0)) % 10_000
    return _read_master(
        {**env, "MASTER_ADDR": host, "MASTER_PORT": env.get("MASTER_PORT") or str(default)}, num_nodes=num_nodes
    )


def parse_tasks_per_node(listing: str) -> list[int]:
    """Parse Slurm's tasks of each node: `8`, `2(x3)` or `2(x3),1`.

    Raises:
        ConfigError: not of that form.
    """
    counts: list[int] = []
    for part in listing.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None or int(found.group(1)) < 1:
            raise ConfigError(f"SLURM_TASKS_PER_NODE={listing} cannot be read; Slurm writes it as 8, 2(x3) or 2(x3),1")
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts


def first_node(listing: str) -> str:
    """Return the first name of a list of nodes, as `n[1-3,7]`, `gpu007,gpu009` or `rack[0-1]n[03-04]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", listing.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group(0)) if first else listing


def expand_nodes(listing: str) -> list[str]:
    """Return the names of a list of nodes."""
    names: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listing):
        found = [""]
        for piece in re.split(r"(\[[^\]]*\])", name.strip()):
            choices = _expand_ranges(piece[1:-1]) if piece.startswith("[") else [piece]
            found = [before + choice for before in found for choice in choices]
        names += found
    return names


def _expand_ranges(ranges: str) -> list[str]:
    choices: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        is_range = first.isdigit() and last.isdigit()
        choices += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] if is_range else [part]
    return choices


# ------------------------------------------------------------------------------------------------------------- helpers


def _count(text: object) -> int:
    """Return a number that may be missing or invalid; then it is 0."""
    return int(text) if isinstance(text, str) and text.strip().isdigit() else 0


def _number(env: Environment, name: str) -> int:
    text = env[name].strip()
    if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < 0:
        raise ConfigError(f"{name}={env[name]!r} in the environment is not a whole number of 0 or more; {_way_out([name])}")
    return int(text)


def _first_number(env: Environment, *names: str) -> int | None:
    return next((_number(env, name) for name in names if env.get(name)), None)


def _check_range(env: Environment, rank: str, size: str, found: list[str]) -> None:
    if _number(env, rank) >= _number(env, size):
        raise ConfigError(
            f"{rank}={env[rank]} is not below {size}={env[size]}: left behind by another program, or two launchers' variables. "
            f"{_way_out(found)}; or start the ranks with torchrun or srun"
        )


def _name(env: Environment, names: list[str]) -> str:
    return _enumerate([f"{name}={env[name]}" for name in names])


def _enumerate(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _unset(names: list[str]) -> str:
    return f"env {' '.join(f'-u {name}' for name in names)} python -m pipeline train ..."


def _way_out(names: list[str]) -> str:
    return f"To start without: {_unset(names)}"
