"""Measure what ranks do together: reductions, the links between machines, clocks, and whether they see the same folder."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.files import write_whole
from pipeline.preflight.measure import Measure
from pipeline.preflight.rates import best_time

SMALL_BYTES, LARGE_BYTES = 8, {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
LINK_ROUNDS = 3
CLOCK_ROUNDS = 5
MOST_SKEW_S = 1.0
VISIBLE_S = 30.0  # NFS may keep a folder's listing for so long


def measure_reductions(device: torch.device) -> Iterator[Measure]:
    """Yield latency and bus bandwidth of an all-reduce over all ranks. Each rank has about the same.

    The bus bandwidth of n ranks is 2 (n - 1) / n bytes over the time (nccl-tests, PERFORMANCE.md): what a link carries.
    """
    size = dist.get_world_size()
    small = torch.zeros(SMALL_BYTES // 4, device=device)
    yield Measure("small all-reduce", 1e3 * best_time(lambda: dist.all_reduce(small), device=device, repeats=20), "ms")
    large = torch.zeros(LARGE_BYTES[device.type] // 4, device=device)
    seconds = best_time(lambda: dist.all_reduce(large), device=device)
    ones = torch.full_like(large, dist.get_rank() + 1)
    dist.all_reduce(ones)
    if not bool((ones == size * (size + 1) / 2).all()):
        wrong = "the network or a device adds wrongly: examine the machines in pairs, and take the wrong one out"
        yield Measure("sum over ranks", f"not {size * (size + 1) // 2}", advice=wrong, severity="problem")
    yield Measure("all-reduce", 2 * (size - 1) / size * LARGE_BYTES[device.type] / seconds / 1e9, "GB/s")


def measure_link(device: torch.device, *, leaders: list[int]) -> Measure | None:
    """Return the better of the rates at which a machine's first rank exchanges data with those of its neighbours.

    Pairs take turns, so that one slow machine does not slow the others: a machine of which both links are slow is the
    odd one, and its neighbours each have another link. All ranks call this.

    Args:
        leaders: first rank of each machine.

    Returns:
        None on ranks that are no leader.
    """
    rank, best = dist.get_rank(), 0.0
    data = torch.zeros(LARGE_BYTES[device.type] // 4, device=device)
    pairs = list(zip(leaders, leaders[1:] + leaders[:1], strict=True)) if len(leaders) > 2 else [tuple(leaders)]
    for first, second in pairs:
        dist.barrier()
        if rank not in (first, second):
            continue
        other = second if rank == first else first
        for round_number in range(LINK_ROUNDS + 1):
            begin = time.perf_counter()
            for sender in (first, second):
                (dist.send if rank == sender else dist.recv)(data, other)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number:  # the first makes the connection
                best = max(best, 2 * data.nbytes / (time.perf_counter() - begin) / 1e9)
    dist.barrier()
    return Measure("link to the next machine", best, "GB/s", rule="none less") if rank in leaders else None


def measure_clock() -> Measure:
    """Return how far this machine's clock is ahead of rank 0's, to a few milliseconds."""
    offsets = []
    for _ in range(CLOCK_ROUNDS):
        dist.barrier()
        times: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(times, time.time())
        offsets.append(times[dist.get_rank()] - times[0])
    offset = statistics.median(offsets)
    advice = "its clock is wrong: start chrony or ntpd" if abs(offset) > MOST_SKEW_S else None
    return Measure("clock ahead of rank 0's by", offset, "s", advice=advice)


def see_folder(folder: Path) -> Measure:
    """Return whether this rank sees in a folder what rank 0 has written to it, and how soon. All ranks call this."""
    path = folder / "seen.json"
    token: list[Any] = [uuid.uuid4().hex]
    dist.broadcast_object_list(token)
    if dist.get_rank() == 0:
        write_whole(path, token[0])
    dist.barrier()
    begin = time.monotonic()
    while time.monotonic() - begin < VISIBLE_S:
        try:
            if path.read_text() == token[0]:
                return Measure("sees rank 0's files after", time.monotonic() - begin, "s")
        except OSError:  # not there, or stale
            pass
        time.sleep(0.05)
    return Measure(
        "sees rank 0's files after",
        "never",
        advice=f"{folder.parent} is not the same folder on every machine: put output_dir on a file system that all mount",
        severity="problem",
    )
