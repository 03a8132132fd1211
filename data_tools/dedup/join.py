"""Find all pairs of a corpus's images by joining their hashes band by band, in tasks of bounded memory: see `bands`.

For each outer band, tasks scatter the hashes of all shards by their values of the band, and tasks join each partition of these
values. Last, tasks merge the pairs of each range of images, which were found through several hashes. What a task makes is a
file, so a killed search resumes. Pairs are the same bytes whatever the partitions and the number of workers.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.band_join import Side, join_band
from data_tools.dedup.bands import as_words, choose_cut, choose_width, estimate_join, outer_band
from data_tools.dedup.exchange import (
    MAX_VALUE_BITS,
    RECORD,
    ROWS_AT_ONCE,
    SIDES,
    LoadedRecords,
    Records,
    SideName,
    count_pairs,
    count_values,
    read_pairs,
    read_records,
    write_pairs,
    write_records,
)
from data_tools.dedup.hash_store import ImageSet, load_shard
from data_tools.dedup.matching import (
    Codes,
    Copies,
    Ints,
    have_like_colours,
    join_codes,
    join_copies,
    upright_codes,
    whole_codes,
)
from data_tools.dedup.partitions import (
    FIXED_BYTES,
    LEFT_BYTES,
    RIGHT_BYTES,
    Partition,
    cut_leaves,
    cut_values,
    partition_bytes,
)
from data_tools.dedup.perceptual_hash import HASH_BYTES, NUM_CROPS, NUM_FRAMES
from data_tools.parallel import Workers, remember
from pipeline.errors import DataError
from pipeline.json_text import parse_json

MAX_LEFT = NUM_FRAMES + NUM_CROPS  # hashes of an image on the left side
MAX_RIGHT = 2 * NUM_FRAMES  # on the right side, where mirror images are
LEAF_RIGHT = 1 << 18  # right hashes whose index by a key fits into a core's cache
MIN_GROUP_IMAGES, MAX_GROUP_IMAGES = 1 << 14, 1 << 16  # of shards that are scattered together, unless it is one: half a GiB
PAIRS_AT_ONCE = 1 << 20
PAIR_BYTES = 120  # of memory, a pair while repeats are removed
LEADS_NAME = "leads.npy"


@dataclass(frozen=True)
class JoinPlan:
    """Says what a join will take.

    Attributes:
        width: bits of an outer band.
        max_bytes: of memory, that a partition's hashes may take.
        num_left: hashes of the left side, at most.
        num_right: hashes of the right side, at most.
        core_s: estimated seconds of one core.
    """

    distance: int
    width: int
    max_bytes: int
    num_left: int
    num_right: int
    core_s: float

    @property
    def num_partitions(self) -> int:
        """Return the number of partitions of each outer band, about."""
        return max(1, math.ceil((LEFT_BYTES * self.num_left + RIGHT_BYTES * self.num_right) / self.max_bytes))

    @property
    def worker_bytes(self) -> int:
        """Return how much memory a worker needs."""
        return FIXED_BYTES + min(self.max_bytes, LEFT_BYTES * self.num_left + RIGHT_BYTES * self.num_right)

    @property
    def scratch_bytes(self) -> int:
        """Return how much disk the exchange takes at a time, without the pairs."""
        return RECORD.itemsize * (self.num_left + self.num_right)

    def describe(self) -> str:
        """Return the plan in words."""
        return (
            f"{self.distance + 1} passes of about {self.num_partitions:,} partitions; a worker needs "
            f"{self.worker_bytes / 2**30:.1f} GiB of memory, scratch {self.scratch_bytes / 1e9:,.1f} GB of disk"
        )


def plan_join(num_images: int, *, distance: int, memory_bytes: int) -> JoinPlan:
    """Plan to join images with each other, for workers with so much memory each."""
    num_left, num_right = MAX_LEFT * num_images, MAX_RIGHT * num_images
    width = choose_width(num_left, num_right, distance=distance)
    return JoinPlan(
        distance=distance,
        width=width,
        max_bytes=partition_bytes(memory_bytes=memory_bytes, num_left=num_left, num_right=num_right),
        num_left=num_left,
        num_right=num_right,
        core_s=estimate_join(num_left, num_right, distance=distance, width=width).seconds,
    )


@dataclass(frozen=True)
class _Group:
    """Names shards that are scattered together."""

    number: int
    shards: tuple[str, ...]
    start: tuple[int, ...]  # (shards + 1,): the number of each shard's first image


@dataclass(frozen=True)
class Job:
    """Holds what all tasks of a join know. It is sent with each of them."""

    images: ImageSet  # without its shards
    edges: tuple[int, ...]  # (groups + 1,): the number of each group's first image
    plan: JoinPlan
    scratch: Path

    def records_path(self, band: int, group: int) -> Path:
        """Return where a group's hashes are, ordered by a band."""
        return self.scratch / f"band-{band:02}-{group:06}.safetensors"

    def all_records(self, band: int) -> list[Path]:
        """Return where all hashes are, ordered by a band."""
        return [self.records_path(band, group) for group in range(len(self.edges) - 1)]

    def done_path(self, band: int) -> Path:
        """Return the note that names the files of a band's pairs."""
        return self.scratch / f"band-{band:02}.json"

    def merged_path(self, group: int) -> Path:
        """Return where the pairs are whose first image is in a group."""
        return self.scratch / f"merged-{group:06}.safetensors"


