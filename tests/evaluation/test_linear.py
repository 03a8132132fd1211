"""The linear probe is compared with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]
from sklearn.metrics import log_loss  # type: ignore[import-not-found]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-not-found]
from torch import Tensor

from pipeline.evaluation.protocols import cross_entropy, logistic
from pipeline.evaluation.protocols.linear import PENALTIES, fit_logistic, fit_path, linear_probe, split_train


def clusters(count: int, *, width: int = 24, classes: int = 5, seed: int, spread: float = 2.5) -> tuple[Tensor, Tensor]:
    centres = np.random.default_rng(0).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    return torch.from_numpy(centres[labels] + spread * generator.normal(size=(count, width))).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_logistic_regression_equals_scikit_learns(penalty: float) -> None:
    x, labels = clusters(300, seed=1)
    ours = fit_logistic(x, labels, num_classes=5, penalty=penalty)
    standard = StandardScaler().fit_transform(x.double().numpy())
    # scikit-learn sums the losses: its C is 1 / (penalty * images).
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=10_000).fit(standard, labels.numpy())
    np.testing.assert_allclose(ours.weight.T.numpy(), theirs.coef_, atol=2e-4)
    difference = ours.bias.numpy() - theirs.intercept_  # the softmax does not see a constant added to all
    np.testing.assert_allclose(difference - difference.mean(), 0, atol=2e-4)
    assert ours.accuracy(x, labels) == pytest.approx(theirs.score(standard, labels.numpy()), abs=0.004)


def overlapping(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Make twenty classes that overlap, in features whose scales differ and that depend on each other."""
    generator = np.random.default_rng(seed)
    width, classes = 24, 20
    centres = 0.2 * np.random.default_rng(1).normal(size=(classes, width))
    mixing = np.arange(1, width + 1)[:, None] ** -0.7 * np.random.default_rng(2).normal(size=(width, width))
    labels = generator.integers(0, classes, count)
    return torch.from_numpy((centres[labels] + generator.normal(size=(count, width))) @ mixing).float(), torch.from_numpy(
        labels
    )


def test_a_weak_penalty_is_solved_to_the_optimum_too() -> None:
    """First-order solvers stop far from it: L-BFGS needs more than a thousand iterations here."""
    (x, labels), (test, _) = overlapping(300, seed=1), overlapping(2000, seed=2)
    ours = fit_logistic(x, labels, num_classes=20, penalty=PENALTIES[0])
    assert ours.convergence.converged
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=1 / (PENALTIES[0] * len(x)), solver="newton-cholesky", tol=1e-10, max_iter=1000)
    theirs.fit(scaler.transform(x.double().numpy()), labels.numpy())
    np.testing.assert_allclose(ours.weight.T.numpy(), theirs.coef_, atol=1e-4 * np.abs(theirs.coef_).max())
    assert (theirs.predict(scaler.transform(test.double().numpy())) == ours.predict(test).numpy()).all()


def separable(count: int) -> tuple[Tensor, Tensor]:
    return clusters(count, width=40, classes=4, seed=1, spread=0.4)


def imbalanced(count: int) -> tuple[Tensor, Tensor]:
    """Make classes of 1, 2, 4, ... images."""
    x, _ = clusters(count, seed=1)
    labels = torch.from_numpy(np.floor(np.log2(np.arange(1, count + 1))).astype(np.int64))
    x[:, 0] += 0.5 * labels
    return x, labels


SETS = {"separable": separable, "imbalanced": imbalanced, "ordinary": lambda count: clusters(count, seed=1)}


@pytest.mark.parametrize("make", SETS.values(), ids=SETS)
@pytest.mark.parametrize("limits", [{}, {"stored": 0, "classes": 0}], ids=["stored", "large"])
def test_every_objective_of_a_path_is_at_scikit_learns_minimum(
    make: Callable[[int], tuple[Tensor, Tensor]], limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for the logits of all images, and for the covariance of the classes, too."""
    x, labels = make(300)
    classes = int(labels.max()) + 1
    if limits:
        monkeypatch.setattr(cross_entropy, "STORED_BYTES", limits["stored"])
        monkeypatch.setattr(logistic, "MOST_CLASSES", limits["classes"])
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 0)  # chunks of 256 images
    standard = StandardScaler().fit_transform(x.double().numpy())
    path = PENALTIES[::-2]
    theirs = LogisticRegression(tol=1e-10, max_iter=10_000, warm_start=True)
    for penalty, ours in zip(path, fit_path(x, labels, num_classes=classes, penalties=path, tolerance=1e-6), strict=True):
        theirs.set_params(C=1 / (penalty * len(x))).fit(standard, labels.numpy())
        least = log_loss(labels.numpy(), theirs.predict_proba(standard)) + 0.5 * penalty * np.square(theirs.coef_).sum()
        logits = standard @ ours.weight.numpy() + ours.bias.numpy()
        found = log_loss(labels.numpy(), softmax(logits, axis=1)) + 0.5 * penalty * float(ours.weight.square().sum())
        assert found == pytest.approx(ours.convergence.objective, rel=1e-12)
        assert found <= least * (1 + 1e-6)
        assert ours.convergence.converged


def test_a_solver_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clusters(300, seed=1)
    data = {"train_features": x, "train_labels": labels, "test_features": x, "test_labels": labels, "num_classes": 5}
    whole = linear_probe(**data)
    assert whole.convergence.converged
    assert not whole.not_converged
    assert 0 < whole.convergence.gap <= logistic.GAP_TOLERANCE
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    early = linear_probe(**data)
    assert not early.convergence.converged
    assert early.convergence.iterations == 2  # one in fp32, one in fp64
    assert PENALTIES[0] in early.not_converged
    assert early.convergence.gradient_norm > whole.convergence.gradient_norm


def test_a_constant_feature_does_no_harm() -> None:
    x, labels = clusters(100, seed=1)
    padded = torch.cat([x, torch.full((100, 1), 3.0)], dim=1)
    plain, with_constant = (fit_logistic(v, labels, num_classes=5, penalty=0.1).accuracy(v, labels) for v in (x, padded))
    assert plain == with_constant


def test_the_penalty_is_chosen_on_train_alone() -> None:
    train, train_labels = clusters(120, seed=1, spread=4.0)
    test, test_labels = clusters(500, seed=2, spread=4.0)
    result = linear_probe(
        train_features=train, train_labels=train_labels, test_features=test, test_labels=test_labels, num_classes=5
    )
    shuffled = linear_probe(
        train_features=train, train_labels=train_labels, test_features=test, test_labels=test_labels.roll(1), num_classes=5
    )
    assert result.penalty == shuffled.penalty  # labels of test have no say
    assert result.held_out_accuracy == shuffled.held_out_accuracy
    weakest = fit_logistic(train, train_labels, num_classes=5, penalty=PENALTIES[0]).accuracy(test, test_labels)
    assert result.accuracy >= weakest  # with 120 images of 24 features some penalty helps


def test_the_held_out_part_has_every_class_and_no_image_twice() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] + [3] * 50)
    fit, choose = split_train(labels, seed=0)
    assert sorted([*fit.tolist(), *choose.tolist()]) == list(range(63))
    assert torch.bincount(labels[choose]).tolist() == [2, 1, 0, 10]
