"""Fit a linear probe: multinomial logistic regression on frozen features, its penalty chosen on a part of train.

The test split is used once, after the penalty is chosen and the classifier is fitted again on all of train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import ProtocolSection, Setting
from pipeline.evaluation.protocols.logistic import Convergence, solve_logistic
from pipeline.evaluation.requirements import why_no_linear
from pipeline.evaluation.splits import Splits

HELD_OUT = 0.2  # part of train to choose the penalty on
PENALTIES = tuple(10.0**exponent for exponent in range(-5, 2))  # of the mean loss: 1e-5 to 10


class Linear(ProtocolSection):
    """Fits multinomial logistic regression to all of train."""

    protocol: Literal["linear"] = "linear"

    def settings(self) -> list[Setting]:
        return [Setting("linear")]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        del setting
        result = linear_probe(
            train_features=splits.train,
            train_labels=splits.train_labels,
            test_features=splits.test,
            test_labels=splits.test_labels,
            num_classes=splits.num_classes,
        )
        fit = result.convergence  # a classifier that is not at its optimum is not the one that the protocol names
        return Measured(
            result.accuracy,
            {
                "penalty": result.penalty,
                "held_out_accuracy": result.held_out_accuracy,
                "held_out_images": result.held_out_images,
                "converged": fit.converged,
                "iterations": fit.iterations,
                "gradient_norm": fit.gradient_norm,
                "not_converged_penalties": list(result.not_converged),
            },
        )

    def why_impossible(self, train: ClassCounts) -> str | None:
        return why_no_linear(train)

    def warnings(self, row: dict[str, Any]) -> list[str]:
        found = []
        if row.get("converged") is False:
            found.append(
                f"WARNING: {row['dataset']} linear: the solver stopped before the optimum ({row['iterations']} "
                "iterations, gradient "
                f"norm {row['gradient_norm']:.2g}); the accuracy is of the classifier it had reached"
            )
        if row.get("not_converged_penalties"):
            found.append(
                f"WARNING: {row['dataset']} linear: the solver stopped before the optimum at penalties "
                f"{', '.join(f'{p:g}' for p in row['not_converged_penalties'])}, which may have changed the choice of "
                "the penalty"
            )
        return found


@dataclass(frozen=True)
class LinearProbe:
    """Holds a fitted classifier: logits are (x - mean) / std @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    convergence: Convergence

    def predict(self, features: Tensor) -> Tensor:
        """Map features (N, D) to class ids (N,)."""
        return (((features.double() - self.mean) / self.std) @ self.weight + self.bias).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        return float((self.predict(features) == labels).double().mean())


@dataclass(frozen=True)
class LinearResult:
    """Holds test accuracy, and the penalty that the held-out part of train chose."""

    accuracy: float
    penalty: float
    held_out_accuracy: float
    held_out_images: int
    convergence: Convergence  # of the tested classifier
    not_converged: tuple[float, ...]  # penalties whose classifiers did not reach the tolerance when the penalty was chosen


def fit_logistic(
    features: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2 in fp64; the bias is free. Features are standardised first.

    Args:
        features: (N, D); labels: (N,) int64, every class of which has an image.
        start: a probe of similar features or another penalty. The minimum is unique: it changes nothing but the time.
    """
    x = features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False)
    # A constant feature says nothing and must not divide by zero. Its deviation is rounding, in proportion to its value.
    std = torch.where(std > 1e-12 * mean.abs(), std, 1.0)
    solution = solve_logistic(
        (x - mean) / std, labels, num_classes=num_classes, penalty=penalty, start=(start.weight, start.bias) if start else None
    )
    return LinearProbe(solution.weight, solution.bias, mean, std, solution.convergence)


def split_train(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return indices to fit on and to choose on: `HELD_OUT` of every class, at least one image where it has two."""
    generator = np.random.default_rng(seed)
    fit: list[np.ndarray] = []
    choose: list[np.ndarray] = []
    for label in np.unique(labels.numpy()):
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        held = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        choose.append(members[:held])
        fit.append(members[held:])
    return torch.from_numpy(np.concatenate(fit)), torch.from_numpy(np.concatenate(choose))


def linear_probe(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, num_classes: int, seed: int = 0
) -> LinearResult:
    """Choose the penalty on a part of train, fit on all of train, report on test.

    Args:
        train_labels: every class has an image.

    Raises:
        EvaluationError: no class has two images in train, so nothing can be held out.
    """
    if (reason := why_no_linear(ClassCounts.of_labels(train_labels.cpu()))) is not None:
        raise EvaluationError(reason)
    fit, choose = (part.to(train_labels.device) for part in split_train(train_labels.cpu(), seed=seed))
    probes: dict[float, LinearProbe] = {}
    probe = None
    for penalty in reversed(PENALTIES):  # strongest first, each starting from the last solution, which is always near
        probe = probes[penalty] = fit_logistic(
            train_features[fit], train_labels[fit], num_classes=num_classes, penalty=penalty, start=probe
        )
    scores = {penalty: probe.accuracy(train_features[choose], train_labels[choose]) for penalty, probe in probes.items()}
    best = max(scores.values())
    penalty = max(p for p, score in scores.items() if score == best)  # the strongest of equals
    probe = fit_logistic(train_features, train_labels, num_classes=num_classes, penalty=penalty, start=probes[penalty])
    return LinearResult(
        accuracy=probe.accuracy(test_features, test_labels),
        penalty=penalty,
        held_out_accuracy=best,
        held_out_images=len(choose),
        convergence=probe.convergence,
        not_converged=tuple(p for p, fitted in probes.items() if not fitted.convergence.converged),
    )
