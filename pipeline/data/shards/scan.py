"""Read what the index keeps of one shard from its headers and labels, and cut the shard into blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.content import BlockContent
from pipeline.data.shards.sample import describe_joined, read_labels
from pipeline.data.shards.tar import TarSample, find_defect, scan_samples
from pipeline.data.shards.tar_headers import is_empty_tar
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
    num_several: int  # samples with a list of labels that are not exactly one


def scan_shard(
    file: BinaryIO, *, name: str, num_bytes: int, block_samples: int, skip: Collection[str] = frozenset()
) -> ShardEntry:
    """Read a tar's headers and labels, and cut it into blocks of `block_samples` samples; the last block may have fewer.

    Args:
        skip: keys of samples to leave out.

    Raises:
        DataError: compressed, truncated, not a tar, no samples among its members, members of a sample apart from each other
            or of one extension, or a key to skip that is not there. A tar without any member is a shard without samples.
    """
    blocks = _Blocks(block_samples)
    seen: set[str] = set()
    for sample in scan_samples(file, name=name):
        if sample.key in seen:
            raise DataError(
                f"{name}: the members of sample {sample.key!r} do not lie next to each other, or two samples have this key; "
                f"`python -m data_tools make` packs such tars again"
            )
        seen.add(sample.key)
        if sample.key in skip:
            blocks.skip()
        else:
            _refuse_unusable(sample, name=name)
            blocks.keep(sample, labels=_usable_labels(file, sample, name=name))
        if sample.end > num_bytes:
            raise DataError(
                f"{name}: truncated: sample {sample.key!r} needs {sample.end} bytes, the file has {num_bytes}; copy it again"
            )
    if not seen and not is_empty_tar(file):
        raise DataError(f"{name}: no samples; members must be named KEY.EXTENSION, for example 000017.jpg and 000017.cls")
    if strangers := sorted(set(skip) - seen):
        raise DataError(
            f"{name}: {len(strangers)} samples to skip are not in it, {strangers[0]!r} first; make the skip list again"
        )
    return blocks.to_entry(name=name, num_bytes=num_bytes, num_skipped=len(skip))


@dataclass
class _Block:
    """Holds a block that grows sample by sample."""

    start: int
    end: int
    num_samples: int = 0  # without the skipped ones
    last_slot: int = 0  # slot of the last kept sample
    content: BlockContent = field(default_factory=BlockContent)


class _Blocks:
    """Cuts a shard's samples into blocks, in the order of the tar."""

    def __init__(self, block_samples: int) -> None:
        self._block_samples = block_samples
        self._blocks: list[_Block] = []
        self._slot = 0  # slot of the next sample, counted since the current block's start
        self._skipped: list[tuple[int, int]] = []  # block and slot
        self._images_of: Counter[int] = Counter()
        self._num_unlabelled = self._num_several = 0

    def keep(self, sample: TarSample, *, labels: tuple[int, ...] | None) -> None:
        """Add a sample to the current block, or to a new one where that is full."""
        if not self._blocks or self._blocks[-1].num_samples == self._block_samples:
            self._blocks.append(_Block(sample.start, sample.end))
            self._slot = 0
        block = self._blocks[-1]
        block.num_samples += 1
        block.end, block.last_slot = sample.end, self._slot
        block.content.add(sample, labels)
        self._slot += 1
        if labels is None or any(label < 0 for label in labels):
            self._num_unlabelled += 1
        else:
            self._images_of.update(labels)
            self._num_several += len(labels) != 1

    def skip(self) -> None:
        """Leave the next sample out."""
        if self._blocks:
            self._skipped.append((len(self._blocks) - 1, self._slot))
        self._slot += 1

    def to_entry(self, *, name: str, num_bytes: int, num_skipped: int) -> ShardEntry:
        # What was skipped behind a block's last sample lies outside its bytes.
        inside = [(block, slot) for block, slot in self._skipped if slot < self._blocks[block].last_slot]
        return ShardEntry(
            name=name,
            num_bytes=num_bytes,
            block_offset=np.array([block.start for block in self._blocks], np.int64),
            block_bytes=np.array([block.end - block.start for block in self._blocks], np.int64),
            block_samples=np.array([block.num_samples for block in self._blocks], np.uint16),
            skipped_block=np.array([block for block, _ in inside], np.int64),
            skipped_slot=np.array([slot for _, slot in inside], np.uint16),
            num_skipped=num_skipped,
            block_content=np.array([block.content.digest for block in self._blocks], np.uint64),
            images_of=self._images_of,
            num_unlabelled=self._num_unlabelled,
            num_several=self._num_several,
        )


def _refuse_unusable(sample: TarSample, *, name: str) -> None:
    if (defect := find_defect(sample)) is not None:
        raise DataError(f"{name}: sample {sample.key!r} {defect.reason}")
    if (reason := describe_joined(sample, shard=name)) is not None:
        raise DataError(reason)


def _usable_labels(file: BinaryIO, sample: TarSample, *, name: str) -> tuple[int, ...] | None:
    """Return a sample's classes; None if it has no usable label. `verify` lists such samples, and a training refuses them."""

    def read(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    try:
        return read_labels(sample, read, shard=name)
    except DataError:
        return None
