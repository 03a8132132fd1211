"""Read what the index keeps of one shard from its headers and labels, and cut the shard into blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.content import BlockContent
from pipeline.data.shards.sample import describe_joined, read_label
from pipeline.data.shards.tar import TarSample, find_defect, is_empty_tar, scan_samples
from pipeline.errors import DataError


@dataclass(frozen=True)
class ShardEntry:
    """Describes one tar: its name in the folder, its size, and its blocks' byte ranges and sample counts."""

    name: str
    num_bytes: int
    block_offset: NDArray[np.int64]
    block_bytes: NDArray[np.int64]
    block_samples: NDArray[np.uint16]  # without the skipped ones
    skipped_block: NDArray[np.int64]  # block in the shard, and slot in it, of each sample inside a block to leave out
    skipped_slot: NDArray[np.uint16]
    num_skipped: int  # including those between blocks
    block_content: NDArray[np.uint64]  # keys, members' sizes and labels of each block's samples: see `content`
    images_of: Mapping[int, int]  # images by class, for samples with a usable label
    num_unlabelled: int  # samples without a usable label


def scan_shard(
    file: BinaryIO, *, name: str, num_bytes: int, block_samples: int, skip: Collection[str] = frozenset()
) -> ShardEntry:
    """Read a tar's headers and labels, and cut it into blocks of `block_samples` samples; the last block may have fewer.

    Args:
        skip: keys of samples to leave out.

    Raises:
        DataError: compressed, cut short, not a tar, no samples among its members, members of a sample apart from each other
            or of one extension, or a key to skip that is not there. A tar without any member is a shard without samples.
    """
    starts: list[int] = []  # of each block, like the three below
    ends: list[int] = []
    counts: list[int] = []
    last_slots: list[int] = []  # slot of each block's last kept sample
    contents: list[BlockContent] = []
    images_of: Counter[int] = Counter()
    num_unlabelled = 0
    skipped: list[tuple[int, int]] = []
    seen: set[str] = set()
    slot = 0  # among the samples since the current block's start
    for sample in scan_samples(file, name=name):
        if sample.key in seen:
            raise DataError(
                f"{name}: the members of sample {sample.key!r} do not lie next to each other, or two samples have this key; "
                f"`python -m data_tools make` packs such tars again"
            )
        seen.add(sample.key)
        is_kept = sample.key not in skip
        if is_kept and (defect := find_defect(sample)) is not None:
            raise DataError(f"{name}: sample {sample.key!r} {defect.reason}")
        if is_kept and (reason := describe_joined(sample, shard=name)) is not None:
            raise DataError(reason)
        if is_kept and (not counts or counts[-1] == block_samples):
            starts.append(sample.start)
            ends.append(sample.end)
            counts.append(0)
            last_slots.append(0)
            contents.append(BlockContent())
            slot = 0
        if is_kept:
            counts[-1] += 1
            ends[-1], last_slots[-1] = sample.end, slot
            label = _usable_label(file, sample, name=name)
            contents[-1].add(sample, label)
            if label is None or label < 0:
                num_unlabelled += 1
            else:
                images_of[label] += 1
        elif counts:
            skipped.append((len(counts) - 1, slot))
        slot += 1
        if sample.end > num_bytes:
            raise DataError(
                f"{name}: cut short: sample {sample.key!r} needs {sample.end} bytes, the file has {num_bytes}; copy it again"
            )
    if not seen and not is_empty_tar(file):
        raise DataError(f"{name}: no samples; members must be named KEY.EXTENSION, for example 000017.jpg and 000017.cls")
    if strangers := sorted(set(skip) - seen):
        raise DataError(
            f"{name}: {len(strangers)} samples to skip are not in it, {strangers[0]!r} first; make the skip list again"
        )
    # What was skipped behind a block's last sample lies outside its bytes.
    inside = [(block, slot) for block, slot in skipped if slot < last_slots[block]]
    return ShardEntry(
        name=name,
        num_bytes=num_bytes,
        block_offset=np.array(starts, np.int64),
        block_bytes=np.array(ends, np.int64) - np.array(starts, np.int64),
        block_samples=np.array(counts, np.uint16),
        skipped_block=np.array([block for block, _ in inside], np.int64),
        skipped_slot=np.array([slot for _, slot in inside], np.uint16),
        num_skipped=len(skip),
        block_content=np.array([content.digest for content in contents], np.uint64),
        images_of=images_of,
        num_unlabelled=num_unlabelled,
    )


def _usable_label(file: BinaryIO, sample: TarSample, *, name: str) -> int | None:
    """Return a sample's class; None if it has none. `verify` lists such samples, and a training refuses them."""

    def read(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    try:
        return read_label(sample, read, shard=name)
    except DataError:
        return None
