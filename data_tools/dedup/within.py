"""Find copies inside a corpus, by whichever of two exact searches is cheaper, and choose which of them stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.bands import NUM_BITS
from data_tools.dedup.catalogue import Catalogue
from data_tools.dedup.exchange import read_pairs, write_pairs
from data_tools.dedup.hamming import estimate_search
from data_tools.dedup.join import MAX_LEFT, MAX_RIGHT, JoinPlan, join_images, plan_join
from data_tools.dedup.keepers import add_identical, choose_left_out
from data_tools.dedup.matching import Copies, CopyFinder, Ints, Method, group_identical, whole_codes
from data_tools.dedup.search import RULES_VERSION, digest, search_shards
from data_tools.parallel import Workers
from pipeline.errors import DataError

JOIN_VERSION = 1  # version of the files that a join leaves in its scratch folder
PASS_S = 4.0  # an outer band, whatever the number of images: processes are started twice


def find_within(
    corpus: Catalogue, *, left_out: Ints, distance: int, method: Method, memory_bytes: int, workers: Workers
) -> Copies:
    """Return images of the corpus to leave out, each with the image that is kept in its place: the largest, then the first.

    By bands, a worker holds a bounded part of the hashes. The command itself holds some 300 bytes an image and, while it
    chooses who stays, some 100 bytes a pair.

    Args:
        left_out: images that are left out already.
        method: how to search; the pairs are the same.
        memory_bytes: that a worker may use, if the search is by bands.

    Raises:
        DataError: files that cannot be written, or damaged ones.
    """
    everything = np.arange(len(corpus))
    rank = np.empty(len(corpus), np.int64)
    rank[np.lexsort((everything, -corpus.num_pixels))] = everything
    usable = ~corpus.is_featureless
    usable[left_out] = False
    numbers = np.flatnonzero(usable)
    leader = everything.copy()
    leader[numbers] = numbers[group_identical(corpus.whole_view[numbers], rank=rank[numbers])]
    leads = usable & (leader == everything)
    plan = plan_join(int(leads.sum()), distance=distance, memory_bytes=memory_bytes)
    facts = [distance, digest(repr(corpus.facts).encode()), digest(np.packbits(leads).tobytes())]
    if _choose(method, plan) == "bands":
        pairs = _join(corpus, leads=leads, plan=plan, facts=facts, workers=workers)
    else:
        # Every pair is met from both sides, so a part of one need be compared with the whole of the other on one side only.
        finders = {"whole": CopyFinder.build(corpus.all_codes(whole_codes, leads), distance=distance)}
        pairs = search_shards("within", corpus, finders, searched=leads, facts=facts, workers=workers)
    return add_identical(choose_left_out(pairs, rank=rank), leader, numbers)


def _choose(method: Method, plan: JoinPlan) -> Literal["index", "bands"]:
    """Return how to search, and say so."""
    num_images = plan.num_left // MAX_LEFT
    index_s = MAX_LEFT * num_images * estimate_search(MAX_RIGHT * num_images, num_bits=NUM_BITS, radius=plan.distance)
    bands_s = plan.core_s + PASS_S * (plan.distance + 1)
    chosen = method if method != "cheapest" else "bands" if bands_s < index_s else "index"
    how = f"join by bands: {plan.describe()}" if chosen == "bands" else "search by an index"
    print(f"copies inside: {how} (estimate: by bands {_hours(bands_s)}, by an index {_hours(index_s)})", flush=True)
    return chosen


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} core-hours" if seconds >= 360 else f"{seconds:,.0f} s of a core"


def _join(corpus: Catalogue, *, leads: NDArray[np.bool_], plan: JoinPlan, facts: list[Any], workers: Workers) -> Copies:
    """Return the pairs, found now or remembered."""
    work = corpus.images.work
    name = digest(repr([RULES_VERSION, JOIN_VERSION, plan.width, facts]).encode())[:12]
    path = work / f"within-{name}.safetensors"
    if path.exists():
        return read_pairs(path, 0)
    scratch = work / f"join-within-{name}"
    pairs = join_images(corpus.images, corpus.start, leads=leads, plan=plan, scratch=scratch, workers=workers)
    _remember(path, pairs, num_images=len(corpus))
    return pairs


def _remember(path: Path, pairs: Copies, *, num_images: int) -> None:
    """Keep the pairs for the next time, in place of those of other searches."""
    try:
        write_pairs(path, pairs, edges=(0, num_images))
        for other in path.parent.glob("within-*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}); name another folder with --work") from error
