"""Measure a linear classifier of patches: how well the features of single patches tell what they show.

Version 1 of the protocol:

- The whole image is resized to the model's input size, whatever its ratio, and its mask to the same size by the nearest pixel.
- A patch's class is that of most of its pixels. Pixels of class 255 do not count; a patch where they are most has no class.
- Up to 64 patches of each train image, drawn by its place in the set, are fitted by multinomial logistic regression, its
  penalty chosen on a fifth of the train images.
- On test images the logits of patches are interpolated to pixels (bilinear), as in DINOv2's linear segmentation (arXiv
  2304.07193, section 7.4). mIoU is the mean over classes of intersection / union, both summed over all images, for the classes
  that any test image has or is predicted to have. Pixels of class 255 do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.masks import IGNORED
from pipeline.data.shards.index import ShardIndex
from pipeline.errors import EvaluationError
from pipeline.evaluation.failures import failing
from pipeline.evaluation.mask_sets import MaskSet
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import Setting
from pipeline.evaluation.protocols.linear import HELD_OUT, PENALTIES, LinearProbe, fit_logistic
from pipeline.evaluation.reading import EvalBatch, Reading, read_batches
from pipeline.evaluation.tasks import EvaluationTask, Outcome
from pipeline.models.base import Backbone, ModelConfig
from pipeline.run.weights import Weights

PROTOCOL = "segmentation"
VERSION = 1
MEASURES = ("mIoU", "pixel accuracy")
PATCHES_PER_IMAGE = 64
NUM_IDS = 256


@dataclass(frozen=True)
class Patches:
    """Holds labelled patches of train images."""

    values: Tensor  # (N, D) fp32
    labels: Tensor  # (N,) class ids
    images: Tensor  # (N,) number of each patch's image among the images that have any
    num_images: int
    num_unreadable: int


def segmentation_tasks(name: str) -> list[EvaluationTask]:
    """Return every number that is measured on a set."""
    return [EvaluationTask(name, PROTOCOL, Setting(measure), VERSION) for measure in MEASURES]


def measure_segmentation(
    weights: Weights, opened: MaskSet, tasks: Sequence[EvaluationTask], *, transform: EvalTransform, reading: Reading
) -> Iterator[Outcome]:
    """Yield the outcome of each task, after one pass over both splits.

    Args:
        transform: shows whole images.
    """
    with failing(opened.name) as failure:
        values, facts = _measure(weights, opened, transform=transform, reading=reading)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task in tasks)
        return
    yield from (Outcome(task, value=values[task.setting.measure], facts=facts) for task in tasks)


def _measure(
    weights: Weights, opened: MaskSet, *, transform: EvalTransform, reading: Reading
) -> tuple[dict[str, Measured], dict[str, Any]]:
    grid = grid_of(weights.header.model)
    step = weights.header.step
    train = collect_patches(
        weights.model, opened.train, grid=grid, transform=transform, reading=reading, description=f"{opened.name} step {step}"
    )
    probe = choose_probe(train)
    counts, images, unreadable = np.zeros((NUM_IDS, NUM_IDS), np.int64), 0, 0
    batches = _batches(opened.test, transform=transform, reading=reading, description=f"{opened.name} test step {step}")
    for batch in batches:
        unreadable += batch.num_unreadable
        if not len(batch.positions):
            continue
        images += len(batch.positions)
        logits = probe.logits(_patches_of(weights.model, batch, grid=grid, reading=reading), grid=grid)
        for one, mask in zip(logits.split(1), batch.masks.split(1), strict=True):  # all at once would take gigabytes
            pixels = F.interpolate(one, size=mask.shape[-2:], mode="bilinear", align_corners=False)
            counts += confusion(probe.classes[pixels.argmax(dim=1)], mask)
    if not images:
        raise EvaluationError(f"none of the {unreadable} images of its test split can be read")
    scores = scores_of(counts)
    detail = {"classes": scores.num_classes, **probe.detail}
    facts = {
        "test_images": images,
        "train_images": train.num_images,
        "train_patches": len(train.labels),
        "unreadable": train.num_unreadable + unreadable,
    }
    values = {"mIoU": scores.mean_iou, "pixel accuracy": scores.pixel_accuracy}
    return {name: Measured(value, detail, kind="score") for name, value in values.items()}, facts


def grid_of(model: ModelConfig) -> tuple[int, int]:
    """Return the rows and columns of a model's patches.

    Raises:
        EvaluationError: its family does not say.
    """
    if model.patches is None:
        raise EvaluationError(
            f"a model of family {model.family!r} does not say which features are patches; leave evaluation.segmentation out"
        )
    return model.patches.rows, model.patches.columns


def collect_patches(
    model: Backbone, index: ShardIndex, *, grid: tuple[int, int], transform: EvalTransform, reading: Reading, description: str
) -> Patches:
    """Run a frozen model over a split. Return some patches of each image, on the model's device.

    Raises:
        EvaluationError: no image can be read, or features are not finite.
    """
    values: list[Tensor] = []
    labels: list[Tensor] = []
    owners: list[Tensor] = []
    num_images = unreadable = 0
    for batch in _batches(index, transform=transform, reading=reading, description=description):
        unreadable += batch.num_unreadable
        if not len(batch.positions):
            continue
        features, classes = _patches_of(model, batch, grid=grid, reading=reading), classes_of_patches(batch.masks, grid)
        for image, position in enumerate(batch.positions.tolist()):
            labelled = (classes[image] != IGNORED).nonzero()[:, 0].cpu().numpy()
            drawn = np.random.default_rng(position).permutation(labelled)[:PATCHES_PER_IMAGE]
            chosen = torch.from_numpy(np.sort(drawn)).to(features.device)
            values.append(features[image, chosen])
            labels.append(classes[image, chosen])
            owners.append(torch.full_like(chosen, num_images))
            num_images += 1
    if not num_images:
        raise EvaluationError(f"none of the {unreadable} images of its train split can be read")
    return Patches(torch.cat(values), torch.cat(labels), torch.cat(owners), num_images, unreadable)


@dataclass(frozen=True)
class PatchProbe:
    """Holds a classifier of patches.

    Attributes:
        classes: (C,) id of each output.
        detail: how it was chosen, for the results.
    """

    fitted: LinearProbe
    classes: Tensor
    detail: dict[str, Any]

    def logits(self, patches: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Map features (B, P, D) to (B, C, rows, columns), fp32."""
        probe = self.fitted
        weight = (probe.weight / probe.std[:, None]).float()
        bias = (probe.bias - (probe.mean / probe.std) @ probe.weight).float()
        return (patches @ weight + bias).transpose(1, 2).unflatten(2, grid)


