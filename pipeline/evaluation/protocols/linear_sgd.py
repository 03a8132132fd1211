"""Train many linear classifiers at once by SGD on frozen features, and test the one that a part of train chooses.

This is the linear evaluation of DINOv2 and DINOv3 (`eval/linear.py` of facebookresearch/dinov2). Classifiers of the class
tokens of the last 1 or 4 blocks, with and without the mean of the last block's patches, and of 13 learning rates are trained
together by SGD of momentum 0.9, with a cosine decay to zero and without weight decay. Each learning rate is multiplied by
batch size / 256. Weights begin as N(0, 0.01), biases as zeros. Two things differ:

- They choose the classifier on the images that they report. Here a fifth of train chooses it, and all of train trains it again.
- They train on random crops and flips, which needs a forward pass for every step. Here an image has one vector of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from pipeline.console.progress import progress
from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.protocols.linear import split_train
from pipeline.evaluation.requirements import why_no_linear
from pipeline.evaluation.splits import Splits

# The authors' grid (`eval/linear.py`, learning_rates).
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
REFERENCE_BATCH = 256  # batch size at which a learning rate is what it says
MOMENTUM = 0.9
INIT_STD = 0.01
ROWS = 4096  # images that are classified at once


@dataclass(frozen=True)
class Head:
    """Names one classifier of the grid.

    Attributes:
        blocks: of how many last blocks it reads the class token.
        average: it reads the mean of the last block's patches too.
        learning_rate: before it is scaled by the batch size.
    """

    blocks: int
    average: bool
    learning_rate: float


class LinearSgd(FeatureProtocol):
    """Trains a grid of linear classifiers by SGD, and tests the one that a part of train chooses (DINOv2, DINOv3)."""

    protocol: Literal["linear_sgd"] = "linear_sgd"
    blocks: tuple[PositiveInt, ...] = Field(default=(1, 4), min_length=1, description="last blocks whose class tokens are read")
    average: tuple[bool, ...] = Field(
        default=(False, True), min_length=1, description="without, and with, the mean of the last block's patches"
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        default=LEARNING_RATES, min_length=1, description="each is multiplied by batch_size / 256"
    )
    steps: PositiveInt = Field(default=12_500, description="of SGD; the authors' 10 epochs of 1,250 steps")
    batch_size: PositiveInt = Field(default=1024, description="the authors' 128 on each of 8 GPUs")

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        for key in ("blocks", "average", "learning_rates"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                once = ", ".join(str(value).lower() for value in dict.fromkeys(values))
                raise ValueError(f"{key}: a value is there several times; write {key}=[{once}]")
        return self

    @property
    def reads(self) -> FeatureKind:
        """Return the features that it measures: without other blocks and patches, what every model has."""
        return REPRESENTATION if self._reads_representation else FeatureKind(last_blocks=max(self.blocks))

    @property
    def _reads_representation(self) -> bool:
        return self.blocks == (1,) and self.average == (False,)

    def settings(self) -> list[Setting]:
        return [Setting("linear SGD")]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure a setting.

        Raises:
            EvaluationError: no class has two images in train, or every classifier diverged.
        """
        del setting
        if (reason := why_no_linear(ClassCounts.of_labels(splits.train_labels.cpu()))) is not None:
            raise EvaluationError(reason)
        fit, choose = (part.to(splits.train.device) for part in split_train(splits.train_labels.cpu(), seed=0))
        heads = [Head(n, average, rate) for n in self.blocks for average in self.average for rate in self.learning_rates]
        labels, classes = splits.train_labels, splits.num_classes
        grid = self._train(splits.train[fit], labels[fit], num_classes=classes, heads=heads, what="choice")
        scores = [float((found == labels[choose]).double().mean()) for found in grid.predict(splits.train[choose])]
        finite = [index for index, is_finite in enumerate(grid.are_finite()) if is_finite]
        if not finite:
            raise EvaluationError(
                f"all {len(heads)} classifiers diverged; smaller protocols.{self.protocol}.learning_rates may not"
            )
        best = max(finite, key=lambda index: (scores[index], -heads[index].learning_rate))
        head = heads[best]
        final = self._train(splits.train, labels, num_classes=classes, heads=[head], what="final")
        (predicted,) = final.predict(splits.test)
        detail = {
            "blocks": head.blocks,
            "average": head.average,
            "learning_rate": head.learning_rate,
            "held_out_accuracy": scores[best],
            "held_out_images": len(choose),
            "classifiers": len(heads),
            "diverged": len(heads) - len(finite),
            "steps": self.steps,
            "batch_size": min(self.batch_size, len(fit)),
        }
        return Measured(float((predicted == splits.test_labels).double().mean()), detail)

    def _train(self, features: Tensor, labels: Tensor, *, num_classes: int, heads: Sequence[Head], what: str) -> Grid:
        last_blocks = self.reads.last_blocks
        grid = Grid(heads, num_features=features.shape[1], last_blocks=last_blocks, num_classes=num_classes, like=features)
        batches = draw_batches(len(features), batch_size=self.batch_size)
        description = f"linear SGD, {what}: {len(heads)} classifier{'s' * (len(heads) > 1)}"
        with progress(total=self.steps, description=description, unit="step", leave=False) as bar:
            grid.fit(features, labels, batches, steps=self.steps, tell=lambda: bar.update(1))
        return grid

    def why_impossible(self, train: ClassCounts) -> str | None:
        return why_no_linear(train)

    def notes(self, train: ClassCounts, *, class_names: Sequence[str] | None, path: str) -> list[str]:
        del class_names
        epochs = self.steps * min(self.batch_size, train.num_images) / max(1, train.num_images)
        if epochs <= 1000:
            return []
        return [f"{path}.steps={self.steps} are {epochs:,.0f} epochs of {train.num_images} train images; fewer may do"]

    def warnings(self, row: dict[str, Any]) -> list[str]:
        found = []
        if row.get("learning_rate") in (self.learning_rates[0], self.learning_rates[-1]) and len(self.learning_rates) > 2:
            found.append(
                f"{row['dataset']} linear SGD: the best learning rate, {row['learning_rate']:g}, is at the end of "
                "the grid; learning_rates with values beyond it may be better"
            )
        return found


