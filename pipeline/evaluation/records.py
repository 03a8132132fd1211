"""Write and summarise lines of evaluations.jsonl. No line is lost while it cannot be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.features import Features
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.splits import Measured, Splits
from pipeline.evaluation.tasks import EvaluationTask, MeasuredUnder, describe
from pipeline.run.evaluations import measure_of
from pipeline.run.records import append_json_lines, read_json_lines
from pipeline.run.weights import WeightsHeader

Row = dict[str, Any]


def result_row(
    header: WeightsHeader,
    task: EvaluationTask,
    conditions: MeasuredUnder,
    value: Measured,
    *,
    splits: Splits,
    train: Features,
    test: Features,
) -> Row:
    """Return the line of a measurement."""
    count = len(test.labels)
    return {
        **describe(header.step, task, conditions),
        "images_seen": header.images_seen,
        "accuracy": value.accuracy,
        # This is 95 % by the normal approximation, over the choice of test images alone.
        "ci95": 1.96 * (value.accuracy * (1 - value.accuracy) / count) ** 0.5,
        "test_images": count,
        "train_images": len(train.labels),
        "unreadable": train.num_unreadable + test.num_unreadable,
        **splits.facts,
        **value.detail,
    }


def failed_row(header: WeightsHeader, task: EvaluationTask, conditions: MeasuredUnder, reason: str) -> Row:
    """Return the line of a measurement that failed, and why. It has no accuracy; the next start of an evaluator tries again."""
    return {
        **describe(header.step, task, conditions),
        "images_seen": header.images_seen,
        "accuracy": None,
        "error": reason,
    }


class ResultFile:
    """Appends to evaluations.jsonl. Lines that cannot be written, because the disk is full for example, wait in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[Row] = []
        self.problem: str | None = None  # why lines wait
        self._is_begun = False  # a write that failed, or that a signal interrupted, may have left whole lines

    def add(self, row: Row) -> None:
        self.waiting.append(row)
        self.flush()

    def flush(self) -> None:
        """Write waiting lines, if that is possible now."""
        if not self.waiting:
            return
        try:
            written = read_json_lines(self.path) if self._is_begun else []
            self._is_begun = True
            append_json_lines(self.path, [row for row in self.waiting if row not in written])
        except OSError as error:
            if self.problem is None:
                print(f"[eval] results wait in memory: {self.path} cannot be written ({error.strerror or error})", flush=True)
            self.problem = error.strerror or str(error)
            return
        if self.problem is not None:
            print(f"[eval] {self.path} can be written again: {len(self.waiting)} results that waited are in it", flush=True)
        self.waiting.clear()
        self.problem, self._is_begun = None, False

    def rows(self) -> list[Row]:
        """Return all results, also those that wait."""
        return read_json_lines(self.path) + self.waiting


def summarise(rows: Sequence[Row]) -> str:
    """Return the results of one checkpoint, few-shot ones as means over the seeds."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["accuracy"] is not None:
            groups.setdefault(_label(row), []).append(100 * row["accuracy"])
    failures = sorted({f"{_label(row)} failed" for row in rows if row["accuracy"] is None})
    return ", ".join([*(f"{label} {sum(values) / len(values):.1f} %" for label, values in groups.items()), *failures])


def _label(row: Row) -> str:
    return measure_of(row) + (" (all of train)" if row.get("support") == "all" else "")


def warnings_of(rows: Iterable[Row], section: EvaluationSection) -> list[str]:
    """Return what a reader of the results should know, each once."""
    found: list[str] = []
    for row in rows:
        found += section.protocols[row["protocol"]].warnings(row)
        if row.get("unreadable"):
            found.append(f"{row['dataset']}: {row['unreadable']} images are unreadable and left out")
    return list(dict.fromkeys(found))
