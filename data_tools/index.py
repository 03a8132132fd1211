"""Index the shards of a folder: what `pipeline` needs beside the tars."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from data_tools.parallel import map_in_processes
from pipeline.data.folder import ShardFolder
from pipeline.data.index import ShardEntry, ShardIndex, assemble_index, save_index, scan_shard
from pipeline.data.skips import read_skips
from pipeline.errors import DataError


def index_folder(folder: str, *, block_samples: int, num_workers: int, skip_lists: Sequence[str] = ()) -> ShardIndex:
    """Scan every tar of a folder, local or remote, and write its index.

    Args:
        skip_lists: files of samples to leave out.

    Raises:
        DataError: naming the first shard that is damaged, compressed or empty, or a skip list of other shards.
    """
    names = ShardFolder(folder).list_shards()
    skips: dict[str, set[str]] = defaultdict(set)
    for path in skip_lists:
        for skip in read_skips(path):
            if skip.shard not in names:
                raise DataError(f"skip list {path} names shard {skip.shard!r}, which {folder} does not hold")
            skips[skip.shard].add(skip.key)
    tasks = [(name, frozenset(skips[name])) for name in names]
    scan = partial(_scan_shard, folder, block_samples)
    entries = dict(
        map_in_processes(
            scan, tasks, num_workers=num_workers, description="index shards", unit="shard", name_task=lambda task: task[0]
        )
    )
    index = assemble_index(folder, list(entries.values()))
    save_index(index)
    return index


def _scan_shard(folder: str, block_samples: int, task: tuple[str, frozenset[str]]) -> ShardEntry:
    name, skip = task
    shards = ShardFolder(folder)
    with shards.open(name) as file:
        return scan_shard(file, name=name, num_bytes=shards.size(name), block_samples=block_samples, skip=skip)
