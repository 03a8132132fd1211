"""Measure a model on held-out images of its pretraining corpus: the objective's loss, and how often its classes are right.

Images are as in the other evaluations, the objective is in eval mode: nothing is augmented, mixed or smoothed. A set whose
classes are some of the model's, or are numbered otherwise (ImageNet-1k for a model of ImageNet-21k), is compared among those
classes alone, and has no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.errors import EvaluationError
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.failures import failing
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.held_out import Corpus, HeldOutSet
from pipeline.evaluation.measured import Measured, ValueKind
from pipeline.evaluation.protocols.base import Setting
from pipeline.evaluation.reading import EvalBatch, Reading, read_batches
from pipeline.evaluation.tasks import EvaluationTask, Outcome
from pipeline.functional.losses import multi_hot_targets
from pipeline.models.base import ModelConfig
from pipeline.objectives.base import ObjectiveSection
from pipeline.run.weights import Weights

if TYPE_CHECKING:
    from torchmetrics import Metric

PROTOCOL = "upstream"
ANY_OF = "top-1"  # where one of several labels is enough
_PROPORTIONS = ("top-1", "top-5", "hit@1")  # of images; what else is not a loss is a score


@dataclass(frozen=True)
class Upstream:
    """Says what a run was trained to do, and on which classes."""

    objective: ObjectiveSection
    model: ModelConfig
    seed: int
    class_names: tuple[str, ...] | None

    @property
    def corpus(self) -> Corpus:
        return Corpus(self.model.num_classes, self.class_names, self.objective.labels)

    def tasks(self, name: str, *, columns: Sequence[int] | None, any_of: bool = False) -> list[EvaluationTask]:
        """Return every number that is measured on a set.

        Args:
            columns, any_of: see `HeldOutSet`.
        """
        if any_of:
            return [EvaluationTask(name, PROTOCOL, Setting(ANY_OF))]
        loss = ["loss"] if columns is None else []
        measures = [*loss, *_make_metrics(self.objective, self.model, columns)]
        return [EvaluationTask(name, PROTOCOL, Setting(measure)) for measure in measures]


def measure_upstream(
    weights: Weights,
    opened: HeldOutSet,
    tasks: Sequence[EvaluationTask],
    *,
    upstream: Upstream,
    transform: EvalTransform,
    source: FeatureSource,
) -> Iterator[Outcome]:
    """Yield the outcome of each task, after one pass over the images, which the source's processes share."""
    with failing(opened.name) as failure:
        values, facts = _measure(weights, opened, upstream, transform=transform, source=source)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task in tasks)
        return
    yield from (Outcome(task, value=values[task.setting.measure], facts=facts) for task in tasks)


def _measure(
    weights: Weights, opened: HeldOutSet, upstream: Upstream, *, transform: EvalTransform, source: FeatureSource
) -> tuple[dict[str, Measured], dict[str, int]]:
    description = f"{opened.name} step {weights.header.step}"
    parts: list[_Counted] = source.shared(weights, UpstreamShare(opened, upstream, transform, description))
    images, unreadable = sum(part.images for part in parts), sum(part.unreadable for part in parts)
    assert images + unreadable == opened.index.num_samples, "an image is missing, or there twice"
    metrics = _make_metrics(upstream.objective, weights.header.model, opened.columns, any_of=opened.any_of)
    for name, metric in metrics.items():
        for part in parts:
            _add_states(metric, part.states[name])
    if opened.any_of:
        counted = int(metrics[ANY_OF].total)  # type: ignore[arg-type]
        if not counted:
            raise EvaluationError(f"none of its {images} images has a label, and {unreadable} cannot be read")
        facts = {"test_images": counted, "without_label": images - counted, "unreadable": unreadable}
        return {ANY_OF: Measured(float(metrics[ANY_OF].compute()))}, facts
    if not images:
        raise EvaluationError(f"none of its {unreadable} images can be read")
    values = {name: Measured(float(metric.compute()), kind=_kind(name)) for name, metric in metrics.items()}
    if opened.columns is None:
        total = 0.0
        for _, loss in sorted(loss for part in parts for loss in part.losses):  # in the index's order: sums depend on it
            total += loss
        values["loss"] = Measured(total / images, kind="loss")
    return values, {"test_images": images, "unreadable": unreadable}


