"""From the features of two splits to accuracies. What cannot be measured is refused with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError
from pipeline.evaluation.features import Features
from pipeline.evaluation.protocols.few_shot import choose_support, few_shot_accuracy
from pipeline.evaluation.protocols.linear import LinearResult, linear_probe
from pipeline.evaluation.requirements import compare_classes, takes_all
from pipeline.evaluation.tasks import Task


@dataclass(frozen=True)
class Splits:
    """Features ready for the probes. Classes are numbered from 0 in the order of their ids, without gaps.

    Args:
        test_labels: -1 where no train image has the class: such an image is never classified right.
        facts: counts that belong to every result of this set.
        notes: what a user should know.
    """

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,)
    test: Tensor  # (M, D)
    test_labels: Tensor  # (M,)
    num_classes: int
    facts: dict[str, Any]
    notes: tuple[str, ...]
    few_shot: dict[tuple[int, int | None], Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A value and what is worth keeping with it."""

    accuracy: float
    detail: dict[str, Any]


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
        "test_images_of_unknown_class": compared.unknown_images, "classes_without_test_image": compared.untested_classes,
        "constant_features": constant,
    }  # fmt: skip
    return Splits(
        train=train.values, train_labels=_renumber(train.labels, classes), test=test.values, test_labels=_renumber(test.labels, classes),
        num_classes=len(classes), facts={name: count for name, count in counts.items() if count}, notes=tuple(notes),
    )  # fmt: skip


def _check_features(split: Features, *, name: str) -> None:
    if not len(split.labels):
        raise EvaluationError(f"none of the {split.num_unreadable} images of its {name} split can be read")
    broken = (~split.values.isfinite()).any(dim=1)
    if broken.any():
        raise EvaluationError(
            f"the features of {int(broken.sum())} of {len(broken)} images of its {name} split are not finite (NaN or infinity): the "
            f"weights overflow in this precision, or training has diverged"
        )


def _renumber(labels: Tensor, classes: Tensor) -> Tensor:
    """Ids to places among sorted classes; -1 for an id that is not one of them."""
    places = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
    return torch.where(classes[places] == labels, places, -1)


def measure(task: Task, splits: Splits) -> Measured:
    """Run a protocol.

    Raises:
        EvaluationError: the set does not have what it needs.
    """
    if task.protocol == "linear":
        return _measure_linear(splits)
    assert task.shots is not None
    assert task.seed is not None
    return _measure_few_shot(splits, shots=task.shots, seed=task.seed)


def _measure_few_shot(splits: Splits, *, shots: int, seed: int) -> Measured:
    """Where every class has at most `shots` images, all of train is the support, whatever the seed: it is measured once."""
    is_all = takes_all(ClassCounts.of_labels(splits.train_labels.cpu()), shots)
    known = splits.few_shot.get((shots, None if is_all else seed))
    if known is not None:
        return known
    support = choose_support(splits.train_labels.cpu(), shots=shots, seed=seed)
    accuracy = few_shot_accuracy(
        train_features=splits.train, train_labels=splits.train_labels, test_features=splits.test,
        test_labels=splits.test_labels, support=support, num_classes=splits.num_classes,
    )  # fmt: skip
    detail = {
        "short_classes": len(support.short_classes), "support": "all" if is_all else "drawn",
        "support_images": len(support.indices),
    }  # fmt: skip
    splits.few_shot[shots, None if is_all else seed] = result = Measured(accuracy, detail)
    return result


def _measure_linear(splits: Splits) -> Measured:
    result = linear_probe(
        train_features=splits.train, train_labels=splits.train_labels, test_features=splits.test,
        test_labels=splits.test_labels, num_classes=splits.num_classes,
    )  # fmt: skip
    return Measured(result.accuracy, _describe_linear(result))


def _describe_linear(result: LinearResult) -> dict[str, Any]:
    """What the solver reached: a classifier that is not at its optimum is not the one that the protocol names."""
    fit = result.convergence
    return {
        "penalty": result.penalty, "held_out_accuracy": result.held_out_accuracy,
        "held_out_images": result.held_out_images, "converged": fit.converged,
        "iterations": fit.iterations, "gradient_norm": fit.gradient_norm, "not_converged_penalties": list(result.not_converged),
    }  # fmt: skip