def join_images(
    images: ImageSet, start: Ints, *, leads: NDArray[np.bool_], plan: JoinPlan, scratch: Path, workers: Workers
) -> Copies:
    """Return all pairs of images that are near-copies, each (query, entry) once with the least distance; see `matching`.

    Args:
        start: the number of each shard's first image, and the number of images.
        leads: the images that are compared.
        scratch: a folder for this very join, which another call continues. It is removed at the end.

    Raises:
        DataError: too many images, or files that cannot be written.
    """
    if len(leads) > np.iinfo(np.uint32).max:
        raise DataError(f"{len(leads):,} images are more than this search can number; search parts of the corpus")
    groups = _group_shards(
        images.shards, start.tolist(), max_images=max(MIN_GROUP_IMAGES, min(len(leads) // 256, MAX_GROUP_IMAGES))
    )
    edges = (*(group.start[0] for group in groups), int(start[-1]))
    job = Job(replace(images, shards=()), edges, plan, scratch)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        np.save(scratch / LEADS_NAME, leads)
        for band in range(plan.distance + 1):
            _join_one_band(job, band, groups, workers)
        merged = _merge(job, workers)
        shutil.rmtree(scratch)
    except OSError as error:
        raise DataError(f"{scratch} cannot be written ({error}); name another folder with --work") from error
    return merged


def _group_shards(shards: Sequence[str], start: Sequence[int], *, max_images: int) -> list[_Group]:
    """Return groups of neighbouring shards, each of one shard or of few enough images."""
    edges = [0]
    for shard in range(1, len(shards)):
        if start[shard + 1] - start[edges[-1]] > max_images:
            edges.append(shard)
    ranges = itertools.pairwise([*edges, len(shards)])
    return [_Group(number, tuple(shards[a:b]), tuple(start[a : b + 1])) for number, (a, b) in enumerate(ranges)]


def _join_one_band(job: Job, band: int, groups: Sequence[_Group], workers: Workers) -> None:
    """Find the pairs that belong to an outer band, unless that has been done."""

    def join() -> dict[str, list[str]]:
        name = f"band {band + 1} of {job.plan.distance + 1}"
        for _ in workers.map(partial(_scatter, job, band), groups, description=f"scatter {name}", unit="group"):
            pass
        counts = [count_values(path) for path in job.all_records(band)]
        left, right = (np.sum([count[side] for count in counts], axis=0) for side in SIDES)
        tasks = list(enumerate(cut_values(left, right, max_bytes=job.plan.max_bytes)))
        found = workers.map(partial(_join_partition, job, band), tasks, description=f"join {name}", unit="partition")
        return {"pairs": sorted(path for _, names in found for path in names)}

    remember(join, path=job.done_path(band), facts=[band])
    for path in job.all_records(band):
        path.unlink(missing_ok=True)


def _scatter(job: Job, band: int, group: _Group) -> None:
    """Write the hashes of a group's images, ordered by their values of a band, unless that has been done."""
    path = job.records_path(band, group.number)
    if path.exists():
        return
    leads = np.load(job.scratch / LEADS_NAME, mmap_mode="r")
    sides: dict[SideName, list[Codes]] = {"left": [], "right": []}
    for name, (first, last) in zip(group.shards, itertools.pairwise(group.start), strict=True):
        chosen = np.flatnonzero(leads[first:last])
        hashes = load_shard(job.images, name).hashes
        sides["left"].append(upright_codes(hashes, chosen, first_image=first))
        sides["right"].append(whole_codes(hashes, chosen, first_image=first))
    joined: dict[SideName, Codes] = {side: join_codes(codes) for side, codes in sides.items()}
    write_records(path, joined, band=outer_band(band, width=job.plan.width), width=job.plan.width)


def _join_partition(job: Job, band: int, task: tuple[int, Partition]) -> list[str]:
    """Write the pairs of a partition, and return the names of their files."""
    number, partition = task
    stem = f"pairs-{band:02}-{number:06}"

    def join() -> dict[str, list[str]]:
        names: list[str] = []
        for pairs in _bounded(pairs_of_partition(job, band, partition), max_pairs=job.plan.max_bytes // PAIR_BYTES):
            names.append(f"{stem}-{len(names)}.safetensors")
            write_pairs(job.scratch / names[-1], pairs, edges=job.edges)
        return {"pairs": names}

    return remember(join, path=job.scratch / f"{stem}.json", facts=[band, partition])["pairs"]


def pairs_of_partition(job: Job, band: int, partition: Partition) -> Iterator[Copies]:
    """Yield pairs of images, with repeats."""
    paths, span = job.all_records(band), {"low": partition.low, "high": partition.high}
    left = _load_side(paths, "left", block=partition.left_block, num_blocks=partition.num_left_blocks, **span)
    right = _load_side(paths, "right", block=partition.right_block, num_blocks=partition.num_right_blocks, **span)
    spare_bits = max(0, job.plan.width - MAX_VALUE_BITS)  # of the band, that the values do not tell apart
    for low, high in cut_leaves(left.counts, right.counts, max_right=LEAF_RIGHT):
        ours, theirs = left.rows(low, high), right.rows(low, high)
        meetings = float(np.dot(left.counts[low:high].astype(float), right.counts[low:high]))
        if not meetings:
            continue
        sides = {"num_left": ours.stop - ours.start, "num_right": theirs.stop - theirs.start}
        agreed_bits = spare_bits + math.log2(sides["num_left"] * sides["num_right"] / meetings)
        cut, _ = choose_cut(band, distance=job.plan.distance, width=job.plan.width, agreed_bits=agreed_bits, **sides)
        found = join_band(
            left.side(ours), right.side(theirs), number=band, distance=job.plan.distance, width=job.plan.width, cut=cut
        )
        for near in found:
            one, other = left.records[left.order[near.left + ours.start]], right.records[right.order[near.right + theirs.start]]
            alike = have_like_colours(one["view"][:, HASH_BYTES:], other["view"][:, HASH_BYTES:])
            one, other = one[alike], other[alike]
            columns = (one["image"], other["image"], near.distance[alike], one["kind"] | other["kind"])
            yield Copies(*(column.astype(np.int64) for column in columns))


@dataclass(frozen=True)
class _LoadedSide:
    """Holds one side of a partition, ordered by values of the band."""

    records: Records  # as read
    order: NDArray[np.int64]
    words: NDArray[np.uint64]  # (words, N), ordered
    owner: NDArray[np.uint32]  # (N,), ordered
    counts: NDArray[np.int64]  # by value

    def rows(self, low: int, high: int) -> slice:
        """Return the rows of a range of values."""
        return slice(int(self.counts[:low].sum()), int(self.counts[:high].sum()))

    def side(self, rows: slice) -> Side:
        """Return some rows for a join."""
        return Side(self.words[:, rows], self.owner[rows])


def _load_side(paths: Sequence[Path], side: SideName, *, low: int, high: int, block: int, num_blocks: int) -> _LoadedSide:
    loaded: LoadedRecords = read_records(paths, side, low=low, high=high, block=block, num_blocks=num_blocks)
    records, order = loaded.records, np.argsort(loaded.values, kind="stable")
    words = np.empty((3, len(records)), np.uint64)
    for start in range(0, len(records), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        words[:, start : start + ROWS_AT_ONCE] = as_words(records["view"][rows, :HASH_BYTES])
    counts = np.bincount(loaded.values, minlength=high - low)
    return _LoadedSide(records, order, words, records["image"][order], counts)


def _bounded(found: Iterator[Copies], *, max_pairs: int) -> Iterator[Copies]:
    """Yield pairs, ordered and without repeats, in as few pieces as a bound allows."""
    held, waiting, num_waiting = join_copies([]), [], 0
    for pairs in found:
        waiting.append(pairs)
        num_waiting += len(pairs)
        if num_waiting > min(PAIRS_AT_ONCE, max_pairs):
            held, waiting, num_waiting = join_copies([held, *waiting]), [], 0
            if len(held) > max_pairs:
                yield held
                held = join_copies([])
    held = join_copies([held, *waiting])
    if len(held):
        yield held


def _merge(job: Job, workers: Workers) -> Copies:
    """Return all pairs, each once: those of all bands, group by group of their first images."""
    num_groups = len(job.edges) - 1
    counts = np.sum([np.zeros(num_groups, np.int64), *(count_pairs(path) for path in _pair_files(job))], axis=0)
    tasks = np.flatnonzero(counts).tolist()
    for _ in workers.map(partial(_merge_group, job), tasks, description="merge pairs", unit="group"):
        pass
    merged = [read_pairs(job.merged_path(group), 0) for group in tasks]
    names = ("first", "second", "distance", "kind")
    return Copies(*(np.concatenate([np.zeros(0, np.int64), *(getattr(pairs, n) for pairs in merged)]) for n in names))


def _merge_group(job: Job, group: int) -> None:
    """Write the pairs whose first image is in a group of shards, each once, unless that has been done."""
    path = job.merged_path(group)
    if not path.exists():
        pairs = join_copies([read_pairs(part, group) for part in _pair_files(job)])
        write_pairs(path, pairs, edges=job.edges[group : group + 2])


def _pair_files(job: Job) -> list[Path]:
    """Return the files of all bands' pairs."""
    notes = [parse_json(job.done_path(band).read_bytes()) for band in range(job.plan.distance + 1)]
    return [job.scratch / name for note in notes for name in note["result"]["pairs"]]
