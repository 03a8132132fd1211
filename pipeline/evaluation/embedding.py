"""Compute features of shards, a file for each shard: any number of ranks share the shards, and none waits for another.

A shard is computed by one rank, in batches that are the same for every number of ranks. So its file is the same too, and a
file that is there is not computed again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.data.streams.train import Unreadable
from pipeline.errors import ConfigError, EvaluationError
from pipeline.evaluation.embedding_files import SUFFIXES, FileFormat, ShardFeatures, read_description, write_features
from pipeline.evaluation.reading import EvalBatch, Reading, read_batches
from pipeline.models.base import Backbone, ModelOutputs

Output = Literal["features", "pooled", "patches"]
Store = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[Store, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def share_of_rank(sizes: Sequence[int], *, rank: int, num_ranks: int) -> list[int]:
    """Return the numbers of the shards that a rank computes, ascending.

    The largest shard that is left goes to the rank that has the fewest samples, the first of these. Every rank divides alike,
    so they need not talk.
    """
    loads = [(0, number) for number in range(num_ranks)]
    mine: list[int] = []
    for shard in sorted(range(len(sizes)), key=lambda shard: (-sizes[shard], shard)):
        load, owner = heapq.heappop(loads)
        heapq.heappush(loads, (load + sizes[shard], owner))
        if owner == rank:
            mine.append(shard)
    return sorted(mine)


@dataclass(frozen=True)
class Wanted:
    """Says what is computed of each image, and how it is kept.

    Attributes:
        conditions: all that the values depend on, with names that `differences` knows. It is kept in each file, and files of
            other conditions are refused.
        about: further facts for each file, which are not compared.
    """

    outputs: tuple[Output, ...]
    store: Store
    format: FileFormat
    conditions: dict[str, Any]
    about: dict[str, Any]


_IN_WORDS = {
    "weights": "other weights",
    "model": "another model",
    "data": "other shards",
    "image_size": "another preprocessing",
    "short_side": "another preprocessing",
    "resize": "another preprocessing",
    "precision": "another precision",
    "store": "another storage type",
    "outputs": "another choice of --features",
    "format": "another file format",
}


def check_conditions(found: dict[str, Any], wanted: dict[str, Any], *, where: Path) -> None:
    """Refuse to go on with features that are of something else.

    Raises:
        ConfigError: with what differs.
    """
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names:
        words = dict.fromkeys(_IN_WORDS.get(name, name) for name in names)
        first = f"{names[0]} {str(found.get(names[0]))[:80]}, now {str(wanted[names[0]])[:80]}"
        raise ConfigError(
            f"{where} is of {' and '.join(words)} ({first}); name another OUT, or remove this one to compute it again"
        )


@dataclass
class Progress:
    """Counts what a rank has done, or found done.

    Attributes:
        unreadable: images that are left out, of new and old files.
    """

    num_files: int = 0
    num_images: int = 0
    num_found: int = 0  # files that were there
    num_unreadable: int = 0
    todo: list[int] = field(default_factory=list)  # shards that are not there


def path_of(out: Path, shard_name: str, format: FileFormat) -> Path:
    """Return the file of a shard's features."""
    return out / f"{shard_name.removesuffix('.tar')}{SUFFIXES[format]}"


def look_at_files(index: ShardIndex, shards: Sequence[int], *, out: Path, wanted: Wanted) -> Progress:
    """Return which of the shards have their file.

    Raises:
        ConfigError: a file is of other conditions.
        DataError: a file is damaged.
    """
    progress = Progress()
    for shard in shards:
        path = path_of(out, index.shard_names[shard], wanted.format)
        if not path.exists():
            progress.todo.append(shard)
            continue
        description = read_description(path)
        check_conditions(description, wanted.conditions, where=path)
        progress.num_found += 1
        progress.num_unreadable += len(description.get("unreadable", ()))
    return progress


def embed_shards(
    model: Backbone,
    index: ShardIndex,
    *,
    out: Path,
    wanted: Wanted,
    transform: EvalTransform,
    reading: Reading,
    progress: Progress,
) -> None:
    """Compute and write the files that are missing, and count in `progress`.

    Raises:
        EvaluationError: values are not finite, or a file cannot be written.
        ConfigError: the model has no such outputs.
        DataError: shards are damaged.
    """
    for shard, found in compute_features(model, index, progress.todo, wanted=wanted, transform=transform, reading=reading):
        path = path_of(out, index.shard_names[shard], wanted.format)
        try:
            write_features(path, found, format=wanted.format)
        except OSError as error:
            raise EvaluationError(
                f"{path} cannot be written ({error.strerror or error}); the same command goes on from here"
            ) from error
        progress.num_files += 1
        progress.num_images += len(found.keys)
        progress.num_unreadable += len(found.description["unreadable"])


