"""Measure all protocols on one downstream set: its features are computed once for all protocols that read the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.data.images.crop import EvalTransform
from pipeline.evaluation.datasets import EvaluationSet
from pipeline.evaluation.failures import failing
from pipeline.evaluation.feature_kinds import FeatureKind
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.protocols.base import FeatureProtocol, ModelProtocol, Subject
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
    on_features: dict[FeatureKind, list[tuple[EvaluationTask, FeatureProtocol]]] = {}
    on_model: list[tuple[EvaluationTask, ModelProtocol]] = []
    for task in tasks:
        protocol = protocols[task.protocol]
        if isinstance(protocol, ModelProtocol):
            on_model.append((task, protocol))
        else:
            on_features.setdefault(protocol.reads, []).append((task, protocol))
    for kind, some in on_features.items():
        yield from _measure_features(weights, dataset, some, kind=kind, transform=transform, source=source)
    subject = Subject(
        weights,
        dataset.name,
        dataset.train,
        dataset.test,
        places=dataset.places,
        transform=transform,
        reading=source.reading,
        scratch=weights.path.parents[1] / "finetune",
    )
    facts = {"test_images": dataset.test.num_samples, "train_images": dataset.train.num_samples}
    for task, protocol in on_model:
        with failing(task.measure) as failure, source.clock.part(task.protocol):
            value = protocol.measure_model(subject, task.setting)
        yield Outcome(task, reason=failure.reason) if failure.reason is not None else Outcome(task, value=value, facts=facts)


def _measure_features(
    weights: Weights,
    dataset: EvaluationSet,
    tasks: Sequence[tuple[EvaluationTask, FeatureProtocol]],
    *,
    kind: FeatureKind,
    transform: EvalTransform,
    source: FeatureSource,
) -> Iterator[Outcome]:
    """Compute features of one kind, and measure what reads them."""
    description = f"{dataset.name} step {weights.header.step}"
    with failing(dataset.name) as failure, source.clock.part("features"):
        train, test = (
            source.features(weights, index, kind=kind, transform=transform, description=description).to(source.reading.device)
            for index in (dataset.train, dataset.test)
        )
        splits = prepare_splits(train, test)
    if failure.reason is not None:
        yield from (Outcome(task, reason=failure.reason) for task, _ in tasks)
        return
    for note in splits.notes:
        print(f"[eval] {dataset.name}: {note}", flush=True)
    facts: dict[str, Any] = {
        "test_images": len(test.labels),
        "train_images": len(train.labels),
        "unreadable": train.num_unreadable + test.num_unreadable,
        **splits.facts,
    }
    for task, protocol in tasks:
        with failing(task.measure) as failure, source.clock.part(task.protocol):
            value = protocol.measure(splits, task.setting)
        yield Outcome(task, reason=failure.reason) if failure.reason is not None else Outcome(task, value=value, facts=facts)
