"""The few-shot probe: its predictions are those of scikit-learn's direct fp64 solution, its draws those of big_vision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge  # type: ignore[import-not-found]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-not-found]
from torch import Tensor

from pipeline.evaluation.features import Features
from pipeline.evaluation.protocols import FewShot
from pipeline.evaluation.protocols.classifier import Classifier, row_norms
from pipeline.evaluation.protocols.few_shot import L2_PENALTY, order_images
from pipeline.evaluation.protocols.ridge import BIAS_FEATURE, STD_EPS, fit_nested, ridge_weights
from pipeline.evaluation.splits import prepare_splits

CLASSES = 7


def clusters(count: int, *, width: int = 24, seed: int) -> tuple[Tensor, Tensor]:
    centres = np.random.default_rng(0).normal(size=(CLASSES, width))
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    return torch.from_numpy(centres[labels] + 2.5 * generator.normal(size=(count, width))).float(), torch.from_numpy(labels)


def predict_by_scikit_learn(x: Tensor, labels: Tensor, test: Tensor, *, l2: float = L2_PENALTY) -> np.ndarray:
    scaler = StandardScaler().fit(x.double().numpy())
    scaler.scale_ = x.double().numpy().std(axis=0) + STD_EPS
    widen = lambda values: np.pad(scaler.transform(values), ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)  # noqa: E731
    targets = 2.0 * np.eye(CLASSES)[labels.numpy()] - 1
    model = Ridge(alpha=l2, fit_intercept=False).fit(widen(x.double().numpy()), targets)
    return model.predict(widen(test.double().numpy())).argmax(axis=1)


@pytest.mark.parametrize("count", [300, 15])  # more images than features, and fewer
@pytest.mark.parametrize("width", [24, 200])  # one panel of the symmetric product, and two
@pytest.mark.parametrize("l2", [1.0, L2_PENALTY])
def test_ridge_equals_scikit_learns(count: int, width: int, l2: float) -> None:
    x, labels = clusters(count, width=width, seed=1)
    y = torch.nn.functional.one_hot(labels, CLASSES).double()
    theirs = Ridge(alpha=l2, fit_intercept=False).fit(x.double().numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(ridge_weights(x, y, l2=l2).numpy(), theirs, atol=1e-9, rtol=1e-7)


def shifted(x: Tensor) -> Tensor:
    """Move features by as much as 10,000 deviations, and scale them from 1e-3 to 1e3."""
    width = x.shape[1]
    return x * torch.logspace(-3, 3, width) + torch.logspace(4, -4, width) * torch.logspace(-3, 3, width)


def dead_in_support(x: Tensor) -> Tensor:
    """Some features have one value, or nearly so, for most images."""
    x = x.clone()
    x[:250, 0] = 3.1
    x[:250, 1] = 5.0 + 1e-6 * x[:250, 1]
    x[:, 2] = 0.7
    x[:, 3] = 0.0
    return x


def far_from_the_others(x: Tensor) -> Tensor:
    """The images of smaller supports and of test have feature 0 near 5000, the others near 0: 2e7 deviations from the mean."""
    x = x.double()
    x[:250, 0] = 5000 + 1e-4 * x[:250, 0]
    x[400:, 0] = 5000 + 1e-4 * x[400:, 0]
    return x


CHANGES = {"plain": lambda x: x, "shifted": shifted, "dead": dead_in_support, "far": far_from_the_others}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("l2", [1.0, L2_PENALTY])
def test_every_prediction_of_nested_supports_is_scikit_learns(change: Callable[[Tensor], Tensor], l2: float) -> None:
    (x, labels), (test, _) = clusters(400, seed=1), clusters(3000, seed=2)
    x, test = change(torch.cat([x, test])).split([400, 3000])
    supports = [torch.arange(count) for count in (7, 14, 21, 70, 175, 400)]
    fits = fit_nested(x, labels, supports=supports, num_classes=CLASSES, l2=l2)
    for support, fitted in zip(supports, fits, strict=True):
        theirs = predict_by_scikit_learn(x[support], labels[support], test, l2=l2)
        assert int((fitted.predict(test).numpy() != theirs).sum()) == 0


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-7, 1e-6])
def test_classes_that_fp32_cannot_tell_apart_are_those_of_fp64(gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator)
    weight = torch.randn(64, 1, generator=generator, dtype=torch.float64) * torch.ones(3)
    weight[:, 1:] += gap * torch.randn(64, 2, generator=generator, dtype=torch.float64)
    ours = Classifier(weight, torch.zeros(3, dtype=torch.float64))
    assert ours.predict(x, norms=row_norms(x)).equal((x.double() @ weight).argmax(dim=1))


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_products_outside_the_range_of_fp32_are_those_of_fp64(scale: float) -> None:
    x, _ = clusters(200, seed=1)
    weight = torch.randn(24, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e14
    ours = Classifier(weight, torch.zeros(CLASSES, dtype=torch.float64)).predict(scale * x)
    assert ours.equal(((scale * x).double() @ weight).argmax(dim=1))
    assert len(ours.unique()) == CLASSES


def test_draws_are_big_visions() -> None:
    """`numpy.random.default_rng(seed)` permutes the images of each class in turn, and the first ones are taken."""
    labels = np.random.default_rng(5).integers(0, 6, 100)
    for seed in (0, 7):
        generator = np.random.default_rng(seed)
        permuted = [generator.permutation(np.where(labels == label)[0]) for label in range(6)]
        order = order_images(torch.from_numpy(labels), seed=seed)
        for shots in (1, 5, 12, 1000):
            theirs = np.concatenate([indices[:shots] for indices in permuted])
            assert sorted(order.support(shots).tolist()) == sorted(theirs.tolist())
            assert order.support(1000)[: len(theirs)].equal(order.support(shots))


def test_scenics_form_takes_the_first_images_of_each_class() -> None:
    labels = torch.tensor([2, 0, 0, 2, 1, 0, 2])
    assert sorted(order_images(labels, seed=None).support(2).tolist()) == [0, 1, 2, 3, 4]
    settings = FewShot(form="scenic", shots=(1, 5), l2=1.0).settings()
    assert [(setting.measure, setting.seed) for setting in settings] == [
        ("scenic 1-shot l2 1", None),
        ("scenic 5-shot l2 1", None),
    ]


@pytest.mark.parametrize("form", ["big_vision", "scenic"])
def test_the_accuracy_is_that_of_the_recipe_in_scikit_learn(form: str) -> None:
    (x, labels), (test, test_labels) = clusters(140, seed=1), clusters(500, seed=2)
    splits = prepare_splits(Features(x, labels, 0), Features(test, test_labels, 0))
    protocol = FewShot(form=form, shots=(5, 1, 12, 25), seeds=(0, 3))  # type: ignore[arg-type]
    for setting in protocol.settings():
        shots = int(dict(setting.parameters)["shots"])
        support = order_images(labels, seed=setting.seed).support(shots)
        theirs = predict_by_scikit_learn(x[support], labels[support], test) == test_labels.numpy()
        ours = protocol.measure(splits, setting)
        assert ours.value == pytest.approx(theirs.mean(), abs=1e-12)
        assert ours.detail["support_images"] == CLASSES * min(shots, 20)
    assert ours.value > 0.3  # chance is 0.14
