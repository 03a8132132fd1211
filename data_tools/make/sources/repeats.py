"""Find images that a list or table names more than once. With different labels, one is wrong, and nobody can tell which.

A file is the same by its path, however it is written (`a.jpg`, `./a.jpg`). A row of a table is the same by its path and its
content. Where a table names no images, many public sets have the same content under different labels, so these are only
counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data_tools.make.sources import table
from data_tools.make.sources.listing import Listing
from data_tools.text_files import printable
from pipeline.errors import DataError

MAX_LISTED = 5
SEVERAL = "An image that has several labels is named once, with all of them: 3;7 in a CSV, a list in a table"


@dataclass(frozen=True)
class Repeats:
    """Counts images that occur more than once.

    Attributes:
        alike: samples beyond the first of an image, all with its labels.
        contradicting: samples of unnamed images whose labels are not those of another sample of the same content.
        first: two of the contradicting ones in words.
    """

    alike: int = 0
    contradicting: int = 0
    first: str | None = None


def find_repeats(listing: Listing) -> Repeats:
    """Compare the labels of samples of the same image, in a listing of a list or table whose classes are numbered.

    Raises:
        DataError: an image is named with different labels; the message says where.
    """
    alike = contradicting = 0
    first: str | None = None
    num_refused, refused = 0, list[str]()
    for samples in _groups(listing):
        labels = [frozenset(listing.sample(sample).labels) for sample in samples]
        other = next((index for index, of_sample in enumerate(labels) if of_sample != labels[0]), None)
        if other is None:
            alike += len(samples) - 1
            continue
        if listing.layout == "files" or table.is_named(listing.name(samples[0])):
            num_refused += 1
            if num_refused <= MAX_LISTED:
                refused.append(_describe(listing, samples[0], samples[other]))
            continue
        contradicting += len(samples)
        first = first or _describe(listing, samples[0], samples[other])
    if num_refused:
        more = f"; and {num_refused - MAX_LISTED} more" if num_refused > MAX_LISTED else ""
        count = "1 image is" if num_refused == 1 else f"{num_refused} images are"
        raise DataError(
            f"{count} named more than once with different labels: {'; '.join(refused)}{more}. Correct the labels. {SEVERAL}"
        )
    return Repeats(alike, contradicting, first)


def _groups(listing: Listing) -> Iterator[list[int]]:
    """Yield groups of more than one sample of the same image, in their order."""
    if not len(listing.rows):
        return
    folder = os.path.abspath(os.fsencode(listing.files[0])) if listing.layout == "files" else b""
    names = (os.path.normpath(os.path.join(folder, listing.name(sample))) for sample in range(len(listing)))
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(name) for name in names), np.uint64, count=len(listing))
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[:1]] + 1))
    ends = np.append(starts[1:], len(order))
    repeated = np.flatnonzero(ends - starts > 1)
    for group in repeated[np.argsort(order[starts[repeated]])].tolist():
        yield order[starts[group] : ends[group]].tolist()


def _describe(listing: Listing, one: int, other: int) -> str:
    """Describe two samples of one image: its name, and the line or row and the labels of each."""
    unit = "line" if listing.layout == "files" else "row"
    files = [listing.origins[listing.members(sample)[0].file] for sample in (one, other)]
    labels = [_labels(listing, sample) for sample in (one, other)]
    rows = [f"{unit} {listing.rows[sample]}" for sample in (one, other)]
    where = f"{files[0]} {rows[0]}: {labels[0]}, {'' if files[0] == files[1] else f'{files[1]} '}{rows[1]}: {labels[1]}"
    return f"{printable(listing.name(one).decode('utf-8', 'replace'))} ({where})"


def _labels(listing: Listing, sample: int) -> str:
    labels = listing.sample(sample).labels
    classes = listing.classes
    return ";".join(str(label) if classes is None else printable(classes[label]) for label in labels)
