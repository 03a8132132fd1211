"""Open every set that a run is evaluated on, list what is measured on each, and measure it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pipeline.data.images.crop import EvalTransform
from pipeline.errors import DataError
from pipeline.evaluation.datasets import EvaluationSet, open_dataset
from pipeline.evaluation.downstream import measure_downstream
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.held_out import HeldOutSet, open_held_out
from pipeline.evaluation.mask_sets import MaskSet, open_mask_set
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.segmentation import measure_segmentation, segmentation_tasks
from pipeline.evaluation.tasks import EvaluationTask, Outcome, list_tasks
from pipeline.evaluation.upstream import Upstream, measure_upstream
from pipeline.run.weights import Weights


class OpenedSets:
    """Holds the sets that could be opened, and why the others could not.

    Attributes:
        tasks: every number that a checkpoint is to have.
        unopened: of sets that are missing, the reason by name.
        left_out: names of those of them that are not to be measured (`evaluation.absent`).

    Raises:
        DataError: none can be opened.
    """

    def __init__(self, section: EvaluationSection, upstream: Upstream) -> None:
        self._section = section
        self._upstream = upstream
        self._sets: dict[str, EvaluationSet | HeldOutSet | MaskSet] = {}
        self.unopened: dict[str, str] = {}
        openers: dict[str, Callable[[], EvaluationSet | HeldOutSet | MaskSet]] = {
            **{dataset.name: partial(open_dataset, dataset) for dataset in section.datasets},
            **{held_out.name: partial(open_held_out, held_out, upstream.corpus) for held_out in section.validation},
            **{with_masks.name: partial(open_mask_set, with_masks) for with_masks in section.segmentation},
        }
        for name, open_set in openers.items():
            try:
                self._sets[name] = open_set()
            except DataError as error:
                self.unopened[name] = str(error)
        if not self._sets:
            raise DataError("; ".join(self.unopened.values()))
        self.left_out = list(self.unopened) if section.absent == "leave_out" else []
        for name, reason in self.unopened.items():
            print(f"[eval] {'left out: ' * (name in self.left_out)}{reason}", flush=True)
        for name, opened in self._sets.items():
            for note in opened.notes:
                print(f"[eval] {name}: {note}", flush=True)
        tasks = list_tasks(section)
        for held_out in section.validation:
            opened = self._sets.get(held_out.name)
            columns = opened.columns if isinstance(opened, HeldOutSet) else None
            tasks += upstream.tasks(held_out.name, columns=columns, any_of=held_out.labels == "any_of")
        for with_masks in section.segmentation:
            tasks += segmentation_tasks(with_masks.name)
        self.tasks = [task for task in tasks if task.dataset not in self.left_out]

    def fingerprint_of(self, name: str) -> str | None:
        """Return what changes with a set's images or labels; None where it could not be opened."""
        return self._sets[name].fingerprint if name in self._sets else None

    def measure(
        self, weights: Weights, tasks: Sequence[EvaluationTask], *, transform: EvalTransform, source: FeatureSource
    ) -> Iterator[Outcome]:
        """Yield the outcomes of tasks, all of one set that is open, each as soon as it is known."""
        opened = self._sets[tasks[0].dataset]
        if isinstance(opened, HeldOutSet):
            return measure_upstream(weights, opened, tasks, upstream=self._upstream, transform=transform, source=source)
        if isinstance(opened, MaskSet):
            return measure_segmentation(weights, opened, tasks, transform=transform.showing_all(), source=source)
        return measure_downstream(weights, opened, tasks, protocols=self._section.protocols, transform=transform, source=source)
