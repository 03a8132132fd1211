"""Measure what `dedup --within` costs by bands: time and memory of single partitions of corpora that need not exist.

python -m data_tools.dedup.measure_join 1e6 1e7 1e8 --distance 12 --memory 1 2
python -m data_tools.dedup.measure_join 1e6 1e7 --distance 8 --whole --workers 2 --work /scratch

A partition of a corpus of N images is made of random hashes with values of one outer band; to a tenth of the right ones, left
ones are planted near. It is written, read and joined as in a search. The band is the first whose partition is
estimated to take `--seconds`, or the last. The cost of the whole is the estimate of all bands, times measured over estimated of
this one. Seconds are a core's, without what it waits for.

With `--whole` the hashes of all images are made and searched, by the workers that are given: 1.4 KB an image in `--work`, and
1.6 KB while they are searched.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_tools.arguments import add_workers, open_workers
from data_tools.dedup.bands import RECORD_S, as_words, choose_cut, outer_band
from data_tools.dedup.exchange import SideName, band_values, num_values, write_records
from data_tools.dedup.hash_store import ImageSet
from data_tools.dedup.join import Job, JoinPlan, pairs_of_partition, plan_join
from data_tools.dedup.matching import Codes, MatchKind, join_copies
from data_tools.dedup.measure_whole import COLOUR, WholeCost, draw_flips, measure_whole, peak_mib, tabulate_whole
from data_tools.dedup.partitions import Partition, cut_values
from data_tools.dedup.perceptual_hash import HASH_BYTES, VIEW_BYTES

Result = TypeVar("Result")

PLANTED_SHARE = 0.1
PROBES = 1 << 16  # random hashes, of which those in a partition lend it the band's bits


@dataclass(frozen=True)
class PartitionCost:
    """Holds what a partition cost, and the estimate of the whole join."""

    num_images: int
    plan: JoinPlan
    num_partitions: int  # of the band
    band: int
    num_left: int
    num_right: int
    measured_s: float
    estimated_s: float
    peak_mb: float
    num_found: int
    num_planted: int  # of the pairs that belong to the band

    @property
    def core_hours(self) -> float:
        """Return the estimate of the whole, corrected by the measured partition."""
        return self.plan.core_s * self.measured_s / self.estimated_s / 3600


@dataclass(frozen=True)
class _Sample:
    """Names a partition that is made and joined."""

    job: Job
    band: int
    part: Partition
    num_left: int
    num_right: int


def measure_partition(num_images: int, *, distance: int, memory_bytes: int, seconds: float) -> PartitionCost:
    """Make one partition of a corpus, and join it."""
    plan = plan_join(num_images, distance=distance, memory_bytes=memory_bytes)
    values = num_values(plan.width)
    left, right = (np.full(values, -(-count // values), np.int64) for count in (plan.num_left, plan.num_right))
    partitions = cut_values(left, right, max_bytes=plan.max_bytes)
    sides = {"num_left": plan.num_left, "num_right": plan.num_right}
    costs = [choose_cut(band, distance=distance, width=plan.width, **sides)[1] for band in range(distance + 1)]
    reading_s = RECORD_S / 2 * (plan.num_left + plan.num_right)  # the other half is for writing
    estimates = [(cost.seconds + reading_s) / len(partitions) for cost in costs]
    band = next((number for number, cost in enumerate(estimates) if cost <= seconds), distance)
    part = partitions[0]
    num_left = int(left[part.low : part.high].sum()) // part.num_left_blocks
    num_right = int(right[part.low : part.high].sum()) // part.num_right_blocks
    with tempfile.TemporaryDirectory(prefix="measure-join-") as folder:
        job = Job(ImageSet(folder, folder, (), Path(folder)), (0, num_left + num_right), plan, Path(folder))
        sample = _Sample(job, band, part, num_left, num_right)
        planted = _apart(_write_partition, sample)
        measured_s, peak_mb, keys = _apart(_join_partition, sample)
    return PartitionCost(
        num_images=num_images,
        plan=plan,
        num_partitions=len(partitions),
        band=band,
        num_left=num_left,
        num_right=num_right,
        measured_s=measured_s,
        estimated_s=estimates[band],
        peak_mb=peak_mb,
        num_found=int(np.isin(planted, keys).sum()),
        num_planted=len(planted),
    )


def _apart(function: Callable[[_Sample], Result], sample: _Sample) -> Result:
    """Call a function in a process of its own, whose peak of memory is that of this call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, sample).result()


def _join_partition(sample: _Sample) -> tuple[float, float, NDArray[np.int64]]:
    """Return the seconds of a core and the peak memory, MB, of joining a partition, and the pairs, each as a number."""
    start = time.process_time()
    whole = Partition(sample.part.low, sample.part.high)
    found = join_copies(list(pairs_of_partition(sample.job, sample.band, whole)))
    measured_s = time.process_time() - start
    peak_mb = peak_mib(resource.RUSAGE_SELF)
    return measured_s, peak_mb, found.first * (sample.num_left + sample.num_right) + found.second


