"""Measure `dedup --within` by bands on corpora of made hashes: from the shards' hashes to the images that are left out."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.catalogue import Catalogue
from data_tools.dedup.hash_store import HashedShard, ImageSet, save_shard
from data_tools.dedup.join import JoinPlan, plan_join
from data_tools.dedup.matching import HashTable
from data_tools.dedup.perceptual_hash import HASH_BYTES, MIN_DETAIL, NUM_CROPS, NUM_FRAMES, VIEW_BYTES
from data_tools.dedup.within import find_within
from data_tools.parallel import LocalWorkers, Workers

SHARD_IMAGES = 20_000
PLANTED_SHARE = 0.01
COLOUR = 90
SIDE = 256  # pixels of each image
TWO_VIEWS = (SHARD_IMAGES, NUM_FRAMES, VIEW_BYTES)


@dataclass(frozen=True)
class WholeCost:
    """Holds what a search cost.

    Attributes:
        core_s: seconds of cores, of the command and of its processes; None on a cluster.
        worker_mib: the peak of the largest process; None on a cluster, or if it is not above this process's own: Linux counts
            what a process had before it became a worker.
        command_mib: the peak of this process.
        num_found: planted copies that are to be left out.
    """

    num_images: int
    plan: JoinPlan
    num_workers: int
    wall_s: float
    core_s: float | None
    worker_mib: float | None
    command_mib: float
    num_found: int
    num_left_out: int
    num_planted: int


def measure_whole(num_images: int, *, distance: int, memory_bytes: int, work: Path, workers: Workers) -> WholeCost:
    """Make hashes of a corpus in a folder, search it, and remove the folder.

    Every hash is random. Of each shard but the first, a hundredth of the images are copies of images of the shard before, with
    up to `distance` bits altered.

    Raises:
        DataError: the folder cannot be written.
    """
    num_shards = max(2, round(num_images / SHARD_IMAGES))
    names = tuple(f"{number:06}.tar" for number in range(num_shards))
    folder = work / f"measure-{num_shards}-{distance}"
    folder.mkdir(parents=True)
    try:
        tasks = list(enumerate(names))
        for _ in workers.map(partial(_make_shard, folder, distance), tasks, description="make hashes", unit="shard"):
            pass
        start, cores = time.monotonic(), _core_seconds()
        corpus = Catalogue(ImageSet(str(folder), str(folder), names, folder))
        left_out = find_within(
            corpus,
            left_out=np.zeros(0, np.int64),
            distance=distance,
            method="bands",
            memory_bytes=memory_bytes,
            workers=workers,
        ).first
        wall_s, core_s = time.monotonic() - start, _core_seconds() - cores
    finally:
        shutil.rmtree(folder)
    planted = np.concatenate([corpus.start[shard] + _planted_rows() for shard in range(1, num_shards)])
    is_local, worker_mib = isinstance(workers, LocalWorkers), _peak_mib(resource.RUSAGE_CHILDREN)
    return WholeCost(
        num_images=len(corpus),
        plan=plan_join(len(corpus), distance=distance, memory_bytes=memory_bytes),
        num_workers=workers.count,
        wall_s=wall_s,
        core_s=core_s if is_local else None,
        worker_mib=worker_mib if is_local and worker_mib > _peak_mib(resource.RUSAGE_SELF) else None,
        command_mib=_peak_mib(resource.RUSAGE_SELF),
        num_found=int(np.isin(planted, left_out).sum()),
        num_left_out=len(left_out),
        num_planted=len(planted),
    )


def _core_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def _planted_rows() -> NDArray[np.int64]:
    """Return the rows of a shard's copies. Their originals are in the same rows of the shard before, counted from its end."""
    return np.arange(int(PLANTED_SHARE * SHARD_IMAGES))


def _frames(number: int) -> NDArray[np.uint8]:
    """Return the hashes of a shard's whole images, (N, 2, 45), before copies are planted."""
    views = np.full(TWO_VIEWS, COLOUR, np.uint8)
    views[:, :, :HASH_BYTES] = np.random.default_rng([number, 0]).integers(0, 256, (*TWO_VIEWS[:2], HASH_BYTES), dtype=np.uint8)
    return views


def _make_shard(folder: Path, distance: int, task: tuple[int, str]) -> None:
    """Store the hashes of a shard."""
    number, name = task
    generator = np.random.default_rng([number, 1])
    frames = _frames(number)
    if number:
        rows = _planted_rows()
        flips = generator.random((len(rows), 8 * HASH_BYTES)).argsort(axis=1).argsort(axis=1)
        altered = flips < generator.integers(0, distance + 1, (len(rows), 1))
        originals = _frames(number - 1)[-1 - rows, 0, :HASH_BYTES]
        frames[rows, 0, :HASH_BYTES] = originals ^ np.packbits(altered, axis=1)
    others = {"mirrored": NUM_FRAMES, "crops": NUM_CROPS}
    views = {part: np.full((SHARD_IMAGES, count, VIEW_BYTES), COLOUR, np.uint8) for part, count in others.items()}
    for array in views.values():
        array[:, :, :HASH_BYTES] = generator.integers(0, 256, (*array.shape[:2], HASH_BYTES), dtype=np.uint8)
    shard = HashedShard(
        name=name,
        facts="made",
        keys=[f"{number:06}-{row:05}" for row in range(SHARD_IMAGES)],
        byte_ranges=np.zeros((SHARD_IMAGES, 2), np.int64),
        size=np.full((SHARD_IMAGES, 2), SIDE, np.int64),
        hashes=HashTable(frames=frames, detail=np.full(SHARD_IMAGES, 10 * MIN_DETAIL, np.float32), **views),
        undecodable=[],
        num_without_image=0,
    )
    save_shard(folder, shard)


def tabulate_whole(costs: Sequence[WholeCost]) -> str:
    """Return a table with one line a search."""
    head = (
        "    images  distance  workers  partitions a band    wall s  cores' s  estimate s  worker MiB  command MiB"
        "  planted found  left out"
    )

    def cell(value: float | None, width: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:>{width},.0f}"

    lines = [
        f"{cost.num_images:>10,}  {cost.plan.distance:>8}  {cost.num_workers:>7}  {cost.plan.num_partitions:>17,}"
        f"  {cell(cost.wall_s, 8)}  {cell(cost.core_s, 8)}  {cell(cost.plan.core_s, 10)}  {cell(cost.worker_mib, 10)}"
        f"  {cell(cost.command_mib, 11)}  {f'{cost.num_found:,}/{cost.num_planted:,}':>13}  {cost.num_left_out:>8,}"
        for cost in costs
    ]
    return "\n".join([head, *lines])
