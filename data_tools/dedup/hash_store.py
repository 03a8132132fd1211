"""Store the hashes of a set's images, one file a shard.

FOLDER/.dedup/
  shard-000000.tar.safetensors    hashes, sizes and byte ranges of its images; what could not be decoded
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_tools.dedup.matching import HashTable
from data_tools.dedup.perceptual_hash import NUM_CROPS, NUM_FRAMES, VIEW_BYTES, ImageHashes
from data_tools.shards import list_shards
from pipeline.data.shards.folder import is_remote
from pipeline.errors import DataError
from pipeline.files import write_whole
from pipeline.json_text import parse_json

WORK_NAME = ".dedup"
HASH_ARRAYS = ("frames", "mirrored", "crops", "detail")


@dataclass(frozen=True)
class ImageSet:
    """Names the shards of one folder, and the folder where their hashes are kept."""

    path: str  # as the user gave it
    folder: str
    shards: tuple[str, ...]
    work: Path

    def shares_shards(self, other: ImageSet) -> bool:
        """Return whether some shard is in both sets."""
        return _identity(self.folder) == _identity(other.folder) and not set(self.shards).isdisjoint(other.shards)


@dataclass(frozen=True)
class HashedShard:
    """Holds the images of one shard that could be decoded, in the shard's order."""

    name: str
    facts: str
    keys: list[str]
    byte_ranges: NDArray[np.int64]  # (N, 2): first byte in the shard, and length, of the encoded image
    size: NDArray[np.int64]  # (N, 2): height and width
    hashes: HashTable
    undecodable: list[tuple[str, str]]  # key and reason
    num_without_image: int

    def __len__(self) -> int:
        return len(self.keys)


def open_set(path: str, *, work: str | None) -> ImageSet:
    """Return the tars of a folder or URL, or the one tar that is named.

    Args:
        work: where hashes go; a set gets a folder of its own in it. Next to the shards if not given, or for a URL in
            the current folder.

    Raises:
        DataError: no such path, or no tars in it.
    """
    listed = list_shards(path)
    if listed.compressed:
        raise DataError(f"{path}: {listed.compressed[0]} is compressed; `gunzip` (or `zstd -d`) it first")
    folder = listed.folder
    own_name = f"{folder.rpartition('/')[2]}-{hashlib.blake2b(_identity(folder).encode(), digest_size=4).hexdigest()}"
    default = Path(WORK_NAME, own_name) if is_remote(path) else Path(folder, WORK_NAME)
    return ImageSet(
        path=path,
        folder=folder,
        shards=listed.names,
        work=Path(work, own_name) if work else default,
    )


def _identity(folder: str) -> str:
    return folder if is_remote(folder) else os.path.realpath(folder)


def tabulate(hashes: Sequence[ImageHashes]) -> HashTable:
    """Return the hashes of images as one table."""
    return HashTable(
        frames=np.array([image.frames for image in hashes], np.uint8).reshape(-1, NUM_FRAMES, VIEW_BYTES),
        mirrored=np.array([image.mirrored for image in hashes], np.uint8).reshape(-1, NUM_FRAMES, VIEW_BYTES),
        crops=np.array([image.crops for image in hashes], np.uint8).reshape(-1, NUM_CROPS, VIEW_BYTES),
        detail=np.array([image.detail for image in hashes], np.float32),
    )


def _hashes_path(work: Path, name: str) -> Path:
    return work / f"{name}.safetensors"


def save_shard(work: Path, shard: HashedShard) -> None:
    """Write a shard's hashes, whole or not at all.

    Raises:
        DataError: they cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {name: getattr(shard.hashes, name) for name in HASH_ARRAYS}
    about = json.dumps({name: getattr(shard, name) for name in ("facts", "keys", "undecodable", "num_without_image")})
    data = save({**arrays, "place": shard.byte_ranges, "size": shard.size}, metadata={"about": about})
    try:
        write_whole(_hashes_path(work, shard.name), data, durability="unflushed")
    except OSError as error:
        raise DataError(f"hashes cannot be written to {work} ({error}); name another folder with --work") from error


def stored_facts(work: Path, name: str) -> str | None:
    """Return the facts that a shard's stored hashes depend on; None if no hashes are stored."""
    try:
        with safe_open(_hashes_path(work, name), framework="numpy") as file:
            return parse_json(file.metadata()["about"])["facts"]
    except (
        FileNotFoundError,
        SafetensorError,
        TypeError,
        KeyError,
        ValueError,
        AttributeError,
    ):  # never made, or written by another program
        return None


def load_shard(images: ImageSet, name: str) -> HashedShard:
    """Return the stored hashes of a shard.

    Raises:
        DataError: the file is damaged.
    """
    path = _hashes_path(images.work, name)
    try:
        return _read_shard(path, name)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and run the same command again") from error


def _read_shard(path: Path, name: str) -> HashedShard:
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in (*HASH_ARRAYS, "place", "size")}
        about = parse_json(file.metadata()["about"])
    keys, undecodable = about["keys"], [(str(key), str(reason)) for key, reason in about["undecodable"]]
    if not isinstance(keys, list) or type(about["num_without_image"]) is not int:
        raise ValueError("its facts are of other types")
    for key, (dtype, shape) in _shapes(len(keys)).items():
        if arrays[key].dtype != dtype or arrays[key].shape != shape:
            raise ValueError(f"its array {key} does not fit its {len(keys)} images")
    return HashedShard(
        name=name,
        facts=str(about["facts"]),
        keys=[str(key) for key in keys],
        byte_ranges=arrays["place"],
        size=arrays["size"],
        hashes=HashTable(**{key: arrays[key] for key in HASH_ARRAYS}),
        undecodable=undecodable,
        num_without_image=about["num_without_image"],
    )


def _shapes(num_images: int) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    views = (num_images, NUM_FRAMES, VIEW_BYTES)
    return {
        "frames": (np.uint8, views),
        "mirrored": (np.uint8, views),
        "crops": (np.uint8, (num_images, NUM_CROPS, VIEW_BYTES)),
        "detail": (np.float32, (num_images,)),
        "place": (np.int64, (num_images, 2)),
        "size": (np.int64, (num_images, 2)),
    }