def _write_partition(sample: _Sample) -> NDArray[np.int64]:
    """Write random hashes, and return the planted pairs that belong to the band.

    A pair is one number: the left image times the number of images, plus the right image.
    """
    job, band, part, num_left, num_right = (getattr(sample, field.name) for field in fields(sample))
    generator = np.random.default_rng(num_left)
    masks = [outer_band(number, width=job.plan.width) for number in range(band + 1)]
    mask = masks[-1].view(np.uint8)[:HASH_BYTES]
    probes = generator.integers(0, 256, (PROBES, HASH_BYTES), dtype=np.uint8)
    values = band_values(probes, masks[-1], width=job.plan.width)
    patterns = probes[(values >= part.low) & (values < part.high)] & mask
    right, left = (_views(generator, count, patterns, mask) for count in (num_right, num_left))
    rows = generator.permutation(num_left)[: int(PLANTED_SHARE * min(num_left, num_right))]
    sources = generator.permutation(num_right)[: len(rows)]
    outside = np.flatnonzero(np.unpackbits(~mask))
    for low in range(0, len(rows), PROBES):
        piece = slice(low, low + PROBES)
        drawn = draw_flips(generator, len(rows[piece]), num_bits=len(outside), most=job.plan.distance)
        flips = np.zeros((len(drawn), 8 * HASH_BYTES), np.uint8)
        flips[:, outside] = drawn
        left[rows[piece], :HASH_BYTES] = right[sources[piece], :HASH_BYTES] ^ np.packbits(flips, axis=1)
    differing = as_words(left[rows, :HASH_BYTES] ^ right[sources, :HASH_BYTES])
    belongs = np.all([(differing & earlier[:, None]).any(axis=0) for earlier in masks[:-1]], axis=0) | (band == 0)
    sides: dict[SideName, Codes] = {
        "left": Codes(left, np.arange(num_left), np.full(num_left, MatchKind.WHOLE, np.int8)),
        "right": Codes(right, np.arange(num_right) + num_left, np.full(num_right, MatchKind.WHOLE, np.int8)),
    }
    write_records(job.records_path(band, 0), sides, band=masks[-1], width=job.plan.width)
    return (rows * (num_left + num_right) + sources + num_left)[np.broadcast_to(belongs, len(rows))]


def _views(
    generator: np.random.Generator, count: int, patterns: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    views = np.full((count, VIEW_BYTES), COLOUR, np.uint8)
    for low in range(0, count, PROBES):
        bits = generator.integers(0, 256, (min(PROBES, count - low), HASH_BYTES), dtype=np.uint8)
        views[low : low + PROBES, :HASH_BYTES] = bits & ~mask | patterns[generator.integers(len(patterns), size=len(bits))]
    return views


def tabulate_costs(costs: Sequence[PartitionCost]) -> str:
    """Return a table with one line a partition."""
    lines = [
        "    images  distance  partitions a band  band  left hashes  right hashes  join s  estimate s  peak MB  planted found"
        "  whole, core-hours  scratch GB"
    ]
    lines += [
        f"{cost.num_images:>10,}  {cost.plan.distance:>8}  {cost.num_partitions:>17,}  {cost.band:>4}  {cost.num_left:>11,}"
        f"  {cost.num_right:>12,}  {cost.measured_s:>6.1f}  {cost.estimated_s:>10.1f}  {cost.peak_mb:>7,.0f}"
        f"  {cost.num_found:>6,}/{cost.num_planted:<6,}  {cost.core_hours:>17,.2f}  {cost.plan.scratch_bytes / 1e9:>10,.0f}"
        for cost in costs
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.dedup.measure_join",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=lambda text: int(float(text)), nargs="+", help="numbers of images")
    parser.add_argument("--distance", type=int, nargs="+", default=[8, 12, 20], help="default: 8 12 20")
    parser.add_argument("--memory", type=float, nargs="+", default=[2.0], metavar="GIB", help="of a worker (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="that a partition may take by estimate (default: %(default)s)"
    )
    parser.add_argument("--whole", action="store_true", help="make all hashes, and search them")
    parser.add_argument("--work", type=Path, default=Path(), metavar="FOLDER", help="for --whole (default: the current one)")
    add_workers(parser)
    arguments = parser.parse_args(argv)
    cases = itertools.product(arguments.distance, arguments.images, (int(memory * 2**30) for memory in arguments.memory))
    if arguments.whole and not arguments.work.is_dir():
        parser.error(f"--work {arguments.work} is no folder")
    if arguments.whole:
        searches: list[WholeCost] = []
        with open_workers(arguments, folders=[str(arguments.work)]) as workers:
            for distance, size, memory_bytes in cases:
                cost = measure_whole(size, distance=distance, memory_bytes=memory_bytes, work=arguments.work, workers=workers)
                searches.append(cost)
                _print_last(tabulate_whole(searches))
        return 0
    costs: list[PartitionCost] = []
    for distance, size, memory_bytes in cases:
        costs.append(measure_partition(size, distance=distance, memory_bytes=memory_bytes, seconds=arguments.seconds))
        _print_last(tabulate_costs(costs))
    return 0


def _print_last(table: str) -> None:
    """Print the last line of a table, and the head before its first."""
    head, *lines = table.splitlines()
    print(*([head] if len(lines) == 1 else []), lines[-1], sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
