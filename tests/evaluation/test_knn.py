"""The vote of the nearest neighbours is scikit-learn's, with the weights of DINOv2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-not-found]
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.evaluation.features import Features
from pipeline.evaluation.protocols import NearestNeighbours, knn
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.splits import Splits, prepare_splits
from pipeline.evaluation.tasks import list_tasks


def clusters(count: int, *, seed: int, classes: int = 6) -> Features:
    centres = np.random.default_rng(0).normal(size=(classes, 16))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    values = centres[labels] + 1.5 * generator.normal(size=(count, 16))
    return Features(torch.from_numpy(values).float(), torch.from_numpy(labels), 0)


def vote_by_scikit_learn(splits: Splits, *, k: int, temperature: float) -> Tensor:
    """Cosine distance is 1 - s, so exp(-distance / T) is the softmax but for a factor that all neighbours share."""
    model = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp(-distances / temperature)
    )
    model.fit(splits.train.double().numpy(), splits.train_labels.numpy())
    return torch.from_numpy(model.predict(splits.test.double().numpy()))


@pytest.mark.parametrize("temperature", [0.07, 10.0])
def test_every_vote_is_scikit_learns(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when train and test come in several parts, fewer images than neighbours in each."""
    splits = prepare_splits(clusters(300, seed=1), clusters(400, seed=2))
    ks = (1, 10, 20, 100, 300)
    for parts in (False, True):
        if parts:
            monkeypatch.setattr(knn, "TEST_ROWS", 70)
            monkeypatch.setattr(knn, "TRAIN_ROWS", 64)
        found = knn.vote_by_neighbours(
            splits.test,
            train=splits.train,
            train_labels=splits.train_labels,
            num_classes=splits.num_classes,
            neighbours=ks,
            temperature=temperature,
        )
        for k, ours in zip(ks, found, strict=True):
            assert ours.equal(vote_by_scikit_learn(splits, k=k, temperature=temperature)), k


def test_each_k_is_a_measure_and_one_larger_than_train_is_said() -> None:
    protocol = NearestNeighbours(k=(200, 5))
    splits = prepare_splits(clusters(60, seed=1), clusters(300, seed=2))
    measured = {setting.measure: protocol.measure(splits, setting) for setting in protocol.settings()}
    assert [found.detail["neighbours"] for found in measured.values()] == [60, 5]
    assert measured["5-nn"].value == pytest.approx(
        float((vote_by_scikit_learn(splits, k=5, temperature=0.07) == splits.test_labels).double().mean())
    )
    assert measured["5-nn"].value > 0.3  # chance is 0.17
    counts = ClassCounts.of_labels(splits.train_labels)
    (note,) = protocol.notes(counts, class_names=None, path="evaluation.protocols.knn")
    assert note.startswith("train has 60 images, and evaluation.protocols.knn.k asks for 200 neighbours: all of train votes")
    assert note.endswith("evaluation.protocols.knn.k='[5]'")
    row = {"dataset": "x", "k": 200, **measured["200-nn"].detail}
    assert protocol.warnings(row) == ["x 200-nn: train has 60 images, and all of them vote"]
    assert not protocol.warnings({"dataset": "x", "k": 5, **measured["5-nn"].detail})


def test_it_is_chosen_by_its_name() -> None:
    section = EvaluationSection.model_validate(
        {"datasets": [{"name": "x", "train": "a", "test": "b"}], "protocols": {"knn": {"k": [1, 3]}}}
    )
    assert [task.measure for task in list_tasks(section)] == ["x 1-nn", "x 3-nn"]
    with pytest.raises(ValueError, match=r"write k=\[3,1\]"):
        NearestNeighbours(k=(3, 1, 3))


def test_a_feature_vector_of_zeros_is_no_neighbour_of_anything() -> None:
    train, test = clusters(60, seed=1), clusters(10, seed=2)
    train.values[0] = 0.0
    test.values[0] = 0.0
    found = NearestNeighbours(k=(10,)).measure(prepare_splits(train, test), NearestNeighbours(k=(10,)).settings()[0])
    assert 0 <= found.value <= 1
