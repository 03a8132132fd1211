"""Find the classes of patches in masks, and score how well pixels were classified."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, bincount

from pipeline.data.images.masks import IGNORED
from pipeline.errors import EvaluationError

NUM_IDS = 256


def classes_of_patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the class of most pixels of each patch, the smallest of equals: masks (B, H, W) to (B, P) int64.

    It is `IGNORED` where more pixels have no class than have any one class. Height and width are multiples of the grid's.
    """
    rows, columns = grid
    height, width = masks.shape[-2] // rows, masks.shape[-1] // columns
    tiles = masks.unflatten(1, (rows, height)).unflatten(3, (columns, width)).permute(0, 1, 3, 2, 4).flatten(3)
    return tiles.flatten(1, 2).long().mode(dim=-1).values


@dataclass(frozen=True)
class Scores:
    """Holds how well pixels were classified; the mean is over `num_classes` classes."""

    mean_iou: float
    pixel_accuracy: float
    num_classes: int


def confusion(predicted: Tensor, masks: Tensor) -> np.ndarray:
    """Count pixels by true and predicted class id, both (B, H, W): (256, 256)."""
    counted = masks != IGNORED
    pairs = masks[counted].long() * NUM_IDS + predicted[counted]
    return bincount(pairs, minlength=NUM_IDS**2).reshape(NUM_IDS, NUM_IDS).cpu().numpy()


def scores_of(counts: np.ndarray) -> Scores:
    """Return the scores of pixels counted by true (rows) and predicted class.

    Raises:
        EvaluationError: no pixel has a class.
    """
    right, union = counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    there = union > 0
    if not there.any():
        raise EvaluationError("no pixel of its test masks has a class")
    return Scores(float((right[there] / union[there]).mean()), float(right.sum() / counts.sum()), int(there.sum()))
