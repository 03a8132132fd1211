"""Blocks of samples by range read: `pread` on local files, fsspec for everything else."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from fsspec.core import url_to_fs
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipeline.data.index import ShardIndex
from pipeline.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
MAX_OPEN_SHARDS = 128


@dataclass(frozen=True)
class RawSample:
    """One sample as stored: the image still encoded, its class, and where it came from."""

    key: str
    shard: str
    image: bytes
    label: int


class RangeSource(Protocol):
    """Reads bytes [start, start + length) of a shard; fewer only where the shard ends."""

    def read(self, shard: str, start: int, length: int) -> bytes: ...


class LocalSource:
    """Shards in a local or network-mounted folder, kept open, read with `pread`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, start: int, length: int) -> bytes:
        return os.pread(self._open(shard), length, start)

    def _open(self, shard: str) -> int:
        if shard not in self._descriptors:
            if len(self._descriptors) >= MAX_OPEN_SHARDS:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[shard] = os.open(os.path.join(self.folder, shard), os.O_RDONLY)
        self._descriptors.move_to_end(shard)
        return self._descriptors[shard]


class FsspecSource:
    """Shards behind any fsspec URL (s3://, gs://, https://): one range request a block."""

    def __init__(self, folder: str) -> None:
        self._filesystem, self._root = url_to_fs(folder)

    def read(self, shard: str, start: int, length: int) -> bytes:
        return self._filesystem.cat_file(f"{self._root}/{shard}", start=start, end=start + length)


def open_source(folder: str) -> RangeSource:
    """The right source for a folder or URL."""
    return FsspecSource(folder) if "://" in folder else LocalSource(folder)


class BlockReader:
    """Reads and parses blocks, keeping the most recent ones: a stream plays a block for many steps.

    Args:
        index: the corpus.
        capacity: parsed blocks kept; at least the number of streams this reader serves.
        image_extensions: member extensions that hold the image, the first present wins.
        label_extensions: likewise for the label: `cls` (a number in ASCII) or `json` (a number, or {"label": n}).
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        capacity: int,
        image_extensions: tuple[str, ...] = IMAGE_EXTENSIONS,
        label_extensions: tuple[str, ...] = ("cls", "json"),
    ) -> None:
        self.index = index
        self.capacity = capacity
        self.image_extensions = image_extensions
        self.label_extensions = label_extensions
        self._source = open_source(index.folder)
        self._blocks: OrderedDict[int, list[RawSample]] = OrderedDict()

    def read(self, block: int) -> list[RawSample]:
        """All samples of a block, in the file's order.

        Raises:
            DataError: shard missing or cut short, or contents that differ from the index.
        """
        if block not in self._blocks:
            if len(self._blocks) >= self.capacity:
                self._blocks.popitem(last=False)
            self._blocks[block] = self._load(block)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _load(self, block: int) -> list[RawSample]:
        index = self.index
        shard = index.shard_names[index.block_shard[block]]
        length = int(index.block_bytes[block])
        try:
            data = self._source.read(shard, int(index.block_offset[block]), length)
        except FileNotFoundError as error:
            raise DataError(f"{index.folder}/{shard} is missing; restore it, or index the folder again") from error
        if len(data) != length:
            raise DataError(f"{index.describe_block(block)}: only {len(data)} of {length} bytes there; the shard is cut short")
        try:
            samples = [self._raw_sample(sample, shard) for sample in _parse_tar(data)]
        except (tarfile.TarError, ValueError) as error:
            raise DataError(f"{index.describe_block(block)}: {error}; index the folder again if its shards changed") from error
        if len(samples) != index.block_samples[block]:
            raise DataError(
                f"{index.describe_block(block)}: {len(samples)} samples, the index says {index.block_samples[block]}; "
                f"index the folder again if its shards changed"
            )
        return samples

    def _raw_sample(self, sample: dict[str, Any], shard: str) -> RawSample:
        key = sample["__key__"]
        image = next((sample[ext] for ext in self.image_extensions if ext in sample), None)
        label = next((sample[ext] for ext in self.label_extensions if ext in sample), None)
        if image is None or label is None:
            wanted, looked = ("image", self.image_extensions) if image is None else ("label", self.label_extensions)
            found = ", ".join(ext for ext in sample if not ext.startswith("__"))
            raise DataError(f"{shard}: sample {key!r} has no {wanted} (looked for {', '.join(looked)}; it has {found})")
        return RawSample(key=key, shard=shard, image=image, label=_parse_label(label, shard=shard, key=key))


def _parse_tar(data: bytes) -> list[dict[str, Any]]:
    members = ({**member, "__url__": ""} for member in tar_file_iterator(io.BytesIO(data)))  # type: ignore[arg-type]
    return list(group_by_keys(members))


def _parse_label(text: bytes, *, shard: str, key: str) -> int:
    try:
        value = json.loads(text)
        return int(value["label"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError) as error:
        shown = text[:40].decode(errors="replace")
        raise DataError(f"{shard}: label of sample {key!r} is {shown!r}, not a class number") from error
