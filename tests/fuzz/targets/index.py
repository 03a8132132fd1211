"""Index files give the index that was written, or a refusal."""

from __future__ import annotations

import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline.data.shards.index import ARRAYS, ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.index_location import INDEX_NAME
from pipeline.data.shards.scan import ShardEntry
from pipeline.errors import DataError
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.safetensors_files import mutate_file
from tests.fuzz.values import mutate_values

KEYS = (*ARRAYS, "shard_names", "__metadata__", "format", "fingerprint", "max_label", "num_unlabelled", "dtype", "shape",
        "data_offsets", "I64", "U64", "U16", "U8", "F32", "3")  # fmt: skip


def index_files(scratch: Path) -> Fuzzer:
    folder = scratch / "corpus"
    folder.mkdir(exist_ok=True)
    seeds, written = [], []
    for num_shards, num_blocks, skipped in ((1, 1, 0), (3, 4, 2), (2, 40, 5)):
        index = assemble_index(str(folder), [_entry(number, num_blocks, skipped) for number in range(num_shards)])
        save_index(index)
        seeds.append((folder / INDEX_NAME).read_bytes())
        written.append(index.fingerprint)
    return Fuzzer(
        make=lambda random: mutate_file(random.choice(seeds), random, change=_change_header),
        check=lambda data: _check(data, folder, written),
    )


def _entry(number: int, num_blocks: int, skipped: int) -> ShardEntry:
    blocks = np.arange(num_blocks)
    samples = (1 + blocks % 3).astype(np.uint16)
    num_unlabelled = min(number, int(samples.sum()))
    num_labelled = int(samples.sum()) - num_unlabelled
    return ShardEntry(
        name=f"shard-{number}.tar",
        num_bytes=4096 * num_blocks,
        block_offset=4096 * blocks,
        block_bytes=np.full(num_blocks, 4096),
        block_samples=samples,
        skipped_block=blocks[:skipped] % num_blocks,
        skipped_slot=np.zeros(min(skipped, num_blocks), np.uint16),
        num_skipped=skipped,
        block_content=(blocks + number).astype(np.uint64),
        num_unlabelled=num_unlabelled,
        num_several=0,
        images_of={number: num_labelled} if num_labelled else {},
    )


def _change_header(header: dict[str, Any], random: Random) -> Any:
    if random.random() < 0.3:  # two arrays take each other's found
        one, other = random.sample(sorted(header.keys() - {"__metadata__"}), 2)
        return header | {one: header[other], other: header[one]}
    return mutate_values(header, random, words=KEYS)


def _check(data: bytes, folder: Path, written: list[str]) -> Outcome:
    path = folder / INDEX_NAME
    path.unlink()  # another file, not other bytes in the one that is mapped
    path.write_bytes(data)
    try:
        index = load_index(str(folder))
    except DataError:
        return "refused"
    if index.fingerprint not in written:
        raise BrokenLaw("an index is read that was never written")
    _use(index)
    _use(pickle.loads(pickle.dumps(index)))
    return "taken"


def _use(index: ShardIndex) -> None:
    for block in range(index.num_blocks):
        found = index.byte_range(block)
        if found.num_bytes != 4096 or found.offset % 4096 or found.shard not in index.shard_names:
            raise BrokenLaw("a block lies elsewhere than it was written", details=str(found))
        index.skipped_in(block)
        index.describe_block(block)
    if index.num_samples != int(index.block_samples.sum()) or not isinstance(index.num_unlabelled, int):
        raise BrokenLaw("the counts do not agree")
