"""Shuffle in two passes that read in sequence: the source once into runs on scratch, then bucket by bucket into shards.

A run's file is whole or absent, and a shard too, so a killed command goes on with the next of either. See `shuffle_plan`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data_tools.make.output import Output
from data_tools.make.shuffle_plan import SUM_BYTES, ShufflePlan, locate, plan_shuffle
from data_tools.make.source_files import SourceFiles
from data_tools.make.sources.listing import Int64s, Listing, Sample
from data_tools.make.sources.stored import version_of
from data_tools.make.write_shard import ShardTask, write_shard_of
from data_tools.parallel import Workers
from pipeline.console.words import size
from pipeline.errors import DataError
from pipeline.files import Draft, remove_drafts

RUNS_NAME = "runs"
WORKER_BYTES = 320 << 20  # memory of a worker besides the samples: the interpreter, its libraries, blocks of a store


@dataclass(frozen=True)
class RunTask:
    """Describes one run to write.

    Attributes:
        samples: in the order of the source.
        offsets: where each begins in the run's file.
        segments: bytes of each segment without its sum.
        versions: of the listing's files, as they were when it was made.
    """

    path: Path
    samples: Listing
    offsets: Int64s
    segments: Int64s
    versions: tuple[str, ...]


class Segment(NamedTuple):
    """Locates the samples of a bucket in a run's file."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class BucketTask:
    """Describes shards to write from segments, which are read into memory one behind the other; samples are located there."""

    segments: tuple[Segment, ...]
    shards: tuple[ShardTask, ...]


@dataclass(frozen=True)
class Shards:
    """Holds what is to be written: every shard's name and samples, and which of them are still missing."""

    names: Sequence[str]
    samples: Sequence[Int64s]
    missing: frozenset[str]