def compute_features(
    model: Backbone,
    index: ShardIndex,
    shards: Sequence[int],
    *,
    wanted: Wanted,
    transform: EvalTransform,
    reading: Reading,
) -> Iterator[tuple[int, ShardFeatures]]:
    """Yield the number of each shard and its features, as soon as its last image is computed.

    Raises:
        EvaluationError, ConfigError, DataError: see `embed_shards`.
    """
    if not shards:
        return
    blocks = np.concatenate([_blocks_of(index, shard) for shard in shards])
    part = _Part(index, wanted)
    for batch in read_batches(index, transform=transform, labels="any", reading=reading, description="embed", blocks=blocks):
        part.add(batch, _compute(model, batch, wanted=wanted, reading=reading))
        if part.is_complete:
            yield part.shard, part.finish()
            part = _Part(index, wanted)


def _blocks_of(index: ShardIndex, shard: int) -> NDArray[np.int64]:
    return np.arange(index.shard_first_block[shard], index.shard_first_block[shard + 1], dtype=np.int64)


@torch.no_grad()
def _compute(model: Backbone, batch: EvalBatch, *, wanted: Wanted, reading: Reading) -> dict[str, Tensor]:
    """Return what is stored of a batch, on CPU."""
    with reading.autocast():
        found = model.forward_outputs(batch.images)
    values = {name: value.float().to(DTYPES[wanted.store]).cpu() for name, value in _choose(found, wanted.outputs).items()}
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            row = int((~value.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise EvaluationError(
                f"{name} of the image {batch.keys[row]!r} are not finite in {wanted.store}: the weights have diverged, or "
                "values overflow; --store fp32 and --precision fp32 have the widest range"
            )
    return values


@torch.no_grad()
def measure_outputs(model: Backbone, images: Tensor, *, wanted: Sequence[Output]) -> int:
    """Return the number of values that are stored of images.

    Raises:
        ConfigError: the model has no such outputs.
    """
    return sum(value.numel() for value in _choose(model.forward_outputs(images), wanted).values())


def _choose(found: ModelOutputs, names: Sequence[Output]) -> dict[str, Tensor]:
    tensors = {"features": found.representation, "pooled": found.pooled, "patches": found.patches}
    chosen = {name: tensor for name in names if (tensor := tensors[name]) is not None}
    if missing := [name for name in names if name not in chosen]:
        raise ConfigError(f"--features {missing[0]}: this model has none; it has {', '.join(_names_of(tensors))}")
    return chosen


def _names_of(tensors: dict[str, Tensor | None]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor is not None]


class _Part:
    """Collects one shard's features, without its images."""

    def __init__(self, index: ShardIndex, wanted: Wanted) -> None:
        self._index = index
        self._wanted = wanted
        self._keys: list[str] = []
        self._labels: list[Tensor] = []
        self._num_labels: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._values: dict[str, list[Tensor]] = {name: [] for name in wanted.outputs}
        self._unreadable: list[Unreadable] = []
        self.shard = 0

    def add(self, batch: EvalBatch, values: dict[str, Tensor]) -> None:
        self.shard = self._index.shard_of(batch.block)
        self._keys += batch.keys
        self._labels.append(batch.labels.cpu())
        self._num_labels.append(torch.diff(batch.label_ends.cpu(), prepend=torch.zeros(1, dtype=torch.int64)))
        self._positions.append(batch.positions)
        self._unreadable += batch.unreadable
        for name, value in values.items():
            self._values[name].append(value)

    @property
    def is_complete(self) -> bool:
        return len(self._keys) + len(self._unreadable) == self._index.shard_samples[self.shard]

    def finish(self) -> ShardFeatures:
        """Return the shard's features."""
        description = {
            **self._wanted.conditions,
            **self._wanted.about,
            "shard": self._index.shard_names[self.shard],
            "num_images": len(self._keys),
            "num_unreadable": len(self._unreadable),
            "unreadable": [{"key": u.key, "position": u.position, "reason": u.reason} for u in self._unreadable],
        }
        return ShardFeatures(
            keys=self._keys,
            labels=torch.cat(self._labels),
            label_ends=torch.cumsum(torch.cat(self._num_labels), dim=0),
            positions=torch.cat(self._positions),
            values={name: torch.cat(some) for name, some in self._values.items()},
            description=description,
        )
