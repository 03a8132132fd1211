"""Read and write the index of a shard folder. It says where each block of consecutive samples lies, for one range read.

    FOLDER/
      shard-000000.tar ...    plain WebDataset tars
      index.safetensors       written by `python -m data_tools index FOLDER`; `--out` puts it elsewhere
      classes.txt             class names in the order of their ids, where `python -m data_tools make` knew them

A block's bytes are whole tar members, so they are themselves a tar. The file is mapped, not read: all processes of a
machine share its pages.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pipeline.data.class_counts import ClassCounts
from pipeline.data.shards.folder import ShardFolder, describe_hub_path
from pipeline.data.shards.index_location import INDEX_NAME, READ_ERRORS, find_index, identify, local_file
from pipeline.data.shards.scan import ShardEntry
from pipeline.data.wrong_path import advise_on_folder
from pipeline.errors import DataError
from pipeline.json_text import parse_json

FORMAT_VERSION = "3"
DEFAULT_BLOCK_SAMPLES = 32
MAX_BLOCK_SAMPLES = 2**16 - 1


class BlockRange(NamedTuple):
    """Locates a block."""

    shard: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """Holds all blocks of a folder of shards. Blocks are numbered through the shards in name order, samples likewise."""

    folder: str
    shard_names: tuple[str, ...]
    shard_bytes: NDArray[np.int64]  # (num_shards,)
    shard_first_block: NDArray[np.int64]  # (num_shards + 1,)
    block_offset: NDArray[np.int64]  # (num_blocks,) bytes from the start of the shard
    block_bytes: NDArray[np.int64]  # (num_blocks,)
    block_samples: NDArray[np.uint16]  # (num_blocks,)
    first_sample: NDArray[np.int64]  # (num_blocks + 1,) id of each block's first sample; the last is the total
    skipped_block: NDArray[np.int64]  # (num_skipped,) ascending: samples in a block that are not part of the corpus
    skipped_slot: NDArray[np.uint16]  # (num_skipped,) slot of each among the samples in its block's bytes
    block_content: NDArray[np.uint64]  # (num_blocks,) keys, members' sizes and labels of its samples: see `content`
    max_label: int | None  # the largest class of any sample; None if none has a usable label
    num_unlabelled: int  # samples without a usable label
    file: str | None = None  # the file that the arrays are mapped from
    class_counts: ClassCounts | None = None  # images of each class; None where an older version made the index
    num_several: int = 0  # samples with a list of labels that are not exactly one
    kept_in: str | None = None  # folder of the index, where it does not lie next to the shards
    stored_fingerprint: str | None = None  # as the file has it

    @property
    def num_samples(self) -> int:
        return int(self.first_sample[-1])

    @property
    def num_blocks(self) -> int:
        return len(self.block_offset)

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders that may hold the corpus's files besides its shards: the index's own, then the shards'."""
        return (self.folder,) if self.kept_in is None else (self.kept_in, self.folder)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hash of what the sample order depends on, and of all keys and labels. The folder's path does not count."""
        return self._hash(ARRAYS)

    @functools.cached_property
    def order_fingerprint(self) -> str:
        """Return a hash of what the sample order alone depends on: the fingerprint of format 2's indexes, without labels."""
        return self._hash(ORDER_ARRAYS)

    def _hash(self, arrays: tuple[str, ...]) -> str:
        digest = hashlib.blake2b("\n".join(self.shard_names).encode(), digest_size=16)
        for name in arrays:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()

    def shard_of(self, block: int) -> int:
        """Return the number of the shard that holds a block."""
        return int(np.searchsorted(self.shard_first_block, block, side="right")) - 1

    @functools.cached_property
    def shard_samples(self) -> NDArray[np.int64]:
        """Return the number of samples of each shard: (num_shards,)."""
        return np.diff(self.first_sample[self.shard_first_block])

    def byte_range(self, block: int) -> BlockRange:
        """Return the shard and byte range of a block."""
        return BlockRange(self.shard_names[self.shard_of(block)], int(self.block_offset[block]), int(self.block_bytes[block]))

    def skipped_in(self, block: int) -> set[int]:
        """Return the slots of a block's bytes whose samples are not part of the corpus."""
        first, last = np.searchsorted(self.skipped_block, [block, block + 1])
        return set(self.skipped_slot[first:last].tolist())

    def describe_block(self, block: int) -> str:
        """Return where a block lies, for messages."""
        shard, start, num_bytes = self.byte_range(block)
        return f"{self.folder}/{shard} bytes {start}-{start + num_bytes}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the file again instead of receiving a copy.
        values = tuple(getattr(self, field.name) for field in fields(self))
        return (ShardIndex, values) if self.file is None else (_map_index, (self.file, self.folder, self.kept_in))


