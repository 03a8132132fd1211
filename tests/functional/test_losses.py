"""Losses are compared with torch's own and with hand-written sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.functional.losses import one_hot_targets, sigmoid_cross_entropy, smooth, softmax_cross_entropy

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def test_softmax_equals_torchs() -> None:
    targets = one_hot_targets(LABELS, num_classes=5)
    torch.testing.assert_close(softmax_cross_entropy(LOGITS, targets), F.cross_entropy(LOGITS, LABELS))


def test_label_smoothing_equals_torchs() -> None:
    targets = smooth(one_hot_targets(LABELS, num_classes=5), label_smoothing=0.2)
    torch.testing.assert_close(softmax_cross_entropy(LOGITS, targets), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2))


def test_sigmoid_is_a_sum_over_classes_and_a_mean_over_images() -> None:
    targets = one_hot_targets(LABELS, num_classes=5)
    chance = torch.sigmoid(LOGITS.double())
    expected = -(targets * chance.log() + (1 - targets) * (1 - chance).log()).sum(dim=1).mean()
    assert sigmoid_cross_entropy(LOGITS, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_bf16_logits_are_reduced_in_fp32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    targets = one_hot_targets(LABELS, num_classes=5)
    value = loss(LOGITS.bfloat16(), targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(LOGITS.bfloat16().float(), targets))
