"""Open sets whose images have masks of classes, and check that they do."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.sample import MASK_EXTENSIONS
from pipeline.errors import DataError
from pipeline.evaluation.datasets import open_splits
from pipeline.evaluation.section import SegmentationSection


@dataclass(frozen=True)
class MaskSet:
    """Holds the two splits of a segmentation set."""

    name: str
    train: ShardIndex
    test: ShardIndex
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint[:16]}-{self.test.fingerprint[:16]}"


def open_mask_set(section: SegmentationSection) -> MaskSet:
    """Open a set.

    Raises:
        DataError: a split is missing or damaged, its first image has no mask, or the splits number their classes differently.
    """
    train, test, _ = open_splits(section, what="segmentation set", check=_check_first)
    same = train.fingerprint == test.fingerprint
    notes = ["train and test are the same images: its measures say nothing about other images"] if same else []
    return MaskSet(section.name, train, test, tuple(notes))


def _check_first(index: ShardIndex) -> None:
    sample = BlockReader(index, capacity=1).read(0)[0]
    if sample.read(MASK_EXTENSIONS) is None:
        found = ", ".join(member.extension for member in sample.members)
        raise DataError(
            f"{index.folder}: sample {sample.key!r} has no mask (looked for {', '.join(MASK_EXTENSIONS)}; it has {found}). A "
            "mask is a PNG whose pixels are class numbers, packed next to its image: KEY.jpg and KEY.seg.png"
        )


def examine_mask_set(section: SegmentationSection) -> list[str]:
    """Open a set before a run. Return remarks for the user.

    Raises:
        DataError: see `open_mask_set`.
    """
    opened = open_mask_set(section)
    return [f"segmentation set {opened.name!r}: {note}" for note in opened.notes]
