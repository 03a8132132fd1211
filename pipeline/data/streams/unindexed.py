"""Read tars without an index through webdataset's pipeline: resampled shards, a shuffle buffer, an approximate order."""

from __future__ import annotations

import importlib
import random
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.decode import UnreadableImage
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, only_label, parse_labels
from pipeline.data.streams.mixture import UnindexedShards
from pipeline.data.streams.train import DIGEST_MODULUS, Division, LabelKind, Unreadable, WorkerShare
from pipeline.errors import ConfigError, DataError
from pipeline.keyed_random import Purpose, derive_key

SHUFFLE_BUFFER = 1000  # number of encoded samples that a worker holds
UNREADABLE_IN_A_ROW = 100


class UnindexedStream:
    """Yields parts of micro-batches like `TrainStream`, in an order that only webdataset knows.

    Args:
        source: the tars.
        seed: the run's seed; each start derives another order from it, so that a resumed run does not repeat its beginning.
        division: this rank's part of each batch.
        transform: bytes to pixels.
        num_classes: classes of the model; a larger label is an error.
        labels: labels of an image that the objective needs.
        start_step: the first optimizer step served.
    """

    def __init__(
        self,
        *,
        source: UnindexedShards,
        seed: int,
        division: Division,
        transform: TrainTransform,
        num_classes: int,
        start_step: int,
        labels: LabelKind = "one",
    ) -> None:
        self.source = source
        self.seed = seed
        self.division = division
        self.transform = transform
        self.num_classes = num_classes
        self.labels = labels
        self.start_step = start_step

    def parts(self, images: Tensor, *, worker: int, num_workers: int) -> Iterator[WorkerShare]:
        """Fill this worker's slots of micro-batch n in `images[n % R]`: see `TrainStream.parts`."""
        samples = self._samples(worker, num_workers)
        parts = self.division.worker_slots(start_step=self.start_step, worker=worker, num_workers=num_workers)
        for number, (positions, slots) in enumerate(parts):
            yield self._fill(images[number % len(images), slots], positions, samples)

    def _samples(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        wds: Any = importlib.import_module("webdataset")
        key = derive_key(self.seed, Purpose.UNINDEXED, self.start_step, self.division.rank, worker)
        if self.source.urls == (UnindexedShards.STDIN,):
            if self.division.world_size * num_workers > 1:
                raise ConfigError(
                    "data.train=- reads standard input, which one process alone can: trainer.devices=1 data.num_workers=0"
                )
            shards: Any = wds.SimpleShardList(list(self.source.urls))
        else:
            shards = wds.ResampledShards(list(self.source.urls), seed=key % 2**31, deterministic=True)
        shuffle = wds.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER // 10, rng=random.Random(key))
        try:
            yield from wds.DataPipeline(shards, wds.tarfile_to_samples(handler=wds.reraise_exception), shuffle)
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:  # webdataset adds the URL to what it raises
            raise DataError(f"{self.source.urls[0]} and others: {type(error).__name__}: {error}") from error
        raise DataError(f"{self.source.urls[0]}: no more samples; the run resumes from its last checkpoint with new ones")

    def _fill(self, slots: Tensor, positions: np.ndarray, samples: Iterator[dict[str, Any]]) -> WorkerShare:
        labels: list[int] = []
        label_ends, sample_ids = np.empty_like(positions), np.empty_like(positions)
        unreadable: list[Unreadable] = []
        digest = 0
        for i, position in enumerate(positions.tolist()):
            sample = self._first_readable(samples, position, slots[i], unreadable)
            labels += self._labels_of(sample)
            label_ends[i] = len(labels)
            sample_ids[i] = xxhash.xxh3_64_intdigest(f"{sample['__url__']} {sample['__key__']}".encode()) >> 1
            digest += derive_key(position, int(sample_ids[i]), xxhash.xxh3_64_intdigest(slots[i].numpy().data))
        return WorkerShare(
            labels=np.array(labels, np.int64),
            label_ends=label_ends,
            sample_ids=sample_ids,
            positions=positions,
            unreadable=unreadable,
            retries=[],
            digest=digest % DIGEST_MODULUS,
        )

    def _first_readable(
        self, samples: Iterator[dict[str, Any]], position: int, out: Tensor, unreadable: list[Unreadable]
    ) -> dict[str, Any]:
        for _ in range(UNREADABLE_IN_A_ROW):
            sample = next(samples)
            image = _first(sample, IMAGE_EXTENSIONS)
            try:
                self.transform(image, seed=self.seed, epoch=0, sample_id=position, out=out)
            except UnreadableImage as error:
                unreadable.append(Unreadable(position, sample["__key__"], sample["__url__"], str(error)))
            else:
                return sample
        raise DataError(f"{unreadable[-1].shard}: {UNREADABLE_IN_A_ROW} images in a row cannot be decoded")

    def _labels_of(self, sample: dict[str, Any]) -> list[int]:
        if self.labels == "none":
            return []
        shard, key = sample["__url__"], sample["__key__"]
        labels = parse_labels(_first(sample, LABEL_EXTENSIONS), shard=shard, key=key)
        if self.labels == "one":
            labels = (only_label(labels, shard=shard, key=key),)
        for label in labels:
            if not 0 <= label < self.num_classes:
                raise DataError(f"{shard}: sample {key!r} has class {label}, but model.num_classes={self.num_classes}")
        return list(labels)


def _first(sample: dict[str, Any], extensions: tuple[str, ...]) -> bytes:
    for extension in extensions:
        if extension in sample:
            return sample[extension]
    found = ", ".join(name for name in sample if not name.startswith("__"))
    raise DataError(f"{sample['__url__']}: sample {sample['__key__']!r} has none of {', '.join(extensions)} (it has {found})")
