"""Examine all machines of a job: each by itself first, then together, then by a tiny training."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, any_rank, device_of, init_process_group, leave_process_group
from pipeline.errors import PipelineError, TrainingError
from pipeline.files import write_whole
from pipeline.preflight.machine import examine_machine
from pipeline.preflight.measure import Machine, Measure
from pipeline.preflight.rates import measure_rates
from pipeline.preflight.storage import own_folder, read_shards, try_folder
from pipeline.preflight.together import measure_clock, measure_link, measure_reductions, see_folder
from pipeline.preflight.trial import try_training


@dataclass(frozen=True)
class Wishes:
    """Says what to examine.

    Attributes:
        folder: where run folders will be.
        data: a corpus to read; None for none.
        trains: whether the tiny training is made.
        join_s: how long the ranks wait for one another.
    """

    folder: Path
    data: str | None
    trains: bool
    join_s: float


def examine(world: World, wishes: Wishes, *, say: Callable[[str], None]) -> list[Machine]:
    """Return what was found on each machine, in the order of their first ranks. All ranks call this.

    Args:
        say: prints what begins now.

    Raises:
        TrainingError: not all ranks join.
    """
    shared = wishes.folder / f".preflight-{_identity(world)}"
    try:
        say("looking at each machine")
        mine = [*_examine_alone(world, wishes, shared=shared)]
        quiet_libraries(is_first=world.is_first)
        say(f"waiting for {world.size} ranks to join, {wishes.join_s:.0f} s at most")
        _join(world, shared, timeout_s=wishes.join_s)
        mine += _examine_together(world, wishes, shared=shared, say=say)
        found: list[Any] = [None] * world.size
        dist.all_gather_object(found, (*_machine_of_this(), world.rank, mine))
        leave_process_group()
        return by_machine(found)
    finally:
        if world.is_first:
            shutil.rmtree(shared, ignore_errors=True)


def _identity(world: World) -> str:
    """Return a name that all ranks of this start know without having joined, and no other start has."""
    if world.size == 1:
        return str(os.getpid())
    job = "-".join(filter(None, (os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID"))))
    host, port = world.master or ("localhost", 0)
    return job or f"{host}-{port}"


def _examine_alone(world: World, wishes: Wishes, *, shared: Path) -> Iterator[Measure]:
    if world.local_rank == 0 or world.local_size == 1:
        yield from examine_machine(ranks_here=world.local_size)
    yield from measure_rates(device_of(world))
    if world.local_rank == 0:
        yield from _examine_folder(wishes.folder, world)
    if wishes.data is not None:
        yield from read_shards(wishes.data, rank=world.rank, world_size=world.size)
    try:
        shared.mkdir(parents=True, exist_ok=True)
        write_whole(_sign_of(shared, world.rank), socket.gethostname())
    except OSError:  # `_examine_folder` has said so
        pass


def _examine_folder(folder: Path, world: World) -> Iterator[Measure]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with own_folder(folder, f".preflight-{socket.gethostname()}-{world.rank}") as own:
            yield from try_folder(own)
    except OSError as error:
        yield Measure(
            "file operations",
            "none",
            advice=f"nothing can be written to {folder} ({error}): choose another with --folder, and as output_dir",
            severity="problem",
        )


def _sign_of(shared: Path, rank: int) -> Path:
    return shared / f"rank-{rank:05d}"


def _join(world: World, shared: Path, *, timeout_s: float) -> None:
    try:
        init_process_group(world, timeout_s=timeout_s)
    except PipelineError:
        raise
    except Exception as error:
        signs = {rank: _sign_of(shared, rank) for rank in range(world.size)}
        silent = [str(rank) for rank, path in signs.items() if not path.exists()]
        who = (
            f"no sign in {shared} of rank {', '.join(silent)}: not started, or another folder there"
            if silent
            else (
                f"all ranks have started, as {shared} says: a firewall, or the wrong network interface (SITE_INTERFACE in "
                "slurm/site.env)"
            )
        )
        raise TrainingError(f"the {world.size} ranks did not join in {timeout_s:.0f} s ({error}); {who}") from error


def _examine_together(world: World, wishes: Wishes, *, shared: Path, say: Callable[[str], None]) -> Iterable[Measure]:
    device, found = device_of(world), []
    if world.size > 1:
        say("measuring the network and the clocks")
        hosts: list[Any] = [None] * world.size
        dist.all_gather_object(hosts, _machine_of_this())
        leaders = [hosts.index(host) for host in dict.fromkeys(hosts)]
        shared_by_all = see_folder(shared)
        found += [shared_by_all] if world.rank in leaders else []
        clock = measure_clock()
        found += [clock] if world.rank in leaders else []
        reductions = [*measure_reductions(device)]
        found += reductions if world.is_first else []
        if len(leaders) > 1:
            link = measure_link(device, leaders=leaders)
            found += [] if link is None else [link]
        if any_rank(shared_by_all.advice is not None, device=device):
            return found
    if wishes.trains:
        say("training a tiny model with ZeRO-2: four steps, twice, one of them with a resume")
        found += try_training(shared, world)
    return found


def _machine_of_this() -> tuple[str, str]:
    """Return this machine's name, and what distinguishes it from another of the same name."""
    try:
        return socket.gethostname(), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname(), ""


def by_machine(found: list[tuple[str, str, int, list[Measure]]]) -> list[Machine]:
    """Return a machine for each name and boot of the ranks; of values that several of its ranks have, the worst."""
    machines = []
    keys = list(dict.fromkeys((name, boot) for name, boot, _, _ in found))
    for name, boot in keys:
        ranks = [(rank, measures) for *key, rank, measures in found if tuple(key) == (name, boot)]
        names = dict.fromkeys(measure.name for _, measures in ranks for measure in measures)
        worst = [_worst([m for _, measures in ranks for m in measures if m.name == each]) for each in names]
        is_shared = sum(other == name for other, _ in keys) > 1
        shown = f"{name} (rank {ranks[0][0]})" if is_shared else name
        machines.append(Machine(shown, tuple(rank for rank, _ in ranks), tuple(worst)))
    return machines


def _worst(measures: list[Measure]) -> Measure:
    advised = [measure for measure in measures if measure.advice is not None] or measures
    numbers = [measure for measure in advised if not isinstance(measure.value, str)]
    if not numbers:
        return advised[0]
    choose = min if numbers[0].rule == "none less" else max
    return choose(numbers, key=lambda measure: measure.value)
