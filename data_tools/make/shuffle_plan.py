"""Plan a shuffle in two passes, each of which reads in sequence: a pure function of listing, shards and memory.

Pass 1 reads the source front to back, a *run* of samples at a time, and writes each run to a file of its own, sorted by place.
A *bucket* is some consecutive shards that fit into memory. A bucket's samples of one run are a *segment* of the run's file,
with a checksum behind it. Pass 2 reads a bucket's segments, one of each run, and writes its shards.

    run 0:  bucket 0 | sum | bucket 1 | sum | ...
    run 1:  bucket 0 | sum | bucket 1 | sum | ...

So there are as many files as runs, not runs times buckets. All places are computed from the listing; no file tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_tools.make.plan import cut_by_bytes
from data_tools.make.sources.listing import Int64s, Listing

SUM_BYTES = 16  # of a segment's checksum
SAMPLE_BYTES = 512  # memory that a sample takes besides its bytes: name, labels, places
MIN_SHARE_BYTES = 256 << 20  # smaller buckets than that save nothing
AIM_BUCKETS = 64  # a little set is cut into as many, where its shards allow: workers share them


@dataclass(frozen=True)
class ShufflePlan:
    """Says what both passes read and write.

    Attributes:
        reading_order: samples as the source holds them: (N,).
        run_ends: ends of the runs in it: (R,).
        run: each sample's run: (N,).
        bucket: each sample's bucket: (N,).
        offset: where a sample begins in its run's file: (N,).
        num_bytes: each sample's bytes: (N,).
        bucket_ends: ends of the buckets in the sequence of shards: (B,).
    """

    reading_order: Int64s
    run_ends: Int64s
    run: NDArray[np.int32]
    bucket: NDArray[np.int32]
    offset: Int64s
    num_bytes: Int64s
    bucket_ends: Int64s

    @property
    def num_runs(self) -> int:
        return len(self.run_ends)

    @property
    def num_buckets(self) -> int:
        return len(self.bucket_ends)

    def run_samples(self, run: int) -> Int64s:
        """Return a run's samples as the source holds them."""
        return self.reading_order[self.run_ends[run - 1] if run else 0 : self.run_ends[run]]

    def run_bytes(self) -> Int64s:
        """Return the sizes of the runs' files: (R,)."""
        of_samples = np.bincount(self.run, self.num_bytes, minlength=self.num_runs).astype(np.int64)
        return of_samples + SUM_BYTES * self.num_buckets

    def segment_bytes(self, samples: Int64s) -> Int64s:
        """Return the bytes of a run's segments without their sums: (B,)."""
        return np.bincount(self.bucket[samples], self.num_bytes[samples], minlength=self.num_buckets).astype(np.int64)

    def bucket_shards(self, bucket: int) -> range:
        """Return the numbers of a bucket's shards in the sequence of shards."""
        return range(int(self.bucket_ends[bucket - 1]) if bucket else 0, int(self.bucket_ends[bucket]))


def plan_shuffle(listing: Listing, shards: Sequence[Int64s], *, share_bytes: int) -> ShufflePlan:
    """Cut the source into runs and the shards into buckets, each of at most `share_bytes` unless one sample or shard has more.

    Args:
        shards: samples of every shard, in order.
    """
    sizes = sample_bytes(listing)
    weights = sizes + SAMPLE_BYTES
    share_bytes = min(share_bytes, max(MIN_SHARE_BYTES, int(weights.sum()) // AIM_BUCKETS))
    firsts = np.concatenate([[0], listing.member_ends[:-1]])
    order = np.lexsort((listing.member_start[firsts], listing.member_file[firsts]))
    run_ends = cut_by_bytes(weights[order], share_bytes)
    run = np.empty(len(listing), np.int32)
    run[order] = np.repeat(np.arange(len(run_ends)), np.diff(run_ends, prepend=0))
    bucket_ends = cut_by_bytes(np.array([weights[samples].sum() for samples in shards]), share_bytes)
    places = np.concatenate(shards)
    place, bucket = np.empty(len(listing), np.int64), np.empty(len(listing), np.int32)
    place[places] = np.arange(len(places))
    shard_ends = np.cumsum([len(samples) for samples in shards])
    bucket[places] = np.repeat(np.arange(len(bucket_ends)), np.diff(shard_ends[bucket_ends - 1], prepend=0))
    by_place = np.lexsort((place, run))  # as the runs' files hold them
    before = np.concatenate([[0], np.cumsum(sizes[by_place])[:-1]])
    run_start = before[np.concatenate([[0], run_ends[:-1]])]
    offset = np.empty(len(listing), np.int64)
    offset[by_place] = before - run_start[run[by_place]] + SUM_BYTES * bucket[by_place].astype(np.int64)
    return ShufflePlan(
        reading_order=order.astype(np.int64), run_ends=run_ends, run=run, bucket=bucket, offset=offset, num_bytes=sizes,
        bucket_ends=bucket_ends,
    )  # fmt: skip


def sample_bytes(listing: Listing) -> Int64s:
    """Return the bytes of each sample's members: (N,)."""
    total = np.concatenate([[0], np.cumsum(listing.member_length)])
    return np.diff(total[listing.member_ends], prepend=0)


def locate(listing: Listing, starts: Int64s) -> Listing:
    """Return the listing of samples whose members lie one behind the other in a buffer.

    Args:
        starts: where each sample begins there: (N,).
    """
    counts = np.diff(listing.member_ends, prepend=0)
    before = np.concatenate([[0], np.cumsum(listing.member_length)[:-1]])
    firsts = np.concatenate([[0], listing.member_ends[:-1]])
    member_start = np.repeat(starts - before[firsts], counts) + before
    return replace(
        listing, layout="ranges", files=("memory",), origins=("memory",), member_file=np.zeros_like(listing.member_file),
        member_start=member_start,
    )  # fmt: skip
