"""Decide what a data set needs to be measured: one rule for the launch, which knows the index, and for the evaluator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError


@dataclass(frozen=True)
class Comparison:
    """Compares the classes of a train split with those of its test split."""

    unknown_images: int  # test images of classes that train does not have
    untested_classes: int  # train classes that test does not have
    notes: tuple[str, ...]


def compare_classes(train: ClassCounts, test: ClassCounts) -> Comparison:
    """Check that an accuracy on test would mean anything.

    Raises:
        EvaluationError: train has one class, or test has none that train has.
    """
    if len(train.ids) < 2:
        raise EvaluationError(
            f"all {train.num_images} images of its train split are of class {int(train.ids[0])}: nothing to tell apart"
        )
    unknown = int(test.images[~np.isin(test.ids, train.ids)].sum())
    if unknown == test.num_images:
        raise EvaluationError(
            "no image of its test split is of a class that its train split has; do both number classes alike?"
        )
    untested = int((~np.isin(train.ids, test.ids)).sum())
    notes: list[str] = []
    if unknown:
        notes.append(f"{unknown} of {test.num_images} test images are of classes that train does not have; they count as wrong")
    if untested:
        notes.append(f"{untested} of {len(train.ids)} classes have no test image")
    return Comparison(unknown, untested, tuple(notes))


def short_classes(train: ClassCounts, shots: int) -> tuple[int, ...]:
    """Return classes that have fewer images than requested: a few-shot support takes all of theirs."""
    return tuple(train.ids[train.images < shots].tolist())


def takes_all(train: ClassCounts, shots: int) -> bool:
    """Return whether no class has more images than requested: the support is then all of train, whatever the seed."""
    return int(train.images.max()) <= shots


def why_no_linear(train: ClassCounts) -> str | None:
    """Return why no linear probe can be fitted; None if one can."""
    if int(train.images.max()) > 1:
        return None
    return (
        f"no class has two images in its train split ({train.num_images} images of {len(train.ids)} classes), so none "
        "can be held "
        f"out to choose the penalty of the linear probe; few_shot can be measured"
    )
