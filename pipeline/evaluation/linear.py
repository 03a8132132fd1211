"""Linear probe: multinomial logistic regression on frozen features, its penalty chosen on a part of train.

The test split is looked at once, with the penalty already chosen and the classifier fitted again on all of train.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 0.2  # of train, to choose the penalty on
PENALTIES = tuple(10.0**exponent for exponent in range(-5, 2))  # of the mean loss: 1e-5 to 10
MAX_ITERATIONS = 300


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: logits are (x - mean) / std @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) to class ids (N,)."""
        return (((features.double() - self.mean) / self.std) @ self.weight + self.bias).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        return float((self.predict(features) == labels).double().mean())


@dataclass(frozen=True)
class LinearResult:
    """Test accuracy and the penalty that the held-out part of train chose."""

    accuracy: float
    penalty: float
    held_out_accuracy: float


def fit_logistic(
    features: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2 by full-batch L-BFGS in fp64; the bias is free.

    Features are standardised first. The optimum is unique, so `start`, a probe of the same features under another
    penalty, changes nothing but the time.

    Args:
        features: (N, D); labels: (N,) int64.
    """
    x = features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False)
    std = torch.where(std > 1e-12, std, 1.0)  # a constant feature says nothing and must not divide by zero
    x = (x - mean) / std
    weight = (
        torch.zeros(x.shape[1], num_classes, dtype=torch.float64, device=x.device) if start is None else start.weight.clone()
    )
    bias = torch.zeros(num_classes, dtype=torch.float64, device=x.device) if start is None else start.bias.clone()
    solver = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()], max_iter=MAX_ITERATIONS, history_size=20, tolerance_grad=1e-6,
        tolerance_change=1e-12, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, labels) + 0.5 * penalty * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return LinearProbe(weight=weight.detach(), bias=bias.detach(), mean=mean, std=std)


def split_train(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to fit on and to choose on: `HELD_OUT` of every class, at least one image where it has two."""
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
    """Choose the penalty on a part of train, fit on all of train, report on test."""
    fit, choose = (part.to(train_labels.device) for part in split_train(train_labels.cpu(), seed=seed))
    scores = {}
    probe = None
    for penalty in reversed(PENALTIES):  # from the strongest down, each from the last one's solution: a short way every time
        probe = fit_logistic(train_features[fit], train_labels[fit], num_classes=num_classes, penalty=penalty, start=probe)
        scores[penalty] = probe.accuracy(train_features[choose], train_labels[choose])
    best = max(scores.values())
    penalty = max(p for p, score in scores.items() if score == best)  # of equals the strongest
    probe = fit_logistic(train_features, train_labels, num_classes=num_classes, penalty=penalty)
    return LinearResult(accuracy=probe.accuracy(test_features, test_labels), penalty=penalty, held_out_accuracy=best)
