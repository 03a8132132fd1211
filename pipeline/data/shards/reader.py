"""Read blocks of samples with one range read each. Images are taken out when they are needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.data.shards.blocks import BlockBytes, FileBlock, OpenFile
from pipeline.data.shards.content import BlockContent, describe_difference
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.remote import RemoteOptions, RemoteSource, Retry
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, describe_missing, find_member, only_label, read_labels
from pipeline.data.shards.tar import TarMember, TarSample, find_defect, scan_samples
from pipeline.errors import DataError

MAX_OPEN_SHARDS = 128


@dataclass(frozen=True)
class RawSample:
    """One sample as stored: its image still encoded, its classes, and where it came from."""

    key: str
    shard: str
    stored_labels: tuple[int, ...] | DataError  # the error where no label can be used
    member: TarMember  # the image
    members: tuple[TarMember, ...]  # all that the sample has
    block: BlockBytes

    @property
    def labels(self) -> tuple[int, ...]:
        """Return the sample's classes.

        Raises:
            DataError: it has no label that can be used.
        """
        if isinstance(self.stored_labels, DataError):
            raise self.stored_labels
        return self.stored_labels

    @property
    def label(self) -> int:
        """Return the sample's only class.

        Raises:
            DataError: it has no label that can be used, or several.
        """
        return only_label(self.labels, shard=self.shard, key=self.key)

    @property
    def image(self) -> bytes:
        """Return the encoded image, read at this moment."""
        return self.member.read(self.block.read)

    def read(self, extensions: tuple[str, ...]) -> bytes | None:
        """Return the bytes of the member with the first of these extensions that the sample has, read at this moment."""
        found = find_member(self, extensions)
        return None if found is None else found.read(self.block.read)


class Source(Protocol):
    """Reads blocks from some storage."""

    def start(self, block: int) -> Callable[[], BlockBytes]:
        """Begin to read a block. The returned function waits for it."""
        ...

    def take_retries(self) -> list[Retry]:
        """Return the failed requests since the last call."""
        ...


class LocalSource:
    """Reads shards in a local or network-mounted folder, and keeps them open. The system prefetches blocks."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._open: OrderedDict[str, OpenFile] = OrderedDict()

    def start(self, block: int) -> Callable[[], BlockBytes]:
        shard, offset, num_bytes = self._index.byte_range(block)
        file = self._file(shard)
        os.posix_fadvise(file(), offset, num_bytes, os.POSIX_FADV_WILLNEED)
        return lambda: FileBlock(file, offset=offset, num_bytes=num_bytes)

    def take_retries(self) -> list[Retry]:
        return []

    def _file(self, shard: str) -> OpenFile:
        """Open a shard. It is released when as many others were requested, and closed when none of its blocks is played."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            try:
                self._open[shard] = OpenFile(os.path.join(self._index.folder, shard))
            except FileNotFoundError as error:
                raise DataError(f"{self._index.folder}/{shard} is missing; restore it, or index the folder again") from error
        self._open.move_to_end(shard)
        return self._open[shard]


def open_source(index: ShardIndex, options: RemoteOptions) -> Source:
    """Return the right source for the index's folder or URL."""
    return RemoteSource(index, options) if is_remote(index.folder) else LocalSource(index)


class BlockReader:
    """Reads and parses blocks, and keeps the most recent ones: a stream plays a block for many steps.

    Args:
        index: the corpus.
        capacity: blocks kept; at least the number of streams this reader serves. A block whose samples have all been
            played is not kept.
        remote: how to read shards behind a URL.
        plays: how often each sample is played in an epoch.
    """

    def __init__(self, index: ShardIndex, *, capacity: int, remote: RemoteOptions | None = None, plays: int = 1) -> None:
        self.index = index
        self.capacity = capacity
        self.plays = plays
        self._source = open_source(index, remote or RemoteOptions())
        self._started: dict[int, Callable[[], BlockBytes]] = {}
        self._blocks: OrderedDict[int, list[RawSample]] = OrderedDict()
        self._unplayed: dict[int, int] = {}

    def start(self, block: int) -> None:
        """Begin to read a block that will be needed soon."""
        if block not in self._blocks and block not in self._started:
            self._started[block] = self._source.start(block)

    def read(self, block: int) -> list[RawSample]:
        """Return all samples of a block, in the file's order, one of which is played now.

        Raises:
            DataError: shard missing or truncated, or contents that differ from the index.
        """
        if block not in self._blocks:
            self.start(block)
            samples = self._parse(block, self._started.pop(block)())
            if len(self._blocks) >= self.capacity:
                self._unplayed.pop(self._blocks.popitem(last=False)[0])
            self._blocks[block], self._unplayed[block] = samples, self.plays * len(samples)
        samples = self._blocks[block]
        self._blocks.move_to_end(block)
        self._unplayed[block] -= 1
        if not self._unplayed[block]:
            del self._blocks[block], self._unplayed[block]
        return samples

    def take_retries(self) -> list[Retry]:
        """Return the failed requests since the last call."""
        return self._source.take_retries()

    def _parse(self, block: int, data: BlockBytes) -> list[RawSample]:
        index = self.index
        shard, _, num_bytes = index.byte_range(block)
        if data.num_bytes != num_bytes:
            raise DataError(
                f"{index.describe_block(block)}: only {data.num_bytes} of {num_bytes} bytes there; the shard is truncated"
            )
        skipped = index.skipped_in(block)
        try:
            stored = list(scan_samples(data.open(), name=shard, links="mark"))
        except DataError as error:
            raise DataError(f"{index.describe_block(block)}: {error}; index the folder again if its shards changed") from error
        kept = [sample for slot, sample in enumerate(stored) if slot not in skipped]
        if len(kept) != index.block_samples[block]:
            raise DataError(
                f"{index.describe_block(block)}: {len(kept)} samples, the index says {index.block_samples[block]}; "
                f"index the folder again if its shards changed"
            )
        samples = [_raw_sample(sample, data, shard=shard) for sample in kept]
        content = BlockContent()
        for sample, raw in zip(kept, samples, strict=True):
            content.add(sample, None if isinstance(raw.stored_labels, DataError) else raw.stored_labels)
        if content.digest != index.block_content[block]:
            raise DataError(
                f"{index.describe_block(block)}: {describe_difference(int(index.block_content[block]), content.digest)} of its "
                "samples differ from the index: the shard was rewritten at the same size. Restore it, or index the folder "
                f"again with `python -m data_tools index {index.folder}`"
            )
        return samples


def _raw_sample(sample: TarSample, data: BlockBytes, *, shard: str) -> RawSample:
    image = find_member(sample, IMAGE_EXTENSIONS)
    if image is None:
        raise DataError(describe_missing(sample, "image", IMAGE_EXTENSIONS, shard=shard))
    if (defect := find_defect(sample)) is not None:
        raise DataError(f"{shard}: sample {sample.key!r} {defect.reason}")
    try:
        labels: tuple[int, ...] | DataError = read_labels(sample, data.read, shard=shard)
    except DataError as error:  # raised where the label is asked for: an objective without labels never asks
        labels = error
    return RawSample(key=sample.key, shard=shard, stored_labels=labels, member=image, members=sample.members, block=data)
