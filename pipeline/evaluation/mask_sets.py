"""Open sets whose images have masks of classes, and check that they do."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.index import ShardIndex, check_shards, load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.data.shards.sample import MASK_EXTENSIONS
from pipeline.errors import DataError
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
    try:
        train, test = (load_index(split.path, split.index) for split in (section.train, section.test))
        for index in (train, test):
            check_shards(index)
            _check_first(index)
    except DataError as error:
        raise DataError(f"segmentation set {section.name!r}: {error}") from error
    names, others = class_names_of(*train.folders), class_names_of(*test.folders)
    if names is not None and others is not None and names != others:
        raise DataError(
            f"segmentation set {section.name!r}: the splits number their classes differently (see classes.txt in {train.folder}"
            f" and {test.folder})"
        )
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
