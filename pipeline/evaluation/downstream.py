"""Measure all protocols on one downstream set: its features are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.data.images.crop import EvalTransform
from pipeline.evaluation.datasets import EvaluationSet
from pipeline.evaluation.failures import failing
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.splits import prepare_splits
from pipeline.evaluation.tasks import EvaluationTask, Outcome
from pipeline.run.weights import Weights


def measure_downstream(
    weights: Weights,
    dataset: EvaluationSet,
    tasks: Sequence[EvaluationTask],
    *,
    protocols: dict[str, Protocol],
    transform: EvalTransform,
    source: FeatureSource,
) -> Iterator[Outcome]:
    """Yield the outcome of each task as soon as it is known. What fails costs its own measurement alone."""
    with failing(dataset.name) as failure:
        train, test = (
            source.features(weights, index, transform=transform, description=f"{dataset.name} step {weights.header.step}").to(
                source.reading.device
            )
            for index in (dataset.train, dataset.test)
        )
        splits = prepare_splits(train, test)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task in tasks)
        return
    for note in splits.notes:
        print(f"[eval] {dataset.name}: {note}", flush=True)
    facts = {
        "test_images": len(test.labels),
        "train_images": len(train.labels),
        "unreadable": train.num_unreadable + test.num_unreadable,
        **splits.facts,
    }
    for task in tasks:
        with failing(task.measure) as failure:
            value = protocols[task.protocol].measure(splits, task.setting)
        if failure.reason is not None:
            yield Outcome(task, reason=failure.reason)
        else:
            yield Outcome(task, value=value, facts=facts)
