"""Digest the samples of a block (keys, members, labels) to a few bytes. An index keeps the digest of every block."""

from __future__ import annotations

import xxhash

from pipeline.data.shards.tar import TarSample

HALF = 32  # bits of each half of a digest
MASK = (1 << HALF) - 1


class BlockContent:
    """Collects the samples of one block. The upper half of its digest covers keys and members' sizes, the lower labels."""

    def __init__(self) -> None:
        self._members = xxhash.xxh3_64()
        self._labels = xxhash.xxh3_64()

    def add(self, sample: TarSample, labels: tuple[int, ...] | None) -> None:
        """Add the next sample.

        Args:
            labels: its classes; None if it has no label that can be used.
        """
        sizes = ",".join(f"{member.extension}:{member.length}" for member in sample.members)
        self._members.update(f"{sample.key}\0{sizes}\n".encode("utf-8", "surrogateescape"))
        self._labels.update(f"{None if labels is None else ' '.join(map(str, labels))}\n".encode())

    @property
    def digest(self) -> int:
        """Return the digest of all samples so far."""
        return (self._members.intdigest() & MASK) << HALF | self._labels.intdigest() & MASK


def describe_difference(before: int, now: int) -> str:
    """Return what differs between two digests, in words."""
    differs = {"keys or sizes of members": before >> HALF != now >> HALF, "labels": before & MASK != now & MASK}
    return " and ".join(name for name, is_other in differs.items() if is_other) or "nothing"