ORDER_ARRAYS = (
    "shard_bytes",
    "shard_first_block",
    "block_offset",
    "block_bytes",
    "block_samples",
    "first_sample",
    "skipped_block",
    "skipped_slot",
)
ARRAYS = (*ORDER_ARRAYS, "block_content")
DTYPES = dict.fromkeys(ARRAYS, np.int64) | {"block_samples": np.uint16, "skipped_slot": np.uint16, "block_content": np.uint64}
STORED_NAMES = {"skipped_slot": "skipped_place"}  # arrays whose name in the file is another
CLASS_IDS, CLASS_IMAGES = "class_ids", "class_images"  # older indexes of this format lack these
STORED_AS = {np.int64: "I64", np.uint16: "U16", np.uint8: "U8", np.uint64: "U64"}


def assemble_index(folder: str, shards: list[ShardEntry]) -> ShardIndex:
    """Join shards, sorted by name, into one index.

    Raises:
        DataError: no samples at all.
    """
    shards = sorted((shard for shard in shards if len(shard.block_samples)), key=lambda shard: shard.name)
    if not shards:
        raise DataError(f"{folder}: no samples in its shards, or all of them skipped; `python -m data_tools make` writes some")
    class_counts = ClassCounts.join(shard.images_of for shard in shards)
    first_block = np.concatenate([[0], np.cumsum([len(shard.block_samples) for shard in shards])])
    block_samples = np.concatenate([shard.block_samples for shard in shards])
    return ShardIndex(
        folder=folder,
        shard_names=tuple(shard.name for shard in shards),
        shard_bytes=np.array([shard.num_bytes for shard in shards], np.int64),
        shard_first_block=first_block,
        block_offset=np.concatenate([shard.block_offset for shard in shards]),
        block_bytes=np.concatenate([shard.block_bytes for shard in shards]),
        block_samples=block_samples,
        first_sample=np.concatenate([[0], np.cumsum(block_samples, dtype=np.int64)]),
        skipped_block=np.concatenate([shard.skipped_block + first for shard, first in zip(shards, first_block, strict=False)]),
        skipped_slot=np.concatenate([shard.skipped_slot for shard in shards]),
        block_content=np.concatenate([shard.block_content for shard in shards]),
        max_label=int(class_counts.ids[-1]) if len(class_counts.ids) else None,
        num_unlabelled=sum(shard.num_unlabelled for shard in shards),
        class_counts=class_counts,
        num_several=sum(shard.num_several for shard in shards),
    )