class TwoPasses:
    """Writes shards in two passes.

    Args:
        make_task: returns the task of a shard, given its name, its samples' numbers and their listing.
        identity: all that the shards depend on; runs of something else are removed.
        memory_bytes: limit of a worker's memory.

    Raises:
        DataError: a shard does not fit into memory.
    """

    def __init__(
        self,
        listing: Listing,
        shards: Shards,
        *,
        output: Output,
        make_task: Callable[[str, Int64s, Listing], ShardTask],
        identity: str,
        memory_bytes: int,
    ) -> None:
        share = share_of(memory_bytes)
        self._listing, self._shards, self._make_task = listing, shards, make_task
        self.plan = plan_shuffle(listing, shards.samples, share_bytes=share)
        self._memory_bytes = memory_bytes
        key = hashlib.blake2b(f"{identity} {share} {self.plan.num_buckets}".encode(), digest_size=8).hexdigest()
        self.folder = output.work / RUNS_NAME / key
        self._output = output
        _check_shards(self.plan, shards, share=share)

    def run(self, workers: Workers) -> None:
        """Write the missing shards.

        Raises:
            DataError: no room on scratch, a source that has changed, or damaged runs.
        """
        todo = [bucket for bucket in range(self.plan.num_buckets) if self._missing(bucket)]
        if not todo:
            return
        self._clear()
        runs = self._missing_runs()
        print(self._describe(workers, num_runs=len(runs)), flush=True)
        self._check_room([int(size) for size in self.plan.run_bytes()[runs]], workers)
        if runs:
            self._read_source(runs, workers)
        tasks = _Lazy(todo, self._bucket_task)
        for _ in workers.map(write_bucket, tasks, description="pass 2: write shards", unit="bucket", name_task=_name_bucket):
            pass
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_source(self, runs: Sequence[int], workers: Workers) -> None:
        listing = self._listing
        versions = {} if listing.layout == "files" else {path: version_of(path) for path in listing.files}
        tasks = _Lazy(runs, lambda run: self._run_task(run, versions))
        for _ in workers.map(write_run, tasks, description="pass 1: read the source", unit="run", name_task=_name_run):
            pass

    def _missing(self, bucket: int) -> list[int]:
        return [shard for shard in self.plan.bucket_shards(bucket) if self._shards.names[shard] in self._shards.missing]

    def _clear(self) -> None:
        """Remove runs of other plans, and half-written ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        remove_drafts(self.folder)

    def _missing_runs(self) -> list[int]:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}
        return [run for run, size in enumerate(self.plan.run_bytes().tolist()) if sizes.get(self._path(run).name) != size]

    def _path(self, run: int) -> Path:
        return self.folder / f"{run:06d}.run"

    def _run_task(self, run: int, versions: Mapping[str, str]) -> RunTask:
        samples = self.plan.run_samples(run)
        listing = self._listing.take(samples)
        return RunTask(
            self._path(run),
            listing,
            offsets=self.plan.offset[samples],
            segments=self.plan.segment_bytes(samples),
            versions=tuple(versions[path] for path in listing.files) if versions else (),
        )

    def _bucket_task(self, bucket: int) -> BucketTask:
        plan = self.plan
        samples = np.concatenate([self._shards.samples[shard] for shard in plan.bucket_shards(bucket)])
        lengths = np.bincount(plan.run[samples], plan.num_bytes[samples], minlength=plan.num_runs).astype(np.int64)
        starts = np.full(plan.num_runs, np.iinfo(np.int64).max)
        np.minimum.at(starts, plan.run[samples], plan.offset[samples])
        used = np.flatnonzero(lengths)
        in_memory = np.cumsum(lengths) - lengths
        shards = []
        for shard in self._missing(bucket):
            own = self._shards.samples[shard]
            runs = plan.run[own]
            located = locate(self._listing.take(own), in_memory[runs] + plan.offset[own] - starts[runs])
            shards.append(self._make_task(self._shards.names[shard], own, located))
        segments = tuple(Segment(self._path(run), int(starts[run]), int(lengths[run])) for run in used.tolist())
        return BucketTask(segments, tuple(shards))

    def _describe(self, workers: Workers, *, num_runs: int) -> str:
        plan = self.plan
        total = int(plan.num_bytes.sum())
        segment = total / (plan.num_runs * plan.num_buckets)
        known = f", {plan.num_runs - num_runs} of them there already" if num_runs < plan.num_runs else ""
        return (
            f"two passes: {size(total)} in {plan.num_runs} runs{known} and {plan.num_buckets} buckets, read in pieces "
            f"of {size(segment)}\n"
            f"  memory: at most {size(self._memory_bytes)} a worker (--memory), {workers.count} workers\n"
            f"  scratch: {size(plan.run_bytes().sum())} in {self.folder} (--scratch), which has "
            f"{size(shutil.disk_usage(self.folder).free)} free"
        )

    def _check_room(self, new_runs: Sequence[int], workers: Workers) -> None:
        """Refuse a scratch disk that is too small for what is still to be written there.

        Raises:
            DataError: it is.
        """
        staged = self._largest_shard() * workers.count if self._output.is_remote else 0
        needed, free = sum(new_runs) + staged, shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"{self.folder} has {size(free)} free, and the two passes need {size(needed)} more there; name a "
                "larger disk with --scratch"
            )

    def _largest_shard(self) -> int:
        tar_bytes = self._listing.tar_bytes()
        return max(int(tar_bytes[samples].sum()) for samples in self._shards.samples)


def share_of(memory_bytes: int) -> int:
    """Return the bytes of samples that a worker of so much memory holds.

    Raises:
        DataError: it holds none.
    """
    if memory_bytes <= WORKER_BYTES:
        raise DataError(
            f"--memory: a worker of {size(memory_bytes)} holds no sample; it takes {size(WORKER_BYTES)} without any"
        )
    return memory_bytes - WORKER_BYTES


def _check_shards(plan: ShufflePlan, shards: Shards, *, share: int) -> None:
    """Refuse shards that do not fit into memory."""
    largest, number = max((int(plan.num_bytes[samples].sum()), number) for number, samples in enumerate(shards.samples))
    if largest > share:
        raise DataError(
            f"{shards.names[number]} will hold {size(largest)}, and a worker holds a shard in memory: give --memory "
            f"{-(-(largest + WORKER_BYTES) // 10**7) / 100:g}GB, or fewer samples or bytes a shard"
        )


class _Lazy(Sequence[Any]):
    """Makes tasks, each on its turn: all of them would take as much memory as the whole listing."""

    def __init__(self, numbers: Sequence[int], make: Callable[[int], Any]) -> None:
        self._numbers, self._make = numbers, make

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        return self._make(self._numbers[number])


def _name_run(task: RunTask) -> str:
    return f"{task.samples.files[0]} ({task.path.name})"


def _name_bucket(task: BucketTask) -> str:
    return f"{task.shards[0].target} and {len(task.shards) - 1} more"


def write_run(task: RunTask) -> None:
    """Read a run's samples in sequence, and write them sorted.

    Raises:
        DataError: the source has changed, or the disk is full.
    """
    _check_versions(task)
    ends = np.cumsum(task.segments + SUM_BYTES)
    buffer = bytearray(int(ends[-1]))
    with SourceFiles(task.samples) as source:
        for (sample, values), offset in zip(source.read_all(), task.offsets.tolist(), strict=True):
            for member in sample.members:
                buffer[offset : offset + member.length] = values[member.extension]
                offset += member.length
    _check_versions(task)
    view = memoryview(buffer)
    for end, length in zip(ends.tolist(), task.segments.tolist(), strict=True):
        view[end - SUM_BYTES : end] = xxhash.xxh3_128_digest(view[end - SUM_BYTES - length : end - SUM_BYTES])
    try:
        with Draft(task.path) as draft:
            draft.file.write(buffer)
            draft.publish()
    except OSError as error:
        raise DataError(
            f"{task.path.parent} cannot be written ({error.strerror or error}): make room there, or name another disk with "
            "--scratch; the same command resumes where it stopped"
        ) from error


def _check_versions(task: RunTask) -> None:
    """Raise if a file is not the one that was listed."""
    for path, version in zip(task.samples.files, task.versions, strict=False):
        try:
            now = version_of(path)
        except FileNotFoundError as error:
            raise DataError(f"{path} is gone since it was listed; start again when the source is final") from error
        if now != version:
            raise DataError(
                f"{path} has changed since it was listed (before: {version}; now: {now}); start again with an empty output "
                "when the source is final"
            )


def write_bucket(task: BucketTask) -> None:
    """Read a bucket into memory, and write its shards.

    Raises:
        DataError: a damaged run, or a shard that cannot be written.
    """
    buffer = bytearray(sum(segment.length for segment in task.segments))
    view = memoryview(buffer)
    at = 0
    for segment in task.segments:
        _read_segment(segment, view[at : at + segment.length])
        at += segment.length

    for shard in task.shards:
        write_shard_of(shard, _located(shard.samples, view))


def _located(samples: Listing, view: memoryview) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Yield samples that lie in memory, with the bytes of their members by extension."""
    for index in range(len(samples)):
        sample = samples.sample(index)
        yield sample, {each.extension: bytes(view[each.start : each.start + each.length]) for each in sample.members}


def _read_segment(segment: Segment, into: memoryview) -> None:
    try:
        with segment.path.open("rb", buffering=0) as file:
            file.seek(segment.start)
            num_read = 0
            while num_read < segment.length and (count := file.readinto(into[num_read:])):
                num_read += count
            stored = file.read(SUM_BYTES)
    except OSError as error:
        raise DataError(f"{segment.path} cannot be read ({error.strerror or error}); the same command resumes") from error
    if num_read < segment.length or stored != xxhash.xxh3_128_digest(into):
        segment.path.unlink(missing_ok=True)
        raise DataError(
            f"{segment.path} was damaged on the disk, and is removed: the same command writes it again. If that happens again, "
            "name another disk with --scratch"
        )
