"""Read the rank of this process from the variables that its launcher has set. This module imports nothing heavy.

Ranks come from srun, from torchrun (and whatever sets the same variables: DeepSpeed's launcher, Kubeflow), from mpirun, or from
`launch.local`, which this program starts by itself. Variables of several launchers may be set at once, by nesting (torchrun
inside srun), by a job script's exports, or because an earlier program left them. They are read together: variables that are
complete and agree are used, anything else is refused in a sentence that names the variables.
"""

from __future__ import annotations

import os

from pipeline.errors import ConfigError
from pipeline.launch.ranks import ALONE, Launcher, Ranks
from pipeline.launch.slurm_step import read_step
from pipeline.launch.variables import (
    LOOPBACK,
    Environment,
    count_or_zero,
    enumerate_names,
    name_values,
    number,
    read_master,
    way_out,
)

LOCAL_LAUNCHER = "PIPELINE_LOCAL_LAUNCHER"  # its own process id, which `launch.local` sets for its ranks
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# rank, size, rank on the node, ranks on the node: Open MPI, MVAPICH, MPICH and Intel MPI
MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


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
            f"were left behind. {way_out([LOCAL_LAUNCHER, *(name for name in RANK_VARIABLES if name in env)])}"
        )
    if "TORCHELASTIC_RUN_ID" in env:  # torchrun, also inside srun or mpirun
        return _read_torch(env, launcher="torchrun")
    step = read_step(env)
    if step is not None and step.size > 1:
        return _check_step_against_others(step, env)
    for names in MPI_VARIABLES:
        if count_or_zero(env.get(names[1])) > 1:
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
            f"{name_values(env, found)} in the environment, without {enumerate_names(missing)}: half a launcher's variables, "
            f"or left behind by another program. {way_out(found)}; or start the ranks with torchrun or srun"
        )
    rank, size = number(env, "RANK"), number(env, "WORLD_SIZE")
    _check_range(env, "RANK", "WORLD_SIZE", found)
    local_rank, local_size = _read_local(env, rank=rank, size=size, found=found)
    _refuse_kubeflow_without_torchrun(env, local_size)
    if size % local_size:
        raise ConfigError(
            f"WORLD_SIZE={size} is not a multiple of LOCAL_WORLD_SIZE={local_size}: every node must have as many ranks; start "
            "all of them with the same --nproc-per-node"
        )
    num_nodes = size // local_size
    node = number(env, "GROUP_RANK") if "GROUP_RANK" in env and num_nodes > 1 else rank // local_size
    return Ranks(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node=node,
        num_nodes=num_nodes,
        launcher=launcher,
        master=read_master(env, num_nodes=num_nodes),
    )


def _read_local(env: Environment, *, rank: int, size: int, found: list[str]) -> tuple[int, int]:
    """Return the local rank. Launchers that start one rank a machine (Kubeflow) do not set it."""
    size_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), None)
    if size_name is None:
        is_here = size == 1 or env["MASTER_ADDR"].startswith(LOOPBACK)
        if "LOCAL_RANK" not in env:
            return (rank, size) if is_here else (0, 1)
        if not is_here and number(env, "LOCAL_RANK") > 0:
            raise ConfigError(
                f"LOCAL_RANK={env['LOCAL_RANK']} without LOCAL_WORLD_SIZE: nothing says how many ranks a machine has; set "
                f"LOCAL_WORLD_SIZE, or start the ranks with torchrun"
            )
        local_size = size if is_here else 1
    else:
        local_size = number(env, size_name)
    local_rank = number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank % max(1, local_size)
    if not 0 <= local_rank < local_size or local_size > size:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, {size_name or 'LOCAL_WORLD_SIZE'}={local_size} and WORLD_SIZE={size} contradict one "
            f"another: the local rank counts from 0 to below the ranks of this machine. {way_out(found)}; or start the ranks "
            "with torchrun or srun"
        )
    return local_rank, local_size


def _check_range(env: Environment, rank: str, size: str, found: list[str]) -> None:
    if number(env, rank) >= number(env, size):
        raise ConfigError(
            f"{rank}={env[rank]} is not below {size}={env[size]}: left behind by another program, or two launchers' variables. "
            f"{way_out(found)}; or start the ranks with torchrun or srun"
        )


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
            f"{what}, without {enumerate_names(missing)}, through which the ranks meet: add `-x MASTER_ADDR=HOST -x "
            "MASTER_PORT=29500` with the host of rank 0, or start the ranks with torchrun or srun instead of mpirun"
        )
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise ConfigError(f"{what}, without {enumerate_names(missing)}: start the ranks with torchrun or srun instead")
    return _read_torch({**env, **{name: env[mpi_name] for name, mpi_name in own.items()}}, launcher="mpi")


# --------------------------------------------------------------------------------------------------------------- Slurm


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
        f"{name_values(env, wrong)} in the environment, but Slurm has started this process as rank {step.rank} of {step.size}: "
        f"left behind by another program, or exported before srun. {way_out([name for name in RANK_VARIABLES if name in env])}"
    )
