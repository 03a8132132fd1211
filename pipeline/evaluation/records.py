"""Write and summarise lines of evaluations.jsonl. No line is lost while it cannot be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.measured import Measured
from pipeline.evaluation.section import EvaluationSection, ReferenceSection
from pipeline.evaluation.tasks import EvaluationTask, Key, MeasuredUnder, describe, key_of_row
from pipeline.run.evaluations import Quantity, measure_of, quantity_of, show_value, value_of
from pipeline.run.records import GrowingLines, append_json_lines, read_json_lines
from pipeline.run.weights import WeightsHeader

Row = dict[str, Any]


def result_row(
    header: WeightsHeader,
    task: EvaluationTask,
    conditions: MeasuredUnder,
    value: Measured,
    *,
    facts: dict[str, Any],
    reference: ReferenceSection | None,
) -> Row:
    """Return the line of a measurement.

    Args:
        facts: counts of the set; `test_images` is among them.
    """
    quantity: Quantity = "loss" if value.kind == "loss" else "accuracy"
    interval = {}
    if value.kind == "proportion":  # this is 95 % by the normal approximation, over the choice of test images alone
        interval = {"ci95": 1.96 * (value.value * (1 - value.value) / facts["test_images"]) ** 0.5}
    return {
        **describe(header.step, task, conditions),
        "images_seen": header.images_seen,
        quantity: value.value,
        **interval,
        **facts,
        **value.detail,
        **({} if reference is None else {"reference": _describe_reference(reference)}),
    }


def _describe_reference(reference: ReferenceSection) -> dict[str, Any]:
    source = {} if reference.source is None else {"source": reference.source}
    return {"value": reference.value, "by": reference.author, **source}


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
        self._lines = GrowingLines(path)
        self._generation = 0
        self._num_known = 0
        self._keys: set[Key] = set()

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
        return self._lines.read() + self.waiting

    def done(self) -> set[Key]:
        """Return what has a value. A file of many checkpoints is read and understood once, and then what is new of it."""
        lines = self._lines.read()
        if self._generation != self._lines.generation:
            self._generation, self._keys, self._num_known = self._lines.generation, set(), 0
        self._keys |= _keys_of(lines[self._num_known :])
        self._num_known = len(lines)
        return self._keys | _keys_of(self.waiting)


def _keys_of(rows: Iterable[Row]) -> set[Key]:
    return {key_of_row(row) for row in rows if value_of(row) is not None}


def summarise(rows: Sequence[Row]) -> str:
    """Return the results of one checkpoint, few-shot ones as means over the seeds."""
    groups: dict[tuple[str, Quantity], list[float]] = {}
    for row in rows:
        value = value_of(row)
        if value is not None:
            groups.setdefault((_label(row), quantity_of(row)), []).append(value)
    failures = sorted({f"{_label(row)} failed" for row in rows if value_of(row) is None})
    means = (f"{label} {show_value(sum(found) / len(found), quantity)}" for (label, quantity), found in groups.items())
    return ", ".join([*means, *failures])


def _label(row: Row) -> str:
    return measure_of(row) + (" (all of train)" if row.get("support") == "all" else "")


def warnings_of(rows: Iterable[Row], section: EvaluationSection) -> list[str]:
    """Return what a reader of the results should know, each once."""
    found: list[str] = []
    for row in rows:
        if row["protocol"] in section.protocols:
            found += section.protocols[row["protocol"]].warnings(row)
        if row.get("unreadable"):
            found.append(f"{row['dataset']}: {row['unreadable']} images are unreadable and left out")
    return list(dict.fromkeys(found))