def choose_probe(train: Patches) -> PatchProbe:
    """Choose the penalty on some of the images, and fit on all of them.

    Raises:
        EvaluationError: one image, or one class.
    """
    if train.num_images < 2:
        raise EvaluationError(
            "its train split has one image, and the penalty is chosen on other images than those it is fitted to"
        )
    order = torch.from_numpy(np.random.default_rng(0).permutation(train.num_images)).to(train.images.device)
    held_out = torch.isin(train.images, order[: max(1, round(HELD_OUT * train.num_images))])
    classes, labels = _renumbered(train.labels[~held_out])
    scores: dict[float, float] = {}
    probe = None
    for penalty in reversed(PENALTIES):  # strongest first, each from the last solution
        probe = fit_logistic(train.values[~held_out], labels, num_classes=len(classes), penalty=penalty, start=probe)
        right = classes[probe.predict(train.values[held_out])] == train.labels[held_out]
        scores[penalty] = float(right.double().mean())
    best = max(scores.values())
    penalty = max(p for p, score in scores.items() if score == best)  # the strongest of equals
    classes, labels = _renumbered(train.labels)
    fitted = fit_logistic(train.values, labels, num_classes=len(classes), penalty=penalty)
    detail = {
        "penalty": penalty,
        "held_out_accuracy": best,
        "held_out_images": int(train.images[held_out].unique().numel()),
        "train_classes": len(classes),
        "converged": fitted.convergence.converged,
    }
    return PatchProbe(fitted, classes, detail)


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
    return torch.bincount(pairs, minlength=NUM_IDS**2).reshape(NUM_IDS, NUM_IDS).cpu().numpy()


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


def _batches(index: ShardIndex, *, transform: EvalTransform, reading: Reading, description: str) -> Iterator[EvalBatch]:
    return read_batches(index, transform=transform, labels="none", masks="needed", reading=reading, description=description)


@torch.no_grad()
def _patches_of(model: Backbone, batch: EvalBatch, *, grid: tuple[int, int], reading: Reading) -> Tensor:
    """Return the features of a batch's patches, (B, P, D) fp32."""
    with reading.autocast():
        patches = model.forward_outputs(batch.images).patches
    if patches is None or patches.shape[1] != grid[0] * grid[1]:
        raise EvaluationError("the model gives no features of patches; leave evaluation.segmentation out")
    if not bool(patches.isfinite().all()):
        raise EvaluationError(
            "its features are not finite (NaN or infinity): the weights overflow in this precision, or training has diverged"
        )
    return patches.float()


def _renumbered(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class ids that occur, ascending, and each label's place among them.

    Raises:
        EvaluationError: there is one class, or none.
    """
    classes, places = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError(f"its train patches have {len(classes)} class{'es' * (len(classes) != 1)}: nothing to tell apart")
    return classes, places
