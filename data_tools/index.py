"""Index the shards of a folder: what `pipeline` needs next to the tars."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_tools.folder_lock import lock_folder
from data_tools.parallel import Workers
from data_tools.shard_names import check_finished, lines, remark
from data_tools.shards import describe_hidden, store_errors
from data_tools.splits import select_shards
from pipeline.data.shards.folder import ShardFolder, describe_read_only, is_remote
from pipeline.data.shards.index import ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.index_location import find_index, identify, read_owner
from pipeline.data.shards.scan import ShardEntry, scan_shard
from pipeline.data.shards.skips import read_skips
from pipeline.errors import DataError


@dataclass(frozen=True)
class Indexed:
    """Describes an index that was made, and the files of the folder that are not in it."""

    index: ShardIndex
    empty: tuple[str, ...]  # tars without any member, or whose samples are all skipped
    hidden: tuple[str, ...]  # files that begin with a dot
    remarks: tuple[str, ...]  # on what the folder's names say


def index_folder(
    folder: str,
    *,
    block_samples: int,
    workers: Workers,
    skip_lists: Sequence[str] = (),
    split: str | None = None,
    out: str | None = None,
) -> Indexed:
    """Scan every tar of a folder, local or remote, and write its index.

    Args:
        skip_lists: files of samples to leave out.
        split: take the tars of this split alone, by their names.
        out: folder or file where the index goes, for shards in a folder that cannot be written.

    Raises:
        DataError: naming the first shard that is damaged, compressed or empty, a skip list of other shards, or several
            splits among the tars' names.
    """
    names = ShardFolder(folder).list_shards()
    chosen = select_shards(names, split, source=folder)
    all_names = ShardFolder(folder).list_names()
    check_finished(all_names, source=folder)
    _keep_other_index(folder, names, chosen, out)
    skips: dict[str, set[str]] = defaultdict(set)
    for path in skip_lists:
        for skip in read_skips(path):
            if skip.shard not in names:
                raise DataError(f"skip list {path} names shard {skip.shard!r}, which {folder} does not hold")
            skips[skip.shard].add(skip.key)
    tasks = [(name, frozenset(skips[name])) for name in chosen]
    scan = partial(_scan_shard, folder, block_samples)
    entries = dict(workers.map(scan, tasks, description="index shards", unit="shard", name_task=lambda task: task[0]))
    index = assemble_index(folder, list(entries.values()))
    save_index(index, out)
    empty = tuple(sorted(entry.name for entry in entries.values() if not len(entry.block_samples)))
    return Indexed(
        index, empty=empty, hidden=tuple(ShardFolder(folder).hidden_tars()), remarks=tuple(remark(all_names, chosen))
    )


def describe(made: Indexed) -> str:
    """Describe the new index, in lines."""
    index = made.index
    empty = f", {len(made.empty)} without samples ({made.empty[0]} first)" if made.empty else ""
    return (
        f"{describe_hidden(made.hidden)}{lines(made.remarks)}{index.folder}: {index.num_samples} samples in "
        f"{len(index.shard_names)} shards{empty}, {index.num_blocks} blocks, fingerprint {index.fingerprint}"
    )


def describe_use(folder: str, out: str) -> str:
    """Say how an index elsewhere is used."""
    return f"a training reads both with data.train='{{url: {folder}, index: {out}}}'"


@contextmanager
def lock_index_folder(folder: str, out: str | None) -> Iterator[None]:
    """Hold the lock of an index's folder, and check that the folder can be written before anything is read.

    Raises:
        DataError: another command writes there, nothing can be written there, or it holds the index of another folder.
    """
    index_folder, _ = find_index(folder, out)
    advice = (
        f"`--out PLACE` puts the index elsewhere, and data.train='{{url: {folder}, index: PLACE}}' reads it there"
        if out is None
        else "choose another folder with --out"
    )
    if not is_remote(index_folder):
        if out is None and not Path(index_folder).is_dir():  # `list_shards` reports it
            yield
            return
        with lock_folder(Path(index_folder), advice=advice):
            _check_owner(folder, out)
            yield
        return
    if describe_read_only(index_folder) is None:
        ShardFolder(folder).list_shards()  # reports wrong credentials first: another folder would not help with them
    if (reason := ShardFolder(index_folder).why_unwritable()) is not None:
        raise DataError(f"{index_folder}: no index can be written there ({reason}); {advice}")
    _check_owner(folder, out)
    yield


def _check_owner(folder: str, out: str | None) -> None:
    """Refuse to replace the index of another folder.

    Raises:
        DataError: the index would be replaced.
    """
    if out is None:
        return
    index_folder, name = find_index(folder, out)
    owner = read_owner(index_folder, name)
    if owner not in (None, identify(folder)):
        raise DataError(f"{index_folder} holds the index of {owner}; choose another folder with --out")


def _keep_other_index(folder: str, names: Sequence[str], chosen: Sequence[str], out: str | None) -> None:
    """Refuse to replace the index of one split by that of another.

    Raises:
        DataError: there is one.
    """
    if len(chosen) == len(names):
        return
    try:
        others = set(load_index(folder, out).shard_names) & (set(names) - set(chosen))
    except DataError:  # no index, or none that can be read
        return
    if others:
        raise DataError(
            f"{folder} holds the index of other tars already ({min(others)} ...), and one folder has one index; move the tars "
            "of each split to a folder of their own, or keep their indexes elsewhere with --out"
        )


def _scan_shard(folder: str, block_samples: int, task: tuple[str, frozenset[str]]) -> ShardEntry:
    name, skip = task
    shards = ShardFolder(folder)
    with store_errors(name), shards.open(name) as file:
        return scan_shard(file, name=name, num_bytes=shards.size(name), block_samples=block_samples, skip=skip)
