"""Measure few-shot accuracy: regularised least squares from frozen features to -1/+1 class targets, in closed form.

This is the paper's few-shot measure (section 4.1, "Metrics"), with the settings of big_vision's `evaluators/fewshot_lsr.py`:
features standardised by the support set, a constant feature of 100 as bias, ridge penalty 2^10, support drawn by
`numpy.random.default_rng(seed)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import ProtocolSection, Setting
from pipeline.evaluation.requirements import short_classes, takes_all
from pipeline.evaluation.splits import Splits
from pipeline.section import Seed

BIAS_FEATURE = 100.0
L2_PENALTY = 2.0**10
STD_EPS = 1e-5


class FewShot(ProtocolSection):
    """Fits a ridge regression to a few images a class, drawn by each seed (paper, section 4.1)."""

    protocol: Literal["few_shot"] = "few_shot"
    shots: tuple[PositiveInt, ...] = Field(default=(1, 5, 10, 25), description="images a class")
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), description="draws of the support set")

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        for key in ("shots", "seeds"):
            values = getattr(self, key)
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                once = ",".join(str(value) for value in dict.fromkeys(values))
                raise ValueError(f"{key}: {repeated} is there {values.count(repeated)} times; write {key}=[{once}]")
        return self

    def settings(self) -> list[Setting]:
        return [Setting(f"{shots}-shot", seed, (("shots", shots),)) for shots in self.shots for seed in self.seeds]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure a setting. If no class has more than `shots` images, all of train is every seed's support: one counts."""
        shots, seed = int(dict(setting.parameters)["shots"]), setting.seed
        assert seed is not None
        is_all = takes_all(ClassCounts.of_labels(splits.train_labels.cpu()), shots)
        key = ("few_shot", shots, None if is_all else seed)
        if key in splits.known:
            return splits.known[key]
        support = choose_support(splits.train_labels.cpu(), shots=shots, seed=seed)
        accuracy = few_shot_accuracy(
            train_features=splits.train,
            train_labels=splits.train_labels,
            test_features=splits.test,
            test_labels=splits.test_labels,
            support=support,
            num_classes=splits.num_classes,
        )
        detail = {
            "short_classes": len(support.short_classes),
            "support": "all" if is_all else "drawn",
            "support_images": len(support.indices),
        }
        splits.known[key] = result = Measured(accuracy, detail)
        return result

    def notes(self, train: ClassCounts, *, class_names: Sequence[str] | None, path: str) -> list[str]:
        short = [shots for shots in self.shots if short_classes(train, shots)]
        if not short:
            return []
        smallest = int(train.images.argmin())
        count, label = int(train.images[smallest]), int(train.ids[smallest])
        name = f" ({class_names[label]})" if class_names is not None and label < len(class_names) else ""
        whole = [shots for shots in short if takes_all(train, shots)]
        parts = [f"{len(short_classes(train, shots))} of {len(train.ids)} classes at {shots}-shot" for shots in short]
        seeds = f"; at {', '.join(map(str, whole))} that is all of train, whatever the seed" if whole else ""
        enough = [shots for shots in self.shots if shots not in short] or [count]
        return [
            f"class {label}{name} has {count} train image{'s' * (count != 1)}, and {path}.shots asks for {_listed(short)}. "
            "A class with "
            f"fewer gives all that it has ({', '.join(parts)}){seeds}. Shots that every class has: "
            f"{path}.shots='[{', '.join(map(str, enough))}]'"
        ]

    def warnings(self, row: dict[str, Any]) -> list[str]:
        found = []
        if row.get("short_classes"):
            found.append(f"{row['dataset']}: {row['short_classes']} classes have fewer than {row['shots']} train images")
        if row.get("support") == "all":
            found.append(
                f"{row['dataset']} {row['shots']}-shot: no class has more images, so it takes all "
                f"{row['support_images']} of train: no spread over seeds"
            )
        return found


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


@dataclass(frozen=True)
class Support:
    """Holds the images that a few-shot classifier may see."""

    indices: Tensor  # (n,) indices into the train split
    short_classes: tuple[int, ...]  # classes with fewer than `shots` images


def choose_support(labels: Tensor, *, shots: int, seed: int) -> Support:
    """Choose up to `shots` images a class, at random under `seed`. A smaller draw is a prefix of a larger one."""
    generator = np.random.default_rng(seed)
    array = labels.numpy()
    chosen: list[np.ndarray] = []
    for label in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == label))[:shots]
        chosen.append(members)
    short = short_classes(ClassCounts.of_labels(array), shots)
    return Support(indices=torch.from_numpy(np.concatenate(chosen)), short_classes=short)


def ridge_weights(features: Tensor, targets: Tensor, *, l2: float) -> Tensor:
    """Return the argmin over W of |X W - Y|^2 + l2 |W|^2, for X (N, D) and Y (N, C): W (D, C), in fp64.

    It is solved in the smaller of the two dimensions (W = (X'X + l2)^-1 X'Y = X' (XX' + l2)^-1 Y), through a symmetric
    eigendecomposition.
    """
    x, y = features.double(), targets.double()
    primal = x.shape[0] >= x.shape[1]
    gram = x.T @ x if primal else x @ x.T
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    inverse = (eigenvectors / (eigenvalues + l2)) @ eigenvectors.T
    return inverse @ (x.T @ y) if primal else x.T @ (inverse @ y)


def few_shot_accuracy(
    *,
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    support: Support,
    num_classes: int,
    l2: float = L2_PENALTY,
) -> float:
    """Return the part of the test images that the ridge classifier of `support` classifies right.

    Args:
        train_features: (N, D); train_labels: (N,).
        test_features: (M, D); test_labels: (M,).
    """
    chosen = support.indices.to(train_features.device)
    x = train_features[chosen].double()
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False) + STD_EPS
    targets = 2.0 * torch.nn.functional.one_hot(train_labels[chosen], num_classes).double() - 1.0

    def prepare(features: Tensor) -> Tensor:
        standard = (features.double() - mean) / std
        return torch.nn.functional.pad(standard, (0, 1), value=BIAS_FEATURE)

    weights = ridge_weights(prepare(x), targets, l2=l2)
    predicted = (prepare(test_features) @ weights).argmax(dim=1)
    return float((predicted == test_labels).double().mean())
