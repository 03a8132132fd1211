"""Decide which images are near-copies of which.

Two images match if a hash of one of them or of its mirror image is near a hash of the other one or of a part of it, so
it does not matter which of the two was mirrored or cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntFlag
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.bands import as_words
from data_tools.dedup.hamming import HammingIndex, map_array
from data_tools.dedup.perceptual_hash import HASH_BYTES, MIN_DETAIL, Views

Ints = NDArray[np.int64]
Method = Literal["cheapest", "index", "bands"]  # of searching a corpus for pairs of its own images; they are the same

DEFAULT_DISTANCE = 20  # of 144 bits; see docs/data-tools.md
MAX_DISTANCE = 32  # beyond it unrelated images match in large numbers
MAX_COLOUR_DISTANCE = 10.0  # of 256 levels; measured like the distance
MAX_GREY_DISTANCE = 6.0  # for pairs compared in grey: a third of the values say less, and simple pictures agree in them
MAX_GREY_SPREAD = 4.0  # levels between the channels of an image without colour: JPEG and rounding leave some
COLOURS_AT_ONCE = 1 << 16  # pairs whose colours are compared: some two kilobytes each
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode L has it


class MatchKind(IntFlag):
    """Says how the two images of a pair differ."""

    WHOLE = 0
    CROPPED = 1
    MIRRORED = 2

    @property
    def title(self) -> str:
        """Return the kind in the words of reports."""
        return ("whole", "cropped", "mirrored", "mirrored and cropped")[self]


@dataclass(frozen=True)
class HashTable:
    """Holds the hashes of many images; see `perceptual_hash.ImageHashes`."""

    frames: Views  # (N, 2, 45)
    mirrored: Views  # (N, 2, 45)
    crops: Views  # (N, C, 45)
    detail: NDArray[np.float32]  # (N,)

    @property
    def is_featureless(self) -> NDArray[np.bool_]:
        """Return which images have hashes that say nothing: they are no copies of anything."""
        return self.detail < MIN_DETAIL


@dataclass(frozen=True)
class Codes:
    """Holds hashes in a row, with the image that each belongs to and how it was altered."""

    views: Views  # (N, 45)
    image: Ints
    kind: NDArray[np.int8]  # a `MatchKind`


@dataclass(frozen=True)
class Copies:
    """Holds pairs of images, each pair once, with the least distance of any of their parts."""

    first: Ints
    second: Ints
    distance: Ints
    kind: Ints  # a `MatchKind`

    def __len__(self) -> int:
        return len(self.first)

    def take(self, chosen: Ints | NDArray[np.bool_]) -> Copies:
        """Return the chosen pairs."""
        return Copies(self.first[chosen], self.second[chosen], self.distance[chosen], self.kind[chosen])


def join_codes(codes: Sequence[Codes]) -> Codes:
    """Return all hashes, one set after the other."""
    return Codes(*(np.concatenate([getattr(part, name) for part in codes]) for name in ("views", "image", "kind")))


def join_copies(copies: Sequence[Copies]) -> Copies:
    """Return pairs of several searches, each pair once."""
    first, second, distance, kind = (
        np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in copies)])
        for name in ("first", "second", "distance", "kind")
    )
    order = np.lexsort((kind, distance, second, first))
    joined = Copies(first, second, distance, kind).take(order)
    is_new = np.ones(len(joined), np.bool_)
    is_new[1:] = (np.diff(joined.first) != 0) | (np.diff(joined.second) != 0)
    return joined.take(is_new)


def whole_codes(table: HashTable, images: Ints, *, first_image: int = 0) -> Codes:
    """Return the frames of some images, upright and mirrored. Images are numbered from `first_image`."""
    upright = _frame_codes(table.frames, images, first_image, kind=MatchKind.WHOLE)
    return join_codes([upright, _frame_codes(table.mirrored, images, first_image, kind=MatchKind.MIRRORED)])


def upright_codes(table: HashTable, images: Ints, *, first_image: int = 0) -> Codes:
    """Return the frames and the crops of some images."""
    return join_codes(
        [
            _frame_codes(table.frames, images, first_image, kind=MatchKind.WHOLE),
            crop_codes(table, images, first_image=first_image),
        ]
    )


def crop_codes(table: HashTable, images: Ints, *, first_image: int = 0) -> Codes:
    """Return the crops of some images."""
    crops = table.crops[images]
    num_images, num_crops, num_bytes = crops.shape
    owner = np.repeat(images + first_image, num_crops)
    return Codes(crops.reshape(num_images * num_crops, num_bytes), owner, np.full(len(owner), MatchKind.CROPPED, np.int8))


def _frame_codes(frames: Views, images: Ints, first_image: int, *, kind: MatchKind) -> Codes:
    """Return the whole image's frame, and the middle square's where it differs."""
    whole, square = frames[images, 0], frames[images, 1]
    differs = (whole != square).any(axis=1)
    return Codes(
        views=np.concatenate([whole, square[differs]]),
        image=np.concatenate([images, images[differs]]) + first_image,
        kind=np.concatenate([np.full(len(whole), kind), np.full(differs.sum(), kind | MatchKind.CROPPED)]).astype(np.int8),
    )


def colour_distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the root mean square difference of colours, (N, 27) each, after one common factor makes the two equally bright.

    Where one of the two has no colour, the other's is removed: copies are made grey more often than tinted.
    """
    one, other = first.astype(np.float64).reshape(-1, 9, 3), second.astype(np.float64).reshape(-1, 9, 3)
    has_grey = _has_grey(first, second)[:, None, None]
    one, other = (np.where(has_grey, (side @ LUMA)[:, :, None], side).reshape(first.shape) for side in (one, other))
    # |a / s - b * s|^2 with s^2 = |a| / |b| is 2 (|a| |b| - a.b)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.sqrt(2 * np.maximum(0, lengths - (one * other).sum(axis=1)) / first.shape[1])


