"""Find near-copies of test images in a corpus, and copies inside the corpus itself.

Every image is hashed once (`hash_sets`). Pairs with test images are found by an index over the hashes (`matching`, `hamming`),
shard by shard; those inside the corpus likewise or, in a large corpus, by a join (`join`). They are remembered until a shard, a
test set or the distance changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_tools.dedup.catalogue import Catalogue, StoredImage
from data_tools.dedup.hash_sets import hash_sets
from data_tools.dedup.hash_store import ImageSet, open_set
from data_tools.dedup.matching import Copies, MatchKind, Method, join_copies, nearest
from data_tools.dedup.search import FIRST_TEST_IMAGE, Ints, find_against
from data_tools.dedup.within import find_within
from data_tools.parallel import Workers
from pipeline.errors import DataError


@dataclass(frozen=True)
class Copy:
    """Names an image of the corpus and the image that it is a copy of."""

    image: StoredImage
    of: StoredImage
    distance: int  # bits
    how: str


@dataclass(frozen=True)
class SetCopies:
    """Counts the images that one test set and the corpus share."""

    catalogue: Catalogue
    num_test_images: int  # those that have a copy in the corpus
    num_corpus_images: int  # those that are a copy of a test image


@dataclass(frozen=True)
class DedupResult:
    """Holds everything that a search found."""

    distance: int
    corpus: Catalogue
    test_sets: list[SetCopies]
    against: list[Copy]  # every pair of a corpus image and a test image
    left_out_for_test: list[Copy]  # each of those corpus images once, with the nearest test image
    within: list[Copy] | None  # each copy inside the corpus, with the image that stays; None if there was no search for them

    @property
    def left_out(self) -> list[Copy]:
        """Return every image to leave out, once."""
        return [*self.left_out_for_test, *(self.within or [])]


def find_copies(
    corpus: str,
    *,
    against: Sequence[str],
    inside: Literal["searched", "left alone"],
    distance: int,
    work: str | None,
    method: Method,
    memory_bytes: int,
    workers: Workers,
) -> DedupResult:
    """Look for copies of the images of test sets in a corpus, and then, if wanted, for copies inside what remains of it.

    Args:
        corpus: folder or URL of shards, or one tar.
        against: test sets, likewise.
        inside: whether the corpus is compared with itself.
        distance: differing bits of 144 that still make a copy.
        work: where hashes are kept; next to each set's shards if None.
        method: how to search inside the corpus; what is found is the same.
        memory_bytes: that a worker may use for that.

    Raises:
        DataError: nothing to look for, a set that cannot be read, or a folder that cannot be written.
    """
    if not against and inside == "left alone":
        raise DataError("nothing to look for: give --against TEST_SET for copies of test images, --within for copies inside")
    corpus_set, test_sets = _open_sets(corpus, against, work=work)
    hash_sets([corpus_set, *test_sets], workers=workers)
    searched, targets = Catalogue(corpus_set), [Catalogue(images) for images in test_sets]
    starts = np.cumsum([FIRST_TEST_IMAGE, *(len(target) for target in targets)])
    pairs = find_against(searched, targets, starts, distance=distance, workers=workers) if targets else join_copies([])
    within = None
    if inside == "searched":
        within = find_within(
            searched,
            left_out=np.unique(pairs.first),
            distance=distance,
            method=method,
            memory_bytes=memory_bytes,
            workers=workers,
        )
    return _name_images(pairs, within, distance=distance, corpus=searched, targets=targets, starts=starts)


def _open_sets(corpus: str, against: Sequence[str], *, work: str | None) -> tuple[ImageSet, list[ImageSet]]:
    """Open the corpus, and each test set once."""
    corpus_set, test_sets = open_set(corpus, work=work), [open_set(path, work=work) for path in dict.fromkeys(against)]
    for images in test_sets:
        if images.shares_shards(corpus_set):
            raise DataError(f"--against {images.path} is the corpus itself; --within looks for copies inside the corpus")
    return corpus_set, test_sets


def _name_images(
    pairs: Copies,
    within: Copies | None,
    *,
    distance: int,
    corpus: Catalogue,
    targets: Sequence[Catalogue],
    starts: Ints,
) -> DedupResult:
    """Make the result, with images in place of numbers.

    Args:
        pairs: numbers in the corpus, and numbers in the test sets laid end to end.
        starts: the number of each test set's first image, and the end of the last.
    """
    owner = np.searchsorted(starts, pairs.second, side="right") - 1
    corpus_images = corpus.images_of(np.concatenate([pairs.first, *([] if within is None else [within.first, within.second])]))
    test_images = {
        number + int(starts[position]): image
        for position, target in enumerate(targets)
        for number, image in target.images_of(pairs.second[owner == position] - starts[position]).items()
    }
    return DedupResult(
        distance=distance,
        corpus=corpus,
        test_sets=[
            SetCopies(target, *(len(np.unique(side[owner == position])) for side in (pairs.second, pairs.first)))
            for position, target in enumerate(targets)
        ],
        against=_describe(pairs, corpus_images, test_images),
        left_out_for_test=_describe(nearest(pairs), corpus_images, test_images),
        within=None if within is None else _describe(within, corpus_images, corpus_images),
    )


def _describe(pairs: Copies, first: dict[int, StoredImage], second: dict[int, StoredImage]) -> list[Copy]:
    rows = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.distance.tolist(), pairs.kind.tolist(), strict=True)
    return [Copy(image=first[a], of=second[b], distance=distance, how=MatchKind(kind).title) for a, b, distance, kind in rows]
