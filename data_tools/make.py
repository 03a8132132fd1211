"""Pack images into WebDataset shards: shuffled once with a seed, in parallel, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from webdataset.writer import TarWriter

from data_tools.index import index_folder
from data_tools.sources import Listing, SampleSource, list_source
from pipeline.data.counter import Purpose, derive_key, permutation
from pipeline.data.index import CLASSES_NAME
from pipeline.errors import DataError

RECORD_NAME = "make.json"


@dataclass(frozen=True)
class MakeReport:
    """What was written."""

    num_samples: int
    num_shards: int
    num_written: int  # shards written now; the rest was there from a run before
    num_passed_over: int


def make_shards(
    source: str,
    folder: str,
    *,
    samples_per_shard: int,
    block_samples: int,
    seed: int | None,
    num_workers: int,
    classes: list[str] | None = None,
) -> MakeReport:
    """Pack `source` into `folder`/shard-NNNNNN.tar and index them.

    A shard appears whole or not at all, so the same call after a crash goes on where it stopped.

    Args:
        seed: of the shuffle over all samples; None keeps the source's order.
        classes: class names by id; the sorted names of the class folders if not given.

    Raises:
        DataError: unusable source, or a folder that holds shards of something else.
    """
    listing = list_source(source, classes)
    order = range(len(listing.samples))
    if seed is not None:
        order = permutation(derive_key(seed, Purpose.MAKE_SHUFFLE), len(listing.samples)).tolist()
    ordered = [listing.samples[i] for i in order]
    root = Path(folder)
    if root.resolve() == Path(source).resolve():
        raise DataError(f"{folder} is the source itself; give the shards a folder of their own")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"shards cannot be written to {folder}: {error}") from error
    _claim_folder(root, listing, samples_per_shard=samples_per_shard, seed=seed)
    shards = [ordered[i : i + samples_per_shard] for i in range(0, len(ordered), samples_per_shard)]
    targets = [root / f"shard-{number:06d}.tar" for number in range(len(shards))]
    todo = [(str(target), samples) for target, samples in zip(targets, shards, strict=True) if not target.exists()]
    with multiprocessing.get_context("spawn").Pool(min(num_workers, max(1, len(todo)))) as pool:
        for _ in tqdm(pool.imap_unordered(_write_shard, todo), total=len(todo), desc="write shards", unit="shard"):
            pass
    if listing.classes is not None:
        (root / CLASSES_NAME).write_text("".join(f"{name}\n" for name in listing.classes))
    index = index_folder(folder, block_samples=block_samples, num_workers=num_workers)
    if index.num_samples != len(ordered):
        raise DataError(
            f"{folder}: {index.num_samples} samples in the shards, {len(ordered)} in the source; empty it and start again"
        )
    return MakeReport(len(ordered), len(shards), len(todo), listing.passed_over)


def _claim_folder(root: Path, listing: Listing, *, samples_per_shard: int, seed: int | None) -> None:
    """Record what this folder is being made from, or check that it is the same as before."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in listing.samples:
        digest.update(f"{sample.key}|{sample.label}|{[(m.extension, m.start, m.length) for m in sample.members]}\n".encode())
    record = {
        "source": digest.hexdigest(),
        "samples": len(listing.samples),
        "samples_per_shard": samples_per_shard,
        "seed": seed,
    }
    path = root / RECORD_NAME
    if path.exists() and _read_record(path) != record:
        raise DataError(
            f"{root} holds shards made from another source or with other options; empty it or choose another folder"
        )
    if not path.exists() and any(root.glob("*.tar")):
        raise DataError(f"{root} holds tars that were not made by this command; choose an empty folder")
    path.write_text(json.dumps(record))


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); empty {path.parent} and start again") from error


def _write_shard(task: tuple[str, Sequence[SampleSource]]) -> None:
    target, samples = task
    part = f"{target}.part"
    with open(part, "wb") as file:
        # Fixed owner and time: the same samples always give the same bytes.
        with TarWriter(file, mtime=0.0, user="root", group="root", mode=0o644, encoder=False) as writer:
            for sample in samples:
                values = {member.extension: member.read() for member in sample.members}
                if sample.label is not None:
                    values["cls"] = str(sample.label).encode()
                writer.write({"__key__": sample.key, **values})
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)
