"""Diagnostics are the formulas of their papers, computed another way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.errors import EvaluationError
from pipeline.evaluation.protocols.diagnostics import Diagnostics, class_alignment, effective_rank, uniformity
from pipeline.evaluation.splits import Splits


def make_features(count: int, size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "size"), [(50, 8), (5, 12)])
def test_the_rank_is_that_of_the_singular_values(count: int, size: int) -> None:
    values = make_features(count, size)
    singular = torch.linalg.svdvals(values)
    parts = singular / singular.sum() + 1e-7
    expected = torch.distributions.Categorical(probs=parts, validate_args=False).entropy().exp()
    assert effective_rank(values) == pytest.approx(float(expected), rel=1e-5)
    assert 1 < effective_rank(values) <= min(count, size) + 1e-3
    # One direction has rank one, equal directions all of them, nothing none.
    assert effective_rank(values[:, :1] @ values[:1]) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(size)) == pytest.approx(size, rel=1e-4)
    assert effective_rank(torch.zeros(4, 3)) == 0


def test_uniformity_and_alignment_are_means_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluation.protocols.diagnostics.ROWS", 7)
    features = torch.nn.functional.normalize(make_features(40, 6), dim=1)
    assert uniformity(features) == pytest.approx(float(torch.pdist(features).square().mul(-2).exp().mean().log()), rel=1e-9)
    labels = torch.arange(40) % 3
    labels[:5] = -1
    pairs = [(i, j) for i in range(40) for j in range(i) if labels[i] == labels[j] >= 0]
    expected = torch.stack([(features[i] - features[j]).square().sum() for i, j in pairs]).mean()
    value, num_pairs = class_alignment(features, labels)
    assert num_pairs == len(pairs)
    assert value == pytest.approx(float(expected), rel=1e-9)
    # All alike: nothing is spread, and classes are aligned.
    same = features[:1].expand(9, 6)
    assert uniformity(same) == pytest.approx(0, abs=1e-12)
    assert class_alignment(same, torch.zeros(9))[0] == pytest.approx(0, abs=1e-12)


def test_what_there_is_too_little_of_is_refused() -> None:
    protocol = Diagnostics()  # type: ignore[call-arg]
    labels = torch.arange(3)
    splits = Splits(make_features(5, 4), torch.arange(5), make_features(3, 4), labels, num_classes=5, facts={}, notes=())
    rank, spread, alignment = protocol.settings()
    measured = protocol.measure(splits, rank)
    assert measured.kind == "score"
    assert measured.value == pytest.approx(measured.detail["effective_rank"] / 4)
    assert protocol.measure(splits, spread).kind == "loss"
    with pytest.raises(EvaluationError, match="class alignment needs two test images of one class"):
        protocol.measure(splits, alignment)
    with pytest.raises(EvaluationError, match="uniformity needs two test images"):
        protocol.measure(replace(splits, test=splits.test[:1], test_labels=labels[:1]), spread)
