"""Compute classification losses of ViT pretraining, in fp32 whatever the logits' type."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Reduction = Literal["sum", "mean"]  # over the classes


def one_hot_targets(labels: Int[Tensor, " B"], *, num_classes: int) -> Float[Tensor, "B C"]:
    """Return one-hot rows, fp32; with smoothing e each row is (1 - e) * onehot + e / C (Szegedy et al. 2016, section 7)."""
    return F.one_hot(labels.long(), num_classes).to(torch.float32)


def multi_hot_targets(labels: Int[Tensor, " L"], ends: Int[Tensor, " B"], *, num_classes: int) -> Float[Tensor, "B C"]:
    """Rows of 0 and 1, fp32: each image's labels, which end at its end among all."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    # Row i as often as image i has labels. Their number is told, or else it would be asked from the device.
    rows = torch.repeat_interleave(counts, output_size=len(labels))
    targets = torch.zeros(len(ends), num_classes, device=labels.device)
    return targets.index_put_((rows, labels.long()), torch.ones((), device=labels.device))


def smooth(targets: Float[Tensor, "B C"], *, label_smoothing: float) -> Float[Tensor, "B C"]:
    """Targets t as (1 - e) * t + e / C (Szegedy et al. 2016, section 7)."""
    return targets if label_smoothing == 0 else targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]


def sigmoid_cross_entropy(
    logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"], *, reduction: Reduction = "sum"
) -> Float[Tensor, ""]:
    """Return binary cross-entropy summed over the classes, or averaged over them too, and averaged over the batch.

    This is the loss of ImageNet-21k and JFT pretraining, where classes overlap (google-research/vision_transformer, issue #34).
    It is a sum, not a mean, over classes.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum") / logits.shape[0]
    return loss if reduction == "sum" else loss / logits.shape[1]


def softmax_cross_entropy(logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Return cross-entropy against a distribution over classes, averaged over the batch."""
    return F.cross_entropy(logits.float(), targets.float())
