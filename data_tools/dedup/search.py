"""Search a corpus for copies, shard by shard, in processes that share one index. Results are remembered."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.catalogue import Catalogue, MakeCodes
from data_tools.dedup.hash_store import ImageSet, load_shard
from data_tools.dedup.matching import (
    Codes,
    Copies,
    CopyFinder,
    Ints,
    crop_codes,
    join_codes,
    join_copies,
    upright_codes,
    whole_codes,
)
from data_tools.parallel import Workers, remember
from pipeline.errors import DataError

FIRST_TEST_IMAGE = 1 << 40  # test images are numbered from here on, beyond any corpus
SEARCHED_NAME = "searched.npy"
# Hashes of whole images are asked for whole images and parts of them, hashes of parts for whole images.
ASKED_WITH: dict[str, MakeCodes] = {"whole": upright_codes, "crops": whole_codes}
RULES_VERSION = 3  # version of what makes a copy; pairs found by other rules are searched for again


def find_against(corpus: Catalogue, targets: Sequence[Catalogue], starts: Ints, *, distance: int, workers: Workers) -> Copies:
    """Return pairs of a corpus image and a test image. Test images are numbered through their sets, from `starts` on."""

    def join(make: MakeCodes) -> Codes:
        parts = [target.all_codes(make, ~target.is_featureless) for target in targets]
        return join_codes([replace(part, image=part.image + start) for part, start in zip(parts, starts, strict=False)])

    finders = {
        "whole": CopyFinder.build(join(whole_codes), distance=distance),
        "crops": CopyFinder.build(join(crop_codes), distance=distance),
    }
    facts = [distance, digest(repr([target.facts for target in targets]).encode())]
    return search_shards("against", corpus, finders, searched=~corpus.is_featureless, facts=facts, workers=workers)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def search_shards(
    name: str,
    corpus: Catalogue,
    finders: dict[str, CopyFinder],
    *,
    searched: NDArray[np.bool_],
    facts: list[Any],
    workers: Workers,
) -> Copies:
    """Search for copies of each shard's images, in processes that share the finders' files.

    Args:
        name: of the search, in its files' names.
        searched: the images whose copies are searched for.
        facts: everything that pairs depend on besides a shard's hashes.

    Raises:
        DataError: the files cannot be written.
    """
    folder = corpus.images.work / f"search-{name}-{digest(repr([corpus.facts, facts]).encode())[:8]}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a search that was killed
        for part, finder in finders.items():
            finder.save(folder / part)
        np.save(folder / SEARCHED_NAME, searched)
        shards = zip(corpus.images.shards, corpus.start[:-1].tolist(), corpus.start[1:].tolist(), corpus.facts, strict=True)
        tasks = [
            (shard, first, last, [RULES_VERSION, first, shard_facts, *facts]) for shard, first, last, shard_facts in shards
        ]
        search = partial(_search_shard, corpus.images, name, folder)
        found = workers.map(search, tasks, description=f"search {name}", unit="shard")
        copies = join_copies([Copies(**{k: np.array(v, np.int64) for k, v in kept.items()}) for _, kept in found])
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}); name another folder with --work") from error
    shutil.rmtree(folder)
    return copies


def _search_shard(images: ImageSet, search_name: str, folder: Path, task: tuple[str, int, int, list[Any]]) -> dict[str, Any]:
    """Return the copies of one shard's images, searched for now or remembered."""
    name, first, last, facts = task

    def search() -> dict[str, Any]:
        chosen = np.flatnonzero(np.load(folder / SEARCHED_NAME, mmap_mode="r")[first:last])
        hashes = load_shard(images, name).hashes
        found = [
            _open_finder(folder / part).find(make(hashes, chosen, first_image=first))
            for part, make in ASKED_WITH.items()
            if (folder / part).exists()
        ]
        return {column: values.tolist() for column, values in vars(join_copies(found)).items()}

    return remember(search, path=images.work / f"{name}.{search_name}.json", facts=facts)


@functools.lru_cache(maxsize=len(ASKED_WITH))
def _open_finder(folder: Path) -> CopyFinder:
    return CopyFinder.open(folder)
