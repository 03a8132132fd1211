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
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.masks import IGNORED
from pipeline.data.shards.index import ShardIndex
from pipeline.errors import EvaluationError
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.failures import failing
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.mask_scores import NUM_IDS, classes_of_patches, confusion, scores_of
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


@dataclass(frozen=True)
class Patches:
    """Holds labelled patches of train images."""

    values: Tensor  # (N, D) fp32
    labels: Tensor  # (N,) class ids
    images: Tensor  # (N,) number of each patch's image among the images that could be read
    num_images: int
    num_unreadable: int


def segmentation_tasks(name: str) -> list[EvaluationTask]:
    """Return every number that is measured on a set."""
    return [EvaluationTask(name, PROTOCOL, Setting(measure), VERSION) for measure in MEASURES]


def measure_segmentation(
    weights: Weights, opened: MaskSet, tasks: Sequence[EvaluationTask], *, transform: EvalTransform, source: FeatureSource
) -> Iterator[Outcome]:
    """Yield the outcome of each task, after one pass over both splits, whose images the source's processes share.

    Args:
        transform: shows whole images.
    """
    with failing(opened.name) as failure:
        values, facts = _measure(weights, opened, transform=transform, source=source)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task in tasks)
        return
    yield from (Outcome(task, value=values[task.setting.measure], facts=facts) for task in tasks)


def _measure(
    weights: Weights, opened: MaskSet, *, transform: EvalTransform, source: FeatureSource
) -> tuple[dict[str, Measured], dict[str, Any]]:
    grid = grid_of(weights.header.model)
    step = weights.header.step
    train = collect_patches(
        weights, opened.train, grid=grid, transform=transform, source=source, description=f"{opened.name} step {step}"
    )
    with source.clock.part(PROTOCOL):
        probe = choose_probe(train)
    share = PixelShare(opened.test, grid, transform, f"{opened.name} test step {step}", *probe.folded())
    parts: list[_Pixels] = source.shared(weights, share)
    images, unreadable = sum(part.images for part in parts), sum(part.unreadable for part in parts)
    if not images:
        raise EvaluationError(f"none of the {unreadable} images of its test split can be read")
    scores = scores_of(np.sum([part.counts for part in parts], axis=0))
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


@dataclass(frozen=True)
class _PartialPatches:
    """Holds labelled patches of some train images. Arrays are numpy's: processes send them to each other."""

    values: NDArray[np.float32]  # (N, D)
    labels: NDArray[np.int64]  # (N,) class ids
    positions: NDArray[np.int64]  # (N,) of each patch's image in the index's order
    images: NDArray[np.int64]  # (I,) positions of all that were read, with or without a patch that has a class
    unreadable: int


@dataclass(frozen=True)
class PatchShare:
    """Draws labelled patches of each image of some blocks, in one of the processes that share a split."""

    index: ShardIndex
    grid: tuple[int, int]
    transform: EvalTransform
    description: str

    def __call__(
        self, weights: Weights, *, blocks: NDArray[np.int64] | None, reading: Reading, clock: Clock
    ) -> _PartialPatches:
        values, labels, positions = list[Tensor](), list[Tensor](), list[int]()
        images, unreadable = list[int](), 0
        for batch in clock.waiting(_batches(self, blocks=blocks, reading=reading), "images"):
            unreadable += batch.num_unreadable
            if not len(batch.positions):
                continue
            images += batch.positions.tolist()
            features = _patches_of(weights.model, batch, grid=self.grid, reading=reading)
            classes = classes_of_patches(batch.masks, self.grid)
            for image, position in enumerate(batch.positions.tolist()):
                labelled = (classes[image] != IGNORED).nonzero()[:, 0].cpu().numpy()
                drawn = np.random.default_rng(position).permutation(labelled)[:PATCHES_PER_IMAGE]
                chosen = torch.from_numpy(np.sort(drawn)).to(features.device)
                values.append(features[image, chosen].cpu())
                labels.append(classes[image, chosen].cpu())
                positions += [position] * len(chosen)
        none = np.zeros(0, np.int64)
        if not values:
            return _PartialPatches(np.zeros((0, 0), np.float32), none, none, none, unreadable)
        found = torch.cat(values).numpy(), torch.cat(labels).numpy(), np.asarray(positions, np.int64)
        return _PartialPatches(*found, np.asarray(images, np.int64), unreadable)


