"""Splits that lack what a protocol needs are refused with the reason, or counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import EvaluationError
from pipeline.evaluation.features import Features
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols import FewShot, Linear
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.splits import Splits, prepare_splits
from pipeline.evaluation.tasks import MeasuredUnder, describe, key_of, key_of_row, list_tasks

WIDTH = 6
EvaluationTask = tuple[FeatureProtocol, Setting]
LINEAR = (Linear(), Linear().settings()[0])


def features(labels: list[int], *, seed: int = 0, unreadable: int = 0) -> Features:
    """Draw features around a centre for each class."""
    generator = np.random.default_rng(seed)
    centres = {label: np.random.default_rng(label).normal(size=WIDTH) for label in labels}
    values = np.array([centres[label] + 0.1 * generator.normal(size=WIDTH) for label in labels]).reshape(-1, WIDTH)
    return Features(torch.from_numpy(values).float(), torch.tensor(labels, dtype=torch.int64), unreadable)


def few_shot(shots: int, seed: int = 0) -> EvaluationTask:
    protocol = FewShot(shots=(shots,), seeds=(seed,))
    return protocol, protocol.settings()[0]


def measure(task: EvaluationTask, splits: Splits) -> Measured:
    protocol, setting = task
    return protocol.measure(splits, setting)


def changed(split: Features, *, at: tuple[int, int], value: float) -> Features:
    values: Tensor = split.values.clone()
    values[at] = value
    return Features(values, split.labels, split.num_unreadable)


FOUR_EACH = [0, 1, 2] * 4

REFUSED = [
    (features(FOUR_EACH), features([], unreadable=7), "none of the 7 images of its test split can be read"),
    (features([], unreadable=3), features(FOUR_EACH), "none of the 3 images of its train split can be read"),
    (features([5] * 8), features([5, 5]), "all 8 images of its train split are of class 5"),
    (features(FOUR_EACH), features([7, 8, 9]), "no image of its test split is of a class that its train split has"),
    (changed(features(FOUR_EACH), at=(2, 1), value=math.nan), features(FOUR_EACH), "of 1 of 12 images of its train split"),
    (features(FOUR_EACH), changed(features(FOUR_EACH), at=(0, 0), value=-math.inf), "of 1 of 12 images of its test split"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test", "reason"), REFUSED, ids=[reason[:40] for _, _, reason in REFUSED])
def test_what_says_nothing_is_refused_with_its_reason(train: Features, test: Features, reason: str) -> None:
    with pytest.raises(EvaluationError, match=reason):
        prepare_splits(train, test)


def test_one_image_a_class_has_a_few_shot_accuracy_and_no_linear_probe() -> None:
    splits = prepare_splits(features([0, 1, 2]), features(FOUR_EACH, seed=1))
    assert measure(few_shot(1), splits).value == 1.0
    with pytest.raises(EvaluationError, match=r"no class has two images in its train split \(3 images of 3 classes\)"):
        measure(LINEAR, splits)


def test_fewer_images_than_classes_of_the_test_split() -> None:
    """Classes that train does not have cannot be recognised, and count."""
    splits = prepare_splits(features([0, 0, 4, 4]), features([0, 1, 2, 3, 4] * 2, seed=1))
    assert splits.facts["test_images_of_unknown_class"] == 6
    assert measure(few_shot(1), splits).value == pytest.approx(0.4)
    assert measure(LINEAR, splits).value == pytest.approx(0.4)
    assert "6 of 10 test images are of classes that train does not have; they count as wrong" in splits.notes


def test_gaps_between_class_ids_change_nothing() -> None:
    """A class without images would have a bias that falls for ever, and a million of them would not fit into memory."""
    train, test = features(FOUR_EACH), features(FOUR_EACH, seed=1)
    plain = prepare_splits(train, test)
    ids = torch.tensor([3, 70_000, 2_000_000_000])
    gaps = prepare_splits(Features(train.values, ids[train.labels], 0), Features(test.values, ids[test.labels], 0))
    assert gaps.num_classes == 3
    for task in (few_shot(1), few_shot(4), LINEAR):
        assert measure(task, gaps) == measure(task, plain)
    assert measure(LINEAR, gaps).detail["converged"]


def test_classes_that_are_missing_in_test_are_counted() -> None:
    splits = prepare_splits(features(FOUR_EACH), features([0, 2]))
    assert splits.facts == {"classes_without_test_image": 1}


def test_a_collapsed_representation_is_measured_and_said() -> None:
    train, test = features(FOUR_EACH), features(FOUR_EACH, seed=1)
    same = Features(torch.full_like(train.values, 0.3), train.labels, 0)
    splits = prepare_splits(same, test)
    assert splits.facts == {"constant_features": WIDTH}
    assert any("the representation has collapsed" in note for note in splits.notes)
    for task in (few_shot(1), LINEAR):
        assert measure(task, splits).value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("shots", "support", "short"), [(1, "drawn", 0), (3, "drawn", 1), (5, "all", 2), (25, "all", 3)])
def test_support_that_is_all_of_train_is_named_so(shots: int, support: str, short: int) -> None:
    splits: Splits = prepare_splits(features([0] * 5 + [1] * 4 + [2] * 2), features(FOUR_EACH, seed=1))
    first, second = (measure(few_shot(shots, seed), splits) for seed in (0, 1))
    assert (first.detail["support"], first.detail["short_classes"]) == (support, short)
    assert first.detail["support_images"] == sum(min(shots, count) for count in (5, 4, 2))
    if support == "all":
        assert first is second  # measured once


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_scale_of_features_changes_nothing_for_the_linear_probe(scale: float) -> None:
    """Features far smaller than 1e-12 passed for constant ones, and the accuracy was at chance without a message."""
    train, test = features(FOUR_EACH * 3), features(FOUR_EACH, seed=1)
    constant = torch.full((1, 1), 3.1)  # which must not become noise

    def scaled(split: Features) -> Features:
        values = torch.cat([split.values * scale, constant.expand(len(split.labels), 1)], dim=1)
        return Features(values, split.labels, 0)

    plain = measure(LINEAR, prepare_splits(train, test))
    other = measure(LINEAR, prepare_splits(scaled(train), scaled(test)))
    assert (other.value, other.detail["penalty"]) == (plain.value, plain.detail["penalty"])
    assert plain.value > 0.9


def test_a_protocol_under_a_name_of_its_own_is_told_apart() -> None:
    datasets = [{"name": "x", "train": "a", "test": "b"}]
    protocols = {"few_shot": {"shots": [5], "seeds": [0]}, "other": {"protocol": "few_shot", "shots": [5], "seeds": [0]}}
    section = EvaluationSection.model_validate({"datasets": datasets, "protocols": protocols})
    assert [task.measure for task in list_tasks(section)] == ["x 5-shot", "x other 5-shot"]


def test_a_result_counts_for_its_version_of_the_protocol_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of older software do not say a version. They are of the first."""
    section = EvaluationSection.model_validate({"datasets": [{"name": "x", "train": "a", "test": "b"}]})
    conditions = MeasuredUnder(weights="0", data="1", short_side=256, precision="fp32")
    (task, *_) = list_tasks(section)
    row = describe(4, task, conditions)
    assert row["protocol_version"] == 1
    old = {name: value for name, value in row.items() if name != "protocol_version"}
    assert key_of_row(row) == key_of_row(old) == key_of(4, task, conditions)
    monkeypatch.setattr(FewShot, "version", 2)
    (newer, *_) = list_tasks(section)
    assert key_of(4, newer, conditions) == key_of_row(describe(4, newer, conditions))
    assert key_of(4, newer, conditions) != key_of_row(old)
