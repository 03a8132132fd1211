"""The index of a shard folder: where each block of consecutive samples lies, so one range read brings it in.

    FOLDER/
      shard-000000.tar ...    plain WebDataset tars
      index.npz               written by `python -m data_tools index FOLDER`
      classes.txt             class names in the order of their ids, where `python -m data_tools make` knew them

A block's bytes are whole tar members, so they are themselves a tar.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext

from pipeline.errors import DataError

INDEX_NAME = "index.npz"
CLASSES_NAME = "classes.txt"
FORMAT_VERSION = 1
DEFAULT_BLOCK_SAMPLES = 32


@dataclass(frozen=True)
class ShardEntry:
    """One tar: its name in the folder, its size, and its blocks' byte ranges and sample counts."""

    name: str
    num_bytes: int
    block_offsets: NDArray[np.int64]
    block_bytes: NDArray[np.int64]
    block_samples: NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """All blocks of a folder of shards. Blocks are numbered through the shards in name order, samples likewise."""

    folder: str
    shard_names: tuple[str, ...]
    shard_bytes: NDArray[np.int64]  # (num_shards,)
    block_shard: NDArray[np.int32]  # (num_blocks,)
    block_offset: NDArray[np.int64]  # (num_blocks,) bytes from the start of the shard
    block_bytes: NDArray[np.int64]  # (num_blocks,)
    block_samples: NDArray[np.int64]  # (num_blocks,)
    first_sample: NDArray[np.int64]  # (num_blocks + 1,) id of each block's first sample; the last is the total

    @property
    def num_samples(self) -> int:
        return int(self.first_sample[-1])

    @property
    def num_blocks(self) -> int:
        return len(self.block_shard)

    @property
    def fingerprint(self) -> str:
        """Hash of everything the sample order depends on. The folder's place is not part of it."""
        digest = hashlib.blake2b("\n".join(self.shard_names).encode(), digest_size=16)
        for array in (self.shard_bytes, self.block_offset, self.block_bytes, self.block_samples):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    def describe_block(self, block: int) -> str:
        """Where a block lies, for messages."""
        shard = self.shard_names[self.block_shard[block]]
        start = int(self.block_offset[block])
        return f"{self.folder}/{shard} bytes {start}-{start + int(self.block_bytes[block])}"


def assemble_index(folder: str, shards: list[ShardEntry]) -> ShardIndex:
    """Join shards, sorted by name, into one index.

    Raises:
        DataError: no samples at all.
    """
    shards = sorted(shards, key=lambda shard: shard.name)
    block_samples = np.concatenate([shard.block_samples for shard in shards]) if shards else np.zeros(0, np.int64)
    if block_samples.sum() == 0:
        raise DataError(f"{folder}: no samples in its shards; `python -m data_tools make` writes some")
    return ShardIndex(
        folder=folder,
        shard_names=tuple(shard.name for shard in shards),
        shard_bytes=np.array([shard.num_bytes for shard in shards], np.int64),
        block_shard=np.repeat(np.arange(len(shards), dtype=np.int32), [len(s.block_samples) for s in shards]),
        block_offset=np.concatenate([shard.block_offsets for shard in shards]),
        block_bytes=np.concatenate([shard.block_bytes for shard in shards]),
        block_samples=block_samples,
        first_sample=np.concatenate([[0], np.cumsum(block_samples)]),
    )


def scan_tar(file: BinaryIO, *, name: str, num_bytes: int, block_samples: int) -> ShardEntry:
    """Read a tar's headers and cut it into blocks of up to `block_samples` samples.

    Consecutive members with the same key (the path up to the first dot of its last part) are one sample, as in
    WebDataset. Extended headers travel with their member.

    Raises:
        DataError: compressed, cut short, not a tar, or empty of samples.
    """
    starts: list[int] = []  # where each sample's first header begins
    end = 0
    last_key: str | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _ = base_plus_ext(member.name) if member.isreg() else (None, None)
                if key is not None and key != last_key:
                    starts.append(member.offset)
                    last_key = key
                end = member.offset_data + (-(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if member.isreg() else 0)
                tar.members = []  # type: ignore[misc]  # tarfile keeps every header otherwise
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name}: not a whole, uncompressed tar ({error}); shards must be plain .tar files") from error
    if end > num_bytes:
        raise DataError(f"{name}: cut short: its last member needs {end} bytes, the file has {num_bytes}; copy it again")
    if not starts:
        raise DataError(f"{name}: no samples; members must be named KEY.EXTENSION, for example 000017.jpg and 000017.cls")
    block_starts = np.array(starts[::block_samples], np.int64)
    counts = np.full(len(block_starts), block_samples, np.int64)
    counts[-1] = len(starts) - block_samples * (len(block_starts) - 1)
    return ShardEntry(
        name=name,
        num_bytes=num_bytes,
        block_offsets=block_starts,
        block_bytes=np.diff(np.append(block_starts, end)),
        block_samples=counts,
    )


