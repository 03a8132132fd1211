"""Hash every image of sets of shards once, in parallel. A shard that has changed in the file system is hashed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from data_tools.dedup.hash_store import HashedShard, ImageSet, save_shard, stored_facts, tabulate
from data_tools.dedup.perceptual_hash import ImageHashes, hash_image
from data_tools.parallel import Workers
from data_tools.shards import Shard, shard_version
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, find_member
from pipeline.data.shards.tar import TarMember, find_defect, refuse_sparse
from pipeline.errors import DataError

HASHES_VERSION = 1  # version of what is hashed and how it is stored; hashes of other versions are computed again


def hash_sets(sets: Sequence[ImageSet], *, workers: Workers) -> None:
    """Hash the shards that are not hashed yet.

    Raises:
        DataError: a damaged shard, or hashes that cannot be written.
    """
    # A set that is given twice, alone and as part of its folder, is hashed once.
    tasks = sorted({(images.folder, name, str(images.work)) for images in sets for name in images.shards})
    for _ in workers.map(
        hash_shard, tasks, description="hash shards", unit="shard", name_task=lambda task: task[1], are_kept=True
    ):
        pass


def hash_shard(task: tuple[str, str, str]) -> None:
    """Hash the images of one shard, given as (folder, name, work folder), unless that has been done."""
    folder, name, work = task
    facts = f"{HASHES_VERSION} {shard_version(folder, name)}"
    if stored_facts(Path(work), name) == facts:
        return
    try:
        Path(work).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"no folder for hashes can be made ({error}); name one with --work") from error
    with threadpool_limits(1):  # one process a core already; BLAS threads of all of them would wait for each other
        save_shard(Path(work), _read_shard(folder, name, facts))


def _read_shard(folder: str, name: str, facts: str) -> HashedShard:
    keys: list[str] = []
    members: list[TarMember] = []
    sizes: list[tuple[int, int]] = []
    hashes: list[ImageHashes] = []
    undecodable: list[tuple[str, str]] = []
    num_without_image = 0
    with Shard(folder, name) as shard:
        for sample in shard.samples():
            if (defect := find_defect(sample)) is not None and defect.kind == "repeated_member":
                raise DataError(f"{name}: sample {sample.key!r} {defect.reason}")
            refuse_sparse(sample, name)  # pictures of pairs are read by byte ranges
            member = find_member(sample, IMAGE_EXTENSIONS)
            if member is None:
                num_without_image += 1
                continue
            try:
                pixels = decode_image(shard.read(member))
            except UnreadableImage as error:
                undecodable.append((sample.key, str(error)))
                continue
            keys.append(sample.key)
            members.append(member)
            sizes.append(pixels.shape[:2])
            hashes.append(hash_image(pixels))
    return HashedShard(
        name=name,
        facts=facts,
        keys=keys,
        byte_ranges=np.array([(member.start, member.length) for member in members], np.int64).reshape(-1, 2),
        size=np.array(sizes, np.int64).reshape(-1, 2),
        hashes=tabulate(hashes),
        undecodable=undecodable,
        num_without_image=num_without_image,
    )
