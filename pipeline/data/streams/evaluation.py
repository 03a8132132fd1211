"""Stream a set, or some blocks of it, every sample once and without augmentation, in the index's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.images.masks import decode_mask, resize_mask
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.reader import BlockReader, RawSample
from pipeline.data.shards.remote import RemoteOptions
from pipeline.data.shards.sample import MASK_EXTENSIONS
from pipeline.data.streams.train import LabelKind, Unreadable
from pipeline.errors import DataError
from pipeline.image_size import height_and_width

EvalLabels = LabelKind | Literal["any"]
"""Labels that are read of an image: those that it must have, or `any`: those that it has, if any can be used."""

BLOCKS_AHEAD = 4  # read before they are needed
NO_MASK = np.empty((0, 0), dtype=np.uint8)


@dataclass(frozen=True)
class EvalImages:
    """Holds a block of a set.

    These are arrays, which a worker process sends through a pipe. Tensors would go by shared memory, file descriptors and a
    socket below TMPDIR, and their receiver gets no error where one of these fails: /dev/shm is small in containers, a socket's
    path is short.
    """

    block: int
    keys: list[str]  # of each image
    images: npt.NDArray[np.uint8]  # (B, 3, H, W)
    masks: npt.NDArray[np.uint8]  # (B, H, W) class of each pixel; (B, 0, 0) unless they were asked for
    labels: npt.NDArray[np.int64]  # (L,) of its images one after the other
    label_ends: npt.NDArray[np.int64]  # (B,) of each image, where its labels end
    positions: npt.NDArray[np.int64]  # (B,) in the index's order
    unreadable: list[Unreadable] = field(default_factory=list)


class EvalStream(IterableDataset[EvalImages]):
    """Yields every sample of a set once, in the index's order, a block at a time. It counts unreadable images.

    Args:
        labels: see `EvalLabels`; with `none` they are not even read.
        masks: whether each image needs the classes of its pixels. They are resized to the image's size: the transform must
            show the whole image.
        blocks: numbers of the blocks to read, in this order; None: all of the index.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        transform: EvalTransform,
        labels: EvalLabels = "one",
        masks: Literal["none", "needed"] = "none",
        blocks: Sequence[int] | npt.NDArray[np.int64] | None = None,
        remote: RemoteOptions | None = None,
    ) -> None:
        self.index = index
        self.transform = transform
        self.labels = labels
        self.masks = masks
        self.blocks = range(index.num_blocks) if blocks is None else blocks
        self.remote = remote

    def __iter__(self) -> Iterator[EvalImages]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = BlockReader(self.index, capacity=1, remote=self.remote)
        blocks = [int(block) for block in self.blocks[worker::num_workers]]
        for number, block in enumerate(blocks):
            for ahead in blocks[number : number + 1 + BLOCKS_AHEAD]:
                reader.start(ahead)
            yield self._fill(reader, block)

    def _fill(self, reader: BlockReader, block: int) -> EvalImages:
        images: list[Tensor] = []
        masks: list[npt.NDArray[np.uint8]] = []
        keys: list[str] = []
        labels: list[tuple[int, ...]] = []
        positions: list[int] = []
        unreadable: list[Unreadable] = []
        first = int(self.index.first_sample[block])
        for position, sample in enumerate(reader.read(block), first):
            try:
                mask = self._mask_of(sample)
                images.append(self.transform(decode_image(sample.image)))
            except UnreadableImage as error:
                unreadable.append(Unreadable(position=position, key=sample.key, shard=sample.shard, reason=str(error)))
                continue
            masks.append(mask)
            labels.append(self._labels_of(sample))
            positions.append(position)
            keys.append(sample.key)
        size = height_and_width(self.transform.image_size)
        stacked = torch.stack(images) if images else torch.empty((0, 3, *size), dtype=torch.uint8)
        return EvalImages(
            block=block,
            keys=keys,
            images=stacked.numpy(),
            masks=np.stack(masks) if masks else np.empty((0, 0, 0), dtype=np.uint8),
            labels=np.array(list(itertools.chain.from_iterable(labels)), dtype=np.int64),
            label_ends=np.cumsum([len(some) for some in labels], dtype=np.int64),
            positions=np.array(positions, dtype=np.int64),
            unreadable=unreadable,
        )

    def _mask_of(self, sample: RawSample) -> npt.NDArray[np.uint8]:
        if self.masks == "none":
            return NO_MASK
        data = sample.read(MASK_EXTENSIONS)
        if data is None:
            raise UnreadableImage(f"no mask (looked for {', '.join(MASK_EXTENSIONS)})")
        return resize_mask(decode_mask(data), self.transform.image_size)

    def _labels_of(self, sample: RawSample) -> tuple[int, ...]:
        if self.labels == "none":
            return ()
        if self.labels == "any":
            return () if isinstance(sample.stored_labels, DataError) else sample.stored_labels
        return (sample.label,) if self.labels == "one" else sample.labels
