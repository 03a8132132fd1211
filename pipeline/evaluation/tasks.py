"""What is to be measured, and under which conditions a result counts."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any

from pipeline.evaluation.section import EvaluationSection

_TASK_KEYS = ("dataset", "protocol", "shots", "seed")
_CONDITION_KEYS = ("weights", "data", "short_side", "precision")


@dataclass(frozen=True)
class Task:
    """One number to be measured on one set: a line of evaluations.jsonl."""

    dataset: str
    protocol: str
    shots: int | None
    seed: int | None

    @property
    def measure(self) -> str:
        """What it is called, over all seeds."""
        return f"{self.dataset} {self.protocol if self.shots is None else f'{self.shots}-shot'}"


@dataclass(frozen=True)
class Conditions:
    """What a result depends on beside its task. A result of other conditions does not count."""

    weights: str  # digest of the weights
    data: str | None  # fingerprint of the two splits; None where they cannot be opened
    short_side: int
    precision: str


Key = tuple[Any, ...]


def list_tasks(section: EvaluationSection) -> list[Task]:
    """Every number that a checkpoint is to have."""
    tasks: list[Task] = []
    for dataset in section.datasets:
        if "few_shot" in section.protocols:
            tasks += [Task(dataset.name, "few_shot", shots, seed) for shots in section.shots for seed in section.seeds]
        if "linear" in section.protocols:
            tasks.append(Task(dataset.name, "linear", None, None))
    return tasks


def key_of(step: int, task: Task, conditions: Conditions) -> Key:
    """Identifies a measurement."""
    return (step, *astuple(task), *astuple(conditions))


def key_of_row(row: dict[str, Any]) -> Key:
    """Identifies the measurement that a line of evaluations.jsonl is of."""
    values = (row.get(name) for name in ("step", *_TASK_KEYS, *_CONDITION_KEYS))
    return tuple(None if isinstance(value, list | dict) else value for value in values)


def describe(step: int, task: Task, conditions: Conditions) -> dict[str, Any]:
    """The part of a line that identifies its measurement."""
    return {"step": step, **asdict(task), **asdict(conditions)}
