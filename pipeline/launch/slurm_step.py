"""Read a rank from the variables that srun sets for its tasks."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.launch.ranks import ALONE, Ranks
from pipeline.launch.slurm_lists import first_node, parse_tasks_per_node
from pipeline.launch.variables import Environment, count_or_zero, first_number, name_values, number, read_master, unset, way_out

# Slurm numbers these steps for the batch script, its extern step and interactive shells. No rank runs there.
BATCH_STEPS = {"4294967291", "4294967292", "4294967290", "batch", "extern", "interactive"}


def is_in_step(env: Environment) -> bool:
    """Return whether srun has started this process, or a process above it."""
    return env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", "")) not in ("", *BATCH_STEPS)


def read_step(env: Environment) -> Ranks | None:
    """Return this process's rank in an srun step; None where it is not a task of one."""
    if not env.get("SLURM_PROCID"):
        return None
    if not is_in_step(env):
        if number(env, "SLURM_PROCID") > 0:
            raise ConfigError(
                f"SLURM_PROCID={env['SLURM_PROCID']}, but SLURM_STEP_ID names no step of srun: left behind by another program, "
                f"or kept from the container. {way_out(['SLURM_PROCID'])}; or start the ranks with srun"
            )
        return None
    size = first_number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
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
    rank, local_rank, node = (number(env, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
    if len(set(counts)) > 1:
        raise ConfigError(
            f"Slurm has put {','.join(map(str, counts))} tasks on the nodes, which must all have as many: ask with "
            "--ntasks-per-node"
        )
    contradictions = [
        text
        for wrong, text in (
            (not rank < size, f"SLURM_PROCID={rank} is not below the {size} tasks of SLURM_NTASKS"),
            (sum(counts) != size, f"SLURM_TASKS_PER_NODE names {sum(counts)} tasks, SLURM_NTASKS {size}"),
            (not local_rank < counts[0], f"SLURM_LOCALID={local_rank} is not below the {counts[0]} tasks of a node"),
            (not node < len(counts), f"SLURM_NODEID={node} is not below the {len(counts)} nodes of SLURM_TASKS_PER_NODE"),
        )
        if wrong
    ]
    if contradictions and count_or_zero(env.get("SLURM_HET_SIZE")) > 1:
        raise ConfigError(
            f"{'; '.join(contradictions)}: the job is heterogeneous (SLURM_HET_SIZE={env['SLURM_HET_SIZE']}); start all ranks "
            "in one of its parts, srun --het-group=0 ..."
        )
    if contradictions:
        raise ConfigError(
            f"{'; '.join(contradictions)}: variables of another step or job, left behind or set by hand. Start the ranks with "
            f"srun, from a shell without them: {unset(_task_variables(env))}"
        )
    return Ranks(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=counts[0],
        node=node,
        num_nodes=len(counts),
        launcher="slurm",
        master=_master(env, num_nodes=len(counts)),
    )


def _half_a_step(env: Environment, missing: str) -> ConfigError:
    names = [name for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS") if name in env]
    return ConfigError(
        f"{name_values(env, names)} in the environment, without {missing}: half of what srun sets, left behind or not handed "
        f"on to the container. {way_out(['SLURM_PROCID'])}; or start the ranks with srun"
    )


def _task_variables(env: Environment) -> list[str]:
    return [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_NTASKS") if name in env]


def _master(env: Environment, *, num_nodes: int) -> tuple[str, int]:
    """Return where rank 0 listens: on the step's first node, at a port that every rank finds and other steps do not use."""
    nodes = next((env[name] for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if env.get(name)), None)
    host = env.get("MASTER_ADDR") or (first_node(nodes) if nodes else None)
    if host is None:
        raise _half_a_step(env, "SLURM_JOB_NODELIST")
    step = env.get("SLURM_STEP_ID", "0")
    default = 15_000 + (number(env, "SLURM_JOB_ID") * 7 + (int(step) if step.isdigit() else 0)) % 10_000
    return read_master({**env, "MASTER_ADDR": host, "MASTER_PORT": env.get("MASTER_PORT") or str(default)}, num_nodes=num_nodes)