def _has_grey(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether one of two images has no colour, (N, 27) each."""
    spreads = [np.ptp(side.astype(np.float64).reshape(-1, 9, 3), axis=2).max(axis=1) for side in (first, second)]
    return np.minimum(*spreads) <= MAX_GREY_SPREAD


def have_like_colours(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether the colours of a copy, (N, 27) each, could be these."""
    limit = np.where(_has_grey(first, second), MAX_GREY_DISTANCE, MAX_COLOUR_DISTANCE)
    return colour_distance(first, second) <= limit


class CopyFinder:
    """Finds images with a similar view: its bits are within a distance, and its colours are similar (`have_like_colours`)."""

    def __init__(self, index: HammingIndex, codes: Codes) -> None:
        self._index, self._codes = index, codes

    @classmethod
    def build(cls, codes: Codes, *, distance: int) -> CopyFinder:
        return cls(HammingIndex.build(codes.views[:, :HASH_BYTES], radius=distance), codes)

    def save(self, folder: Path) -> None:
        """Write the finder to a folder, for many processes to open."""
        self._index.save(folder)
        for name, array in vars(self._codes).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def open(cls, folder: Path) -> CopyFinder:
        """Map what `save` wrote."""
        codes = Codes(*(map_array(folder / f"{field.name}.npy") for field in fields(Codes)))
        return cls(HammingIndex.open(folder), codes)

    def find(self, queries: Codes) -> Copies:
        """Return pairs of a query's image and an indexed image. An image is no copy of itself."""
        pairs = self._index.search(queries.views[:, :HASH_BYTES])
        query, entry = pairs.query, pairs.entry
        colours = queries.views[query, HASH_BYTES:], self._codes.views[entry, HASH_BYTES:]
        is_other = queries.image[query] != self._codes.image[entry]
        alike = np.flatnonzero(is_other & have_like_colours(*colours))
        query, entry = query[alike], entry[alike]
        kind = (queries.kind[query] | self._codes.kind[entry]).astype(np.int64)
        return join_copies([Copies(queries.image[query], self._codes.image[entry], pairs.distance[alike], kind)])


def nearest(copies: Copies) -> Copies:
    """Return, for every first image, the pair with the least distance; the first such."""
    ordered = copies.take(np.lexsort((copies.second, copies.distance, copies.first)))
    return ordered.take(np.unique(ordered.first, return_index=True)[1])


def group_identical(views: Views, *, rank: Ints) -> Ints:
    """Return, for every image, the image of least rank with the same bits if its colours are alike, else the image itself.

    A picture that a set holds ten thousand times would otherwise make fifty million pairs. It takes some 60 bytes an image.
    """
    words = as_words(views[:, :HASH_BYTES])
    order = np.lexsort((rank, *words))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = False
    for word in words:
        ordered = word[order]
        is_first[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    leader = np.empty(len(order), np.int64)
    leader[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    led = np.flatnonzero(leader != np.arange(len(leader)))
    for start in range(0, len(led), COLOURS_AT_ONCE):
        rows = led[start : start + COLOURS_AT_ONCE]
        alike = have_like_colours(views[rows, HASH_BYTES:], views[leader[rows], HASH_BYTES:])
        leader[rows[~alike]] = rows[~alike]
    return leader
