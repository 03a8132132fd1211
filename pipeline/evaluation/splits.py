"""Check the features of two splits, and prepare them for the protocols."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError
from pipeline.evaluation.features import Features
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.requirements import compare_classes


@dataclass(frozen=True)
class Splits:
    """Holds features ready for the protocols. Classes are numbered from 0 in the order of their ids, without gaps.

    Args:
        test_labels: -1 where no train image has the class: such an image is never classified right.
        facts: counts that belong to every result of this set.
        notes: remarks for the user.
        known: results that several settings of a protocol share.
    """

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,)
    test: Tensor  # (M, D)
    test_labels: Tensor  # (M,)
    num_classes: int
    facts: dict[str, Any]
    notes: tuple[str, ...]
    known: dict[Any, Measured] = field(default_factory=dict)


def prepare_splits(train: Features, test: Features) -> Splits:
    """Check features and number the classes of train.

    Raises:
        EvaluationError: no accuracy of them would mean anything.
    """
    for name, split in (("train", train), ("test", test)):
        _check_features(split, name=name)
    classes = train.labels.unique()  # sorted
    compared = compare_classes(*(ClassCounts.of_labels(split.labels.cpu()) for split in (train, test)))
    constant = int((train.values.amax(dim=0) == train.values.amin(dim=0)).sum())
    num_features = train.values.shape[1]
    notes = [*compared.notes]
    if constant:
        collapsed = ": the representation has collapsed" if constant == num_features else ""
        notes.append(f"{constant} of {num_features} features have one value for all train images{collapsed}")
    counts = {
        "test_images_of_unknown_class": compared.unknown_images,
        "classes_without_test_image": compared.untested_classes,
        "constant_features": constant,
    }
    return Splits(
        train=train.values,
        train_labels=_renumber(train.labels, classes),
        test=test.values,
        test_labels=_renumber(test.labels, classes),
        num_classes=len(classes),
        facts={name: count for name, count in counts.items() if count},
        notes=tuple(notes),
    )


def _check_features(split: Features, *, name: str) -> None:
    if not len(split.labels):
        raise EvaluationError(f"none of the {split.num_unreadable} images of its {name} split can be read")
    broken = (~split.values.isfinite()).any(dim=1)
    if broken.any():
        raise EvaluationError(
            f"the features of {int(broken.sum())} of {len(broken)} images of its {name} split are not finite (NaN or "
            "infinity): the "
            f"weights overflow in this precision, or training has diverged"
        )


def _renumber(labels: Tensor, classes: Tensor) -> Tensor:
    """Map ids to indices among sorted classes; -1 for an id that is not one of them."""
    indices = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
    return torch.where(classes[indices] == labels, indices, -1)
