"""Decide which sample goes into which shard, at which place: a pure function of listing, seed and options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.make.classes import Numbering
from data_tools.make.output import Output
from data_tools.make.reencode import Encoding
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES
from pipeline.errors import DataError
from pipeline.keyed_random import Purpose, derive_key, permutation


@dataclass(frozen=True)
class ShardSize:
    """Says how much goes into a shard. Bytes are those in the source, so a shard is smaller where images are made smaller."""

    amount: int = 10_000
    unit: Literal["samples", "bytes"] = "samples"


@dataclass(frozen=True)
class MakeOptions:
    """Says what is to be made of a source.

    Attributes:
        seed: seed of the shuffle and of the split.
        val_fraction: part of the samples, by a hash of their names, that goes to FOLDER/val and the others to FOLDER/train;
            None puts all into FOLDER.
    """

    shard_size: ShardSize = field(default_factory=ShardSize)
    block_samples: int = DEFAULT_BLOCK_SAMPLES
    order: Literal["shuffled", "as listed"] = "shuffled"
    seed: int = 0
    numbering: Numbering = field(default_factory=Numbering)
    encoding: Encoding = field(default_factory=Encoding)
    val_fraction: float | None = None
    source: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True)
class ShardPlan:
    """Names a folder of shards below the output's root ("" is the root), and the samples that go there, in order."""

    part: str
    samples: NDArray[np.int64]
    shard_ends: NDArray[np.int64]

    def shards(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each shard's name below the root, and its samples."""
        for number, samples in enumerate(np.split(self.samples, self.shard_ends[:-1])):
            yield f"{self.part}/shard-{number:06d}.tar".removeprefix("/"), samples


def plan_shards(listing: Listing, output: Output, options: MakeOptions) -> list[ShardPlan]:
    """Decide which sample goes where.

    Raises:
        DataError: a split that leaves a side without samples.
    """
    order = np.arange(len(listing))
    if options.order == "shuffled":
        order = permutation(derive_key(options.seed, Purpose.MAKE_SHUFFLE), len(listing))
    if options.val_fraction is None:
        members: Sequence[NDArray[np.int64]] = [order]
    else:
        is_val = choose_val(listing, fraction=options.val_fraction, seed=options.seed)[order]
        members = [order[~is_val], order[is_val]]
    for part, samples in zip(output.parts, members, strict=True):
        if not len(samples):
            raise DataError(f"--split {options.val_fraction:g} leaves no sample of {len(order)} for {output.folder(part)}")
    tar_bytes = listing.tar_bytes()
    return [
        ShardPlan(part, samples, _cut(tar_bytes[samples], options.shard_size))
        for part, samples in zip(output.parts, members, strict=True)
    ]


def choose_val(listing: Listing, *, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples are for validation. A sample's name decides, so it stays there whatever else is added."""
    limit = int(fraction * 2**64)
    hashes = (xxhash.xxh64_intdigest(listing.name(sample), seed) for sample in range(len(listing)))
    return np.fromiter((value < limit for value in hashes), np.bool_, count=len(listing))


def _cut(tar_bytes: NDArray[np.int64], size: ShardSize) -> NDArray[np.int64]:
    """Return where each shard ends."""
    if size.unit == "samples":
        return np.append(np.arange(size.amount, len(tar_bytes), size.amount), len(tar_bytes))
    return cut_by_bytes(tar_bytes, size.amount)


def cut_by_bytes(num_bytes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Cut a sequence of sizes into groups, and return where each ends. A group takes sizes while they fit, and at least one."""
    total = np.cumsum(num_bytes)
    ends: list[int] = []
    while not ends or ends[-1] < len(total):
        first = ends[-1] if ends else 0
        before = int(total[first - 1]) if first else 0
        ends.append(max(first + 1, int(np.searchsorted(total, before + limit, side="right"))))
    return np.array(ends)
