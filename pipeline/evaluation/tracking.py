"""Send results to W&B, and write them for TensorBoard, a training step at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pipeline.evaluation.records import ResultFile, Row
from pipeline.monitor.loggers import EvaluationTracker, RunIdentity, rows_by_step
from pipeline.monitor.tensorboard import EventFile
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import choose_results


class StepTracking:
    """Remembers which steps an evaluator has measured, and sends all that is known of them.

    Args:
        record: the run's configuration as W&B keeps it.
    """

    def __init__(self, folder: RunFolder, results: ResultFile, *, identity: RunIdentity, record: dict[str, Any]) -> None:
        self._folder = folder
        self._results = results
        self._identity = identity
        self._record = record
        self._tracker: EvaluationTracker | None = None
        self._events: EventFile | None = None
        self._own: set[int] = set()
        self._unsent: set[int] = set()

    def measured(self, step: int) -> None:
        """Note that there are new results of a step."""
        self._unsent.add(step)

    def send(self, step: int) -> None:
        """Send all that is known of a step if there is something new, also what was measured before a crash."""
        if step not in self._unsent:
            return
        self._own.add(step)
        self._unsent.discard(step)
        rows = self._results_that_count()
        if self._tracker is None:  # the first result opens it
            history = [row for row in rows if row["step"] != step]
            self._tracker = EvaluationTracker(self._identity, config=self._record, history=history)
        self._tracker.log(rows, own=self._own)
        if self._identity.tensorboard:
            self._write_events(rows, step)

    def _write_events(self, rows: list[Row], step: int) -> None:
        if self._events is None:
            self._events = EventFile(self._folder.tensorboard / "evaluate")
        for row in rows_by_step(rows):
            if row["step"] == step:
                self._events.write(row, step=step)
        self._events.flush()

    def _results_that_count(self) -> list[Row]:
        return choose_results(self._folder, self._results.rows()).rows

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._tracker is None:
            return
        with suppress(OSError):  # the folder does not answer any more: then W&B has what it was given
            self._tracker.log(self._results_that_count(), own=self._own)  # also other evaluators' results since then
        self._tracker.close()
