"""Measure a model on held-out images of its pretraining corpus: the objective's loss, and how often its classes are right.

Images are as in the other evaluations, the objective is in eval mode: nothing is augmented, mixed or smoothed. A set whose
classes are some of the model's, or are numbered otherwise (ImageNet-1k for a model of ImageNet-21k), is compared among those
classes alone, and has no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.errors import EvaluationError
from pipeline.evaluation.failures import failing
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
    reading: Reading,
) -> Iterator[Outcome]:
    """Yield the outcome of each task, after one pass over the images."""
    with failing(opened.name) as failure:
        measure = partial(_measure_any_of, weights, opened) if opened.any_of else partial(_measure, weights, opened, upstream)
        values, facts = measure(transform=transform, reading=reading)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task in tasks)
        return
    yield from (Outcome(task, value=values[task.setting.measure], facts=facts) for task in tasks)


@torch.no_grad()
def _measure(
    weights: Weights, opened: HeldOutSet, upstream: Upstream, *, transform: EvalTransform, reading: Reading
) -> tuple[dict[str, Measured], dict[str, int]]:
    section, config = upstream.objective, weights.header.model
    objective = section.build(config, seed=upstream.seed, class_names=upstream.class_names).eval()
    objective.load_state_dict(weights.objective)
    objective.to(reading.device)
    metrics = _make_metrics(section, config, opened.columns)
    columns = None if opened.columns is None else torch.tensor(opened.columns, device=reading.device)
    total_loss, images, unreadable = 0.0, 0, 0
    description = f"{opened.name} step {weights.header.step}"
    for batch in read_batches(
        opened.index, transform=transform, labels=section.labels, reading=reading, description=description
    ):
        unreadable += batch.num_unreadable
        if not len(batch.positions):
            continue
        with reading.autocast():
            if columns is None:
                output = objective(weights.model, _as_training_batch(batch))
                total_loss += float(output.loss) * len(batch.positions)
                predictions, targets = output.predictions, output.targets
            else:
                predictions, targets = weights.model(batch.images)[:, columns], batch.labels
        _check_finite(predictions)
        for metric in metrics.values():
            metric.to(reading.device).update(predictions, targets)
        images += len(batch.positions)
    if not images:
        raise EvaluationError(f"none of its {unreadable} images can be read")
    values = {name: Measured(float(metric.compute()), kind=_kind(name)) for name, metric in metrics.items()}
    if columns is None:
        values["loss"] = Measured(total_loss / images, kind="loss")
    return values, {"test_images": images, "unreadable": unreadable}


@torch.no_grad()
def _measure_any_of(
    weights: Weights, opened: HeldOutSet, *, transform: EvalTransform, reading: Reading
) -> tuple[dict[str, Measured], dict[str, int]]:
    """Measure ReaL accuracy (arXiv 2006.07159, section 4): predictions that are one of the image's labels.

    Images without a label are left out, and counted.
    """
    from pipeline.objectives.accuracy import HitAt1

    columns = None if opened.columns is None else torch.tensor(opened.columns, device=reading.device)
    hits, images, unreadable = HitAt1().to(reading.device), 0, 0
    description = f"{opened.name} step {weights.header.step}"
    for batch in read_batches(opened.index, transform=transform, labels="several", reading=reading, description=description):
        unreadable += batch.num_unreadable
        if not len(batch.positions):
            continue
        with reading.autocast():
            logits = weights.model(batch.images)
        predictions = logits if columns is None else logits[:, columns]
        _check_finite(predictions)
        hits.update(predictions, multi_hot_targets(batch.labels, batch.label_ends, num_classes=predictions.shape[1]))
        images += len(batch.positions)
    counted = int(hits.total)
    if not counted:
        raise EvaluationError(f"none of its {images} images has a label, and {unreadable} cannot be read")
    facts = {"test_images": counted, "without_label": images - counted, "unreadable": unreadable}
    return {ANY_OF: Measured(float(hits.compute()))}, facts


def _make_metrics(section: ObjectiveSection, model: ModelConfig, columns: Sequence[int] | None) -> dict[str, Metric]:
    if columns is None:
        return section.held_out_metrics(model)
    from pipeline.objectives.accuracy import top_1_and_5

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