def collect_patches(
    weights: Weights,
    index: ShardIndex,
    *,
    grid: tuple[int, int],
    transform: EvalTransform,
    source: FeatureSource,
    description: str,
) -> Patches:
    """Run a frozen model over a split. Return some patches of each image, on the model's device.

    Raises:
        EvaluationError: no image can be read, or features are not finite.
    """
    parts: list[_PartialPatches] = source.shared(weights, PatchShare(index, grid, transform, description))
    images, unreadable = np.sort(np.concatenate([part.images for part in parts])), sum(part.unreadable for part in parts)
    if not len(images):
        raise EvaluationError(f"none of the {unreadable} images of its train split can be read")
    parts = [part for part in parts if len(part.images)]
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions, kind="stable")
    numbers = torch.from_numpy(np.searchsorted(images, positions[order]))
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts])[order])
    device = source.reading.device
    if len(parts) == 1:  # without a copy: the features may fill half of the memory
        values = torch.from_numpy(parts[0].values).to(device)
    else:
        values = torch.empty(len(order), parts[0].values.shape[1], device=device)
        places = torch.from_numpy(np.argsort(order)).split([len(part.labels) for part in parts])  # of each part's patches
        for place in reversed(places):
            values[place.to(device)] = torch.from_numpy(parts.pop().values).to(device)
    return Patches(values, labels.to(device), numbers.to(device), num_images=len(images), num_unreadable=unreadable)


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

    def folded(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return weight (D, C) and bias (C,) for features that are not standardised, fp32, and the class of each output."""
        probe = self.fitted
        weight = (probe.weight / probe.std[:, None]).float()
        bias = (probe.bias - (probe.mean / probe.std) @ probe.weight).float()
        return weight.cpu().numpy(), bias.cpu().numpy(), self.classes.cpu().numpy()


@dataclass(frozen=True)
class _Pixels:
    """Holds how the pixels of some test images were classified: by true class and predicted class."""

    counts: NDArray[np.int64]  # (256, 256)
    images: int
    unreadable: int


@dataclass(frozen=True)
class PixelShare:
    """Classifies the pixels of some blocks, in one of the processes that share a split.

    Attributes:
        weight, bias, classes: see `PatchProbe.folded`.
    """

    index: ShardIndex
    grid: tuple[int, int]
    transform: EvalTransform
    description: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __call__(self, weights: Weights, *, blocks: NDArray[np.int64] | None, reading: Reading, clock: Clock) -> _Pixels:
        weight, bias, classes = (torch.from_numpy(each).to(reading.device) for each in (self.weight, self.bias, self.classes))
        counts, images, unreadable = np.zeros((NUM_IDS, NUM_IDS), np.int64), 0, 0
        for batch in clock.waiting(_batches(self, blocks=blocks, reading=reading), "images"):
            unreadable += batch.num_unreadable
            if not len(batch.positions):
                continue
            images += len(batch.positions)
            patches = _patches_of(weights.model, batch, grid=self.grid, reading=reading)
            logits = (patches @ weight + bias).transpose(1, 2).unflatten(2, self.grid)  # (B, C, rows, columns)
            for one, mask in zip(logits.split(1), batch.masks.split(1), strict=True):  # all at once would take gigabytes
                pixels = F.interpolate(one, size=mask.shape[-2:], mode="bilinear", align_corners=False)
                counts += confusion(classes[pixels.argmax(dim=1)], mask)
        return _Pixels(counts, images, unreadable)


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


def _batches(share: PatchShare | PixelShare, *, blocks: NDArray[np.int64] | None, reading: Reading) -> Iterator[EvalBatch]:
    return read_batches(
        share.index,
        transform=share.transform,
        labels="none",
        masks="needed",
        reading=reading,
        description=share.description,
        blocks=blocks,
    )


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