@dataclass(frozen=True)
class _Counted:
    """Holds what was counted on some blocks of a set.

    Attributes:
        losses: of each batch, its first image's place in the index, and the sum over its images.
        states: of each metric, by the names of the metric and of the state.
    """

    losses: list[tuple[int, float]]
    states: dict[str, dict[str, NDArray[Any]]]
    images: int
    unreadable: int


def _states_of(metric: Metric) -> dict[str, NDArray[Any]]:
    """Return a metric's states, each as one array; those that are lists, in one piece, and none where a list is empty."""
    states = {
        name: torch.cat(value) if isinstance(value, list) and value else value for name, value in metric.metric_state.items()
    }
    return {name: value.cpu().numpy() for name, value in states.items() if isinstance(value, Tensor)}


def _add_states(metric: Metric, states: dict[str, NDArray[Any]]) -> None:
    """Add what another process has counted."""
    metric._update_count += 1  # else `compute` warns that there was no update
    own = metric.metric_state
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in states.items()}
    metric.merge_state(
        {name: ([tensors[name]] if name in tensors else []) if isinstance(own[name], list) else tensors[name] for name in own}
    )


@dataclass(frozen=True)
class UpstreamShare:
    """Compares a model's outputs on some blocks of a set, in one of the processes that share it.

    An `any_of` set has ReaL accuracy (arXiv 2006.07159, section 4): predictions that are one of the image's labels. Images
    without a label are left out, and counted.
    """

    opened: HeldOutSet
    upstream: Upstream
    transform: EvalTransform
    description: str

    @property
    def index(self) -> ShardIndex:
        return self.opened.index

    @torch.no_grad()
    def __call__(self, weights: Weights, *, blocks: NDArray[np.int64] | None, reading: Reading, clock: Clock) -> _Counted:
        opened, section, config = self.opened, self.upstream.objective, weights.header.model
        columns = None if opened.columns is None else torch.tensor(opened.columns, device=reading.device)
        objective = None
        if columns is None and not opened.any_of:
            objective = section.build(config, seed=self.upstream.seed, class_names=self.upstream.class_names).eval()
            objective.load_state_dict(weights.objective)
            objective.to(reading.device)
        metrics = _make_metrics(section, config, opened.columns, any_of=opened.any_of)
        for metric in metrics.values():
            metric.to(reading.device)
        losses, images, unreadable = list[tuple[int, float]](), 0, 0
        labels = "several" if opened.any_of else section.labels
        batches = read_batches(
            self.index, transform=self.transform, labels=labels, reading=reading, description=self.description, blocks=blocks
        )
        for batch in clock.waiting(batches, "images"):
            unreadable += batch.num_unreadable
            if not len(batch.positions):
                continue
            with reading.autocast():
                if objective is not None:
                    output = objective(weights.model, _as_training_batch(batch))
                    losses.append((int(batch.positions[0]), float(output.loss) * len(batch.positions)))
                    predictions, targets = output.predictions, output.targets
                else:
                    logits = weights.model(batch.images)
                    predictions, targets = logits if columns is None else logits[:, columns], batch.labels
            _check_finite(predictions)
            if opened.any_of:
                targets = multi_hot_targets(batch.labels, batch.label_ends, num_classes=predictions.shape[1])
            for metric in metrics.values():
                metric.update(predictions, targets)
            images += len(batch.positions)
        return _Counted(losses, {name: _states_of(metric) for name, metric in metrics.items()}, images, unreadable)


def _make_metrics(
    section: ObjectiveSection, model: ModelConfig, columns: Sequence[int] | None, *, any_of: bool = False
) -> dict[str, Metric]:
    if columns is None and not any_of:
        return section.held_out_metrics(model)
    from pipeline.objectives.accuracy import HitAt1, top_1_and_5

    if any_of:
        return {ANY_OF: HitAt1()}
    assert columns is not None
    return top_1_and_5(len(columns))


def _kind(measure: str) -> ValueKind:
    return "proportion" if measure in _PROPORTIONS else "score"


def _as_training_batch(batch: EvalBatch) -> dict[str, Tensor]:
    return {"images": batch.images, "labels": batch.labels, "label_ends": batch.label_ends, "positions": batch.positions}


def _check_finite(predictions: Tensor) -> None:
    if not bool(predictions.isfinite().all()):
        raise EvaluationError(
            "the model's outputs are not finite (NaN or infinity): the weights overflow in this precision, or "
            "training has diverged"
        )
