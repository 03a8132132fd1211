"""Measure `dedup --within` by bands on corpora of made hashes: from the shards' hashes to the images that are left out."""

from __future__ import annotations

import resource
import tempfile
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
NUM_PLANTED = 200  # of a shard's images, the first ones
COLOUR = 90
SIDE = 256  # pixels of each image


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
    """Make hashes of a corpus below a folder, search it, and remove them.

    Every hash is random. Of each shard but the first, a hundredth of the images are copies of images of the shard before, with
    up to `distance` bits altered.

    Raises:
        OSError: the folder cannot be written.
        DataError: as `find_within`.
    """
    num_shards = max(2, round(num_images / SHARD_IMAGES))
    names = tuple(f"{number:06}.tar" for number in range(num_shards))
    with tempfile.TemporaryDirectory(prefix="measure-whole-", dir=work) as made:
        folder, tasks = Path(made), list(enumerate(names))
        for _ in workers.map(partial(_make_shard, folder, distance), tasks, description="make hashes", unit="shard"):
            pass
        start, cores = time.monotonic(), _core_seconds()
        corpus = Catalogue(ImageSet(made, made, names, folder))
        left_out = find_within(
            corpus,
            left_out=np.zeros(0, np.int64),
            distance=distance,
            method="bands",
            memory_bytes=memory_bytes,
            workers=workers,
        ).first
        wall_s, core_s = time.monotonic() - start, _core_seconds() - cores
    planted = (corpus.start[1:-1, None] + np.arange(NUM_PLANTED)).ravel()
    is_local = isinstance(workers, LocalWorkers)
    command_mib, worker_mib = peak_mib(resource.RUSAGE_SELF), peak_mib(resource.RUSAGE_CHILDREN)
    return WholeCost(
        num_images=len(corpus),
        plan=plan_join(len(corpus), distance=distance, memory_bytes=memory_bytes),
        num_workers=workers.count,
        wall_s=wall_s,
        core_s=core_s if is_local else None,
        worker_mib=worker_mib if is_local and worker_mib > command_mib else None,
        command_mib=command_mib,
        num_found=int(np.isin(planted, left_out).sum()),
        num_left_out=len(left_out),
        num_planted=len(planted),
    )


def _core_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mib(who: int) -> float:
    """Return the peak memory of this process, or of the largest of its children."""
    return resource.getrusage(who).ru_maxrss / 1024


def draw_flips(generator: np.random.Generator, count: int, *, num_bits: int, most: int) -> NDArray[np.bool_]:
    """Return which bits of some hashes to alter, (count, num_bits): of each up to `most`, any number as likely as another."""
    order = generator.random((count, num_bits)).argsort(axis=1).argsort(axis=1)
    return order < generator.integers(0, most + 1, (count, 1))


def _views(generator: np.random.Generator, num_views: int) -> NDArray[np.uint8]:
    """Return random hashes of a shard's images, (N, V, 45)."""
    views = np.full((SHARD_IMAGES, num_views, VIEW_BYTES), COLOUR, np.uint8)
    views[:, :, :HASH_BYTES] = generator.integers(0, 256, (SHARD_IMAGES, num_views, HASH_BYTES), dtype=np.uint8)
    return views


def _frames(number: int) -> NDArray[np.uint8]:
    """Return the hashes of a shard's whole images, (N, 2, 45), before copies are planted."""
    return _views(np.random.default_rng([number, 0]), NUM_FRAMES)


def _make_shard(folder: Path, distance: int, task: tuple[int, str]) -> None:
    """Store the hashes of a shard. Its first images are copies of the last ones of the shard before, in the other order."""
    number, name = task
    generator = np.random.default_rng([number, 1])
    frames = _frames(number)
    if number:
        flips = draw_flips(generator, NUM_PLANTED, num_bits=8 * HASH_BYTES, most=distance)
        originals = _frames(number - 1)[: -NUM_PLANTED - 1 : -1, 0, :HASH_BYTES]
        frames[:NUM_PLANTED, 0, :HASH_BYTES] = originals ^ np.packbits(flips, axis=1)
    shard = HashedShard(
        name=name,
        facts="made",
        keys=[f"{number:06}-{row:05}" for row in range(SHARD_IMAGES)],
        byte_ranges=np.zeros((SHARD_IMAGES, 2), np.int64),
        size=np.full((SHARD_IMAGES, 2), SIDE, np.int64),
        hashes=HashTable(
            frames=frames,
            mirrored=_views(generator, NUM_FRAMES),
            crops=_views(generator, NUM_CROPS),
            detail=np.full(SHARD_IMAGES, 10 * MIN_DETAIL, np.float32),
        ),
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