def save_index(index: ShardIndex, path: str) -> None:
    """Write the index file (numpy's npz, no pickles), whole or not at all on a local disk."""
    temporary = f"{path}.part"
    with fsspec.open(temporary, "wb") as file:
        np.savez(
            file,  # type: ignore[arg-type]
            format_version=np.int64(FORMAT_VERSION),
            shard_names=np.array(index.shard_names),
            shard_bytes=index.shard_bytes,
            block_shard=index.block_shard,
            block_offset=index.block_offset,
            block_bytes=index.block_bytes,
            block_samples=index.block_samples,
        )
    filesystem, place = url_to_fs(path)
    filesystem.mv(url_to_fs(temporary)[1], place)


def load_index(path: str) -> ShardIndex:
    """Read the index of a shard folder, given the folder or its `index.npz`; local or any fsspec URL.

    Raises:
        DataError: no such folder, no index in it, or an index of another format.
    """
    folder = path.removesuffix(INDEX_NAME).rstrip("/") or "."
    try:
        filesystem, place = url_to_fs(f"{folder}/{INDEX_NAME}")
        is_there = filesystem.exists(place)
        holds_tars = is_there or any(name.endswith(".tar") for name in _list_names(folder))
    except ImportError as error:
        raise DataError(f"data folder {folder!r}: {error} (`pip install` the package it names)") from error
    except (OSError, ValueError) as error:
        raise DataError(f"data folder {folder!r} cannot be reached: {error}") from error
    if not is_there:
        if holds_tars:
            raise DataError(f"data folder {folder!r} holds no index; make one with `python -m data_tools index {folder}`")
        raise DataError(
            f"data folder {folder!r} does not exist or holds no shards; check the path, or make shards with "
            f"`python -m data_tools make IMAGES {folder}`"
        )
    try:
        return _read_index(filesystem, place, folder)
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{place} is damaged ({error}); make it anew with `python -m data_tools index {folder}`") from error


def _list_names(folder: str) -> list[str]:
    filesystem, place = url_to_fs(folder)
    return [str(name) for name in filesystem.ls(place, detail=False)] if filesystem.isdir(place) else []


def _read_index(filesystem: Any, place: str, folder: str) -> ShardIndex:
    with filesystem.open(place, "rb") as file, np.load(file, allow_pickle=False) as stored:
        if int(stored["format_version"]) != FORMAT_VERSION:
            raise DataError(
                f"{place}: index format {int(stored['format_version'])}, this software reads {FORMAT_VERSION}; make it anew"
            )
        samples = stored["block_samples"]
        return ShardIndex(
            folder=folder,
            shard_names=tuple(str(name) for name in stored["shard_names"]),
            shard_bytes=stored["shard_bytes"],
            block_shard=stored["block_shard"],
            block_offset=stored["block_offset"],
            block_bytes=stored["block_bytes"],
            block_samples=samples,
            first_sample=np.concatenate([[0], np.cumsum(samples)]),
        )


def read_class_names(index: ShardIndex) -> list[str] | None:
    """Class names by id, or None where the folder does not say."""
    filesystem, place = url_to_fs(f"{index.folder}/{CLASSES_NAME}")
    return filesystem.cat_file(place).decode().splitlines() if filesystem.exists(place) else None


def check_shards(index: ShardIndex) -> None:
    """Compare every shard's size with the index, before a run starts.

    Raises:
        DataError: naming the first missing shards and those of another size.
    """
    problems = list(_shard_problems(index))
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(
            f"shards differ from the index of {index.folder}: {'; '.join(problems[:5])}{more}. "
            f"Restore them, or index the folder again with `python -m data_tools index {index.folder}`"
        )


def _shard_problems(index: ShardIndex) -> Iterator[str]:
    filesystem, root = url_to_fs(index.folder)
    for name, expected in zip(index.shard_names, index.shard_bytes, strict=True):
        try:
            size = filesystem.size(f"{root}/{name}")
        except FileNotFoundError:
            yield f"{name} is missing"
            continue
        if size != expected:
            yield f"{name} has {size} bytes, not {expected}"


def list_shards(folder: str) -> list[str]:
    """Names of the tars in a local folder, sorted.

    Raises:
        DataError: no folder, no tars in it, or compressed ones.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"shard folder {folder!r} does not exist or is not a folder")
    compressed = [path.name for path in root.iterdir() if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    if compressed:
        raise DataError(f"{folder}: {compressed[0]} is compressed; range reads need plain tars: `gunzip` them first")
    names = sorted(path.name for path in root.iterdir() if path.suffix == ".tar")
    if not names:
        raise DataError(f"{folder}: no .tar files in it")
    return names
