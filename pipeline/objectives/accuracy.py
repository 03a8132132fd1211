"""Compare what an objective predicts with its targets: on training images as they were augmented, and on held-out ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import binary_average_precision


def top_k(num_classes: int, *, k: int) -> Metric:
    """Return the metric of labels (B,) that are among the `k` largest of their logits (B, C), as a part of all labels."""
    return MulticlassAccuracy(num_classes=num_classes, top_k=k, average="micro", validate_args=False)


def top_1_and_5(num_classes: int) -> dict[str, Metric]:
    """Return top-1 accuracy, and top-5 where there are more than five classes."""
    return {f"top-{k}": top_k(num_classes, k=k) for k in (1, 5) if k < num_classes}


class HitAt1(Metric):
    """Measures the part of the images whose largest logit is of a class with a target. Images without labels do not count."""

    full_state_update = False  # an update does not depend on the state, so that states may be merged
    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count a micro-batch's logits and targets, both (B, C)."""
        labelled = targets.any(dim=1)
        best = predictions.argmax(dim=1, keepdim=True)
        self.hits += ((targets.gather(1, best)[:, 0] > 0) & labelled).sum()  # indexing by a mask would wait for the device
        self.total += labelled.sum()

    def compute(self) -> Tensor:
        return self.hits / self.total


class MeanAveragePrecision(Metric):
    """Computes the mean over classes of average precision: precision, averaged over the ranks at which a label is found.

    Classes that no image has are left out. The scores of all images are kept, 4 bytes each: images x classes.
    """

    full_state_update = False
    scores: list[Tensor]
    truth: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take logits and targets, both (B, C)."""
        self.scores.append(predictions.float().cpu())
        self.truth.append((targets > 0).cpu())

    def compute(self) -> Tensor:
        scores, truth = torch.cat(self.scores).T.contiguous(), torch.cat(self.truth).T.contiguous()  # (C, N)
        classes = truth.any(dim=1).nonzero()[:, 0].tolist()
        found = [binary_average_precision(scores[c], truth[c].long(), validate_args=False) for c in classes]
        return torch.stack(found).mean() if found else torch.tensor(torch.nan)