def draw_batches(count: int, *, batch_size: int) -> Iterator[Tensor]:
    """Yield the indices of each step's images without end: epoch after epoch, each in an order of its own, without a gap.

    A set of fewer images than a batch has batches of all its images.
    """
    size = min(batch_size, count)
    generator = np.random.default_rng(0)
    rest = np.empty(0, dtype=np.int64)
    while True:
        if len(rest) < size:
            rest = np.concatenate([rest, generator.permutation(count)])
        yield torch.from_numpy(rest[:size])
        rest = rest[size:]


class Grid:
    """Holds classifiers that are trained together, those that read the same features in one matrix.

    The sum of their losses, each times its learning rate, is minimised by SGD of learning rate 1. Without weight decay a step
    of SGD is linear in the gradient, so each classifier gets the steps that its own learning rate would give it.

    Args:
        last_blocks: of the features (`FeatureKind`).
        like: a tensor of the device and type of the weights.
    """

    def __init__(self, heads: Sequence[Head], *, num_features: int, last_blocks: int, num_classes: int, like: Tensor) -> None:
        self._heads = list(heads)
        self._classes = num_classes
        self._columns: dict[tuple[int, bool], Tensor] = {}
        self._weights: dict[tuple[int, bool], Tensor] = {}
        self._biases: dict[tuple[int, bool], Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for kind in dict.fromkeys((head.blocks, head.average) for head in heads):
            columns = _columns(*kind, num_features=num_features, last_blocks=last_blocks)
            count = len(self._members(kind))
            weight = torch.randn(len(columns), num_classes, generator=generator) * INIT_STD
            self._columns[kind] = columns.to(like.device)
            self._weights[kind] = weight.repeat(1, count).to(like).requires_grad_()  # (D, L * C)
            self._biases[kind] = like.new_zeros(count * num_classes).requires_grad_()

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        batches: Iterable[Tensor],
        *,
        steps: int,
        tell: Callable[[], object] = lambda: None,
    ) -> None:
        """Train all classifiers.

        Args:
            features: (N, R) fp32; labels: (N,).
            batches: indices of the images of each step, of which `steps` are taken.
            tell: is called after each step.
        """
        rates = {
            kind: features.new_tensor([self._heads[index].learning_rate for index in self._members(kind)])
            for kind in self._weights
        }
        optimizer = torch.optim.SGD([*self._weights.values(), *self._biases.values()], lr=1.0, momentum=MOMENTUM)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.0)
        for batch in islice(batches, steps):
            chosen = batch.to(features.device)
            targets, loss = labels[chosen], features.new_zeros(())
            for kind, rate in rates.items():
                logits = self._logits(kind, features[chosen])  # (B, L, C)
                repeated = targets[:, None].expand(-1, len(rate))
                losses = F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none").view(len(chosen), -1)
                loss = loss + (losses.mean(dim=0) * rate).sum() * (len(chosen) / REFERENCE_BATCH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tell()

    @torch.no_grad()
    def predict(self, features: Tensor) -> list[Tensor]:
        """Return the classes (N,) that each classifier gives features (N, R)."""
        found: list[list[Tensor]] = [[] for _ in self._heads]
        for part in features.split(ROWS):
            for kind in self._weights:
                for index, classes in zip(self._members(kind), self._logits(kind, part).argmax(dim=2).unbind(1), strict=True):
                    found[index].append(classes)
        return [torch.cat(parts) for parts in found]

    def are_finite(self) -> list[bool]:
        """Return whether each classifier's weights are numbers still."""
        finite: dict[int, bool] = {}
        for kind, weight in self._weights.items():
            per_head = weight.detach().unflatten(1, (-1, self._classes)).isfinite().all(dim=2).all(dim=0)
            finite.update(zip(self._members(kind), per_head.tolist(), strict=True))
        return [finite[index] for index in range(len(self._heads))]

    def _members(self, kind: tuple[int, bool]) -> list[int]:
        return [index for index, head in enumerate(self._heads) if (head.blocks, head.average) == kind]

    def _logits(self, kind: tuple[int, bool], features: Tensor) -> Tensor:
        read = features if len(self._columns[kind]) == features.shape[1] else features[:, self._columns[kind]]
        return torch.addmm(self._biases[kind], read, self._weights[kind]).unflatten(1, (-1, self._classes))


def _columns(blocks: int, average: bool, *, num_features: int, last_blocks: int) -> Tensor:
    """Return the columns of features of `last_blocks` that a classifier reads; all of the representation."""
    if not last_blocks:
        return torch.arange(num_features)
    width = num_features // (last_blocks + 1)
    first, end = (last_blocks - blocks) * width, (last_blocks + 1 if average else last_blocks) * width
    return torch.arange(first, end)