def save_index(index: ShardIndex, out: str | None = None) -> None:
    """Write the index file next to the shards, or elsewhere; whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    arrays = {STORED_NAMES.get(name, name): np.ascontiguousarray(getattr(index, name)) for name in ARRAYS}
    names = np.frombuffer("\n".join(index.shard_names).encode(), np.uint8)
    counts = index.class_counts
    of_classes = {} if counts is None else {CLASS_IDS: counts.ids, CLASS_IMAGES: counts.images}
    # An index elsewhere names its shards' folder, so that the index of another folder does not replace it.
    whose = {} if out is None else {"shards": identify(index.folder)}
    data = save({**arrays, **of_classes, "shard_names": names}, metadata={**_facts(index), **whose})
    folder, name = find_index(index.folder, out)
    ShardFolder(folder).write(name, data)


def _facts(index: ShardIndex) -> dict[str, str]:
    labels = {name: json.dumps(getattr(index, name)) for name in ("max_label", "num_unlabelled", "num_several")}
    return {"format": FORMAT_VERSION, "fingerprint": index.fingerprint, **labels}


def load_index(path: str, index: str | None = None) -> ShardIndex:
    """Load the index of a shard folder, given the folder or its index file; local or any fsspec URL.

    Args:
        index: folder or file of the index, where it does not lie next to the shards.

    Raises:
        DataError: no such folder, no index in it, or an index of another format or that is damaged.
    """
    root = path.removesuffix(INDEX_NAME).rstrip("/") or ("/" if path.startswith("/") else ".")
    if (advice := advise_on_folder(root, index_name=INDEX_NAME)) is not None:
        raise DataError(advice)
    folder = ShardFolder(root)
    if index is not None:
        elsewhere, name = find_index(folder.path, index)
        kept_in = ShardFolder(elsewhere)
        if not kept_in.exists(name):
            raise DataError(
                f"no index at {kept_in.full_path(name)}; make it with `python -m data_tools index {folder.path} --out {index}`"
            )
        return _load(local_file(kept_in, name), folder.path, kept_in.path)
    if not folder.exists(INDEX_NAME):
        if any(name.endswith(".tar") for name in folder.list_names()):
            raise DataError(
                f"data folder {folder.path!r} holds no index; make one with `python -m data_tools index {folder.path}`, with "
                f"`--out PLACE` where nothing can be written there: {{url: {folder.path}, index: PLACE}} then names both"
            )
        raise DataError(
            f"data folder {folder.path!r} does not exist or holds no shards; check the path, or make shards with "
            f"`python -m data_tools make IMAGES {folder.path}`{describe_hub_path(folder.path)}"
        )
    return _load(local_file(folder, INDEX_NAME), folder.path, None)


def _load(file: str, folder: str, kept_in: str | None) -> ShardIndex:
    """Map an index and compare it with its fingerprint, once: a worker that maps it again does not check it."""
    index = _map_index(file, folder, kept_in)
    if index.stored_fingerprint != index.fingerprint:
        raise _damaged(file, folder, kept_in, "its arrays are not those that were written")
    return index


def _map_index(file: str, folder: str, kept_in: str | None) -> ShardIndex:
    """Map a safetensors file: eight bytes of header length, the header in JSON, then the arrays."""
    try:
        with open(file, "rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(data[:8], "little")
        header = parse_json(data[8:start])
        facts = header.pop("__metadata__")
        if facts.get("format") != FORMAT_VERSION:
            raise DataError(_other_format(file, folder, facts.get("format"), kept_in))
        names = tuple(_map_array(data, start, header["shard_names"], np.uint8).tobytes().decode().split("\n"))
        max_label, num_unlabelled = parse_json(facts["max_label"]), parse_json(facts["num_unlabelled"])
        num_several = parse_json(facts.get("num_several", "0"))  # which older indexes of this format lack
        if not (max_label is None or type(max_label) is int) or {type(num_unlabelled), type(num_several)} != {int}:
            raise ValueError("its largest label is not a number")
        index = ShardIndex(
            folder=folder,
            shard_names=names,
            file=file,
            kept_in=kept_in,
            max_label=max_label,
            num_unlabelled=num_unlabelled,
            stored_fingerprint=facts["fingerprint"],
            class_counts=_map_counts(data, start, header),
            num_several=num_several,
            **{name: _map_array(data, start, header[STORED_NAMES.get(name, name)], DTYPES[name]) for name in ARRAYS},
        )
        _check_lengths(index)
        if index.class_counts is not None:
            index.class_counts.check(None if num_several else index.num_samples - index.num_unlabelled)
        return index
    except READ_ERRORS as error:
        raise _damaged(file, folder, kept_in, error) from error


def _damaged(file: str, folder: str, kept_in: str | None, reason: object) -> DataError:
    return DataError(f"{file} is damaged ({str(reason)[:200]}); make it again with {_command(folder, kept_in)}")


def _command(folder: str, kept_in: str | None) -> str:
    """Return the command that makes an index."""
    return f"`python -m data_tools index {folder}{'' if kept_in is None else f' --out {kept_in}'}`"


def _other_format(file: str, folder: str, version: str | None, kept_in: str | None) -> str:
    again = _command(folder, kept_in)
    if version is not None and version.isdigit() and int(version) > int(FORMAT_VERSION):
        return f"{file}: index format {version} of a newer version; this one reads {FORMAT_VERSION}: update it, or run {again}"
    return (
        f"{file}: index format {version}; this software reads {FORMAT_VERSION}, which knows the labels too. Run {again} once "
        f"more, with the --skip lists that it was made with; runs in progress go on with it"
    )


def _map_array(data: mmap.mmap, start: int, entry: dict[str, Any], dtype: type[np.generic]) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    if entry["dtype"] != STORED_AS[dtype] or not 0 <= first <= last <= len(data) - start:
        raise ValueError("its header is not that of an index")
    return np.frombuffer(data, dtype, count=(last - first) // np.dtype(dtype).itemsize, offset=start + first)


def _map_counts(data: mmap.mmap, start: int, header: dict[str, Any]) -> ClassCounts | None:
    if CLASS_IDS not in header:
        return None
    return ClassCounts(*(_map_array(data, start, header[name], np.int64) for name in (CLASS_IDS, CLASS_IMAGES)))


def _check_lengths(index: ShardIndex) -> None:
    num_shards, num_blocks = len(index.shard_names), index.num_blocks
    pairs = (
        (index.shard_bytes, num_shards),
        (index.shard_first_block, num_shards + 1),
        (index.block_bytes, num_blocks),
        (index.block_samples, num_blocks),
        (index.first_sample, num_blocks + 1),
        (index.block_content, num_blocks),
        (index.skipped_slot, len(index.skipped_block)),
    )
    if num_blocks == 0 or any(len(array) != length for array, length in pairs):
        raise ValueError("its arrays do not fit together")


def check_shards(index: ShardIndex) -> None:
    """Compare every shard's size with the index, before a run starts.

    Raises:
        DataError: shards are missing or have another size; the message names the first.
    """
    problems = list(_shard_problems(index))
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(
            f"shards differ from the index of {index.folder}: {'; '.join(problems[:5])}{more}. "
            f"Restore them, or index the folder again with `python -m data_tools index {index.folder}`"
        )


def _shard_problems(index: ShardIndex) -> Iterator[str]:
    sizes = ShardFolder(index.folder).sizes(index.shard_names)
    for name, expected in zip(index.shard_names, index.shard_bytes.tolist(), strict=True):
        if sizes.get(name) is None:
            yield f"{name} is missing"
        elif sizes[name] != expected:
            yield f"{name} has {sizes[name]} bytes, not {expected}"
