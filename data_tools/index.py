"""Index the shards of a folder: what `pipeline` needs beside the tars."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.data.index import INDEX_NAME, ShardEntry, ShardIndex, assemble_index, list_shards, save_index, scan_tar


def index_folder(folder: str, *, block_samples: int, num_workers: int) -> ShardIndex:
    """Scan every tar of a local folder and write its index.

    Raises:
        DataError: naming the first shard that is damaged, compressed or empty.
    """
    names = list_shards(folder)
    scan = partial(_scan_shard, folder, block_samples)
    with multiprocessing.get_context("spawn").Pool(min(num_workers, len(names))) as pool:
        shards = list(tqdm(pool.imap(scan, names), total=len(names), desc="index shards", unit="shard"))
    index = assemble_index(folder, shards)
    save_index(index, f"{folder.rstrip('/')}/{INDEX_NAME}")
    return index


def _scan_shard(folder: str, block_samples: int, name: str) -> ShardEntry:
    path = Path(folder) / name
    with path.open("rb") as file:
        return scan_tar(file, name=str(name), num_bytes=path.stat().st_size, block_samples=block_samples)
