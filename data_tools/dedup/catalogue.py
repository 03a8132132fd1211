"""Number the hashed images of a set through its shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.hash_store import HashedShard, ImageSet, load_shard
from data_tools.dedup.matching import Codes, HashTable, Ints, join_codes


class StoredImage(NamedTuple):
    """Locates one encoded image."""

    folder: str
    shard: str
    key: str
    start: int
    length: int


class MakeCodes(Protocol):
    """Chooses which hashes of some images of a table to take: see `matching`."""

    def __call__(self, table: HashTable, images: Ints, *, first_image: int = 0) -> Codes: ...


class Catalogue:
    """Holds what is known of a hashed set. It keeps some 40 bytes an image; hashes are read again when needed."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.facts: list[str] = []  # by shard: everything its hashes depend on
        self.undecodable: list[tuple[str, str, str]] = []  # shard, key, reason
        self.num_without_image = 0
        starts, pixels, wholes, featureless = [0], [], [], []
        for shard in self.shards():
            self.facts.append(f"{images.folder}/{shard.name} {shard.facts}")
            self.undecodable += [(shard.name, key, reason) for key, reason in shard.undecodable]
            self.num_without_image += shard.num_without_image
            starts.append(starts[-1] + len(shard))
            pixels.append(shard.size.prod(axis=1))
            wholes.append(shard.hashes.frames[:, 0])
            featureless.append(shard.hashes.is_featureless)
        self.start = np.array(starts, np.int64)  # (shards + 1,): the number of each shard's first image
        self.num_pixels: Ints = np.concatenate(pixels)
        self.whole_view: NDArray[np.uint8] = np.concatenate(wholes)
        self.is_featureless: NDArray[np.bool_] = np.concatenate(featureless)

    def __len__(self) -> int:
        return int(self.start[-1])

    def shards(self) -> Iterator[HashedShard]:
        """Yield each shard, read at that moment."""
        return (load_shard(self.images, name) for name in self.images.shards)

    def codes(self, position: int, make: MakeCodes, chosen: NDArray[np.bool_]) -> Codes:
        """Return hashes of the chosen images that are in one shard."""
        first, last = self.start[position : position + 2].tolist()
        shard = load_shard(self.images, self.images.shards[position])
        return make(shard.hashes, np.flatnonzero(chosen[first:last]), first_image=first)

    def all_codes(self, make: MakeCodes, chosen: NDArray[np.bool_]) -> Codes:
        """Return hashes of the chosen images of all shards."""
        return join_codes([self.codes(position, make, chosen) for position in range(len(self.images.shards))])

    def images_of(self, numbers: Ints) -> dict[int, StoredImage]:
        """Return the location of some images, by their numbers."""
        wanted = np.unique(numbers)
        owner = np.searchsorted(self.start, wanted, side="right") - 1
        images_of: dict[int, StoredImage] = {}
        for position in np.unique(owner).tolist():
            shard = load_shard(self.images, self.images.shards[position])
            for number in wanted[owner == position].tolist():
                row = number - int(self.start[position])
                start, length = shard.byte_ranges[row].tolist()
                images_of[number] = StoredImage(self.images.folder, shard.name, shard.keys[row], start, length)
        return images_of
