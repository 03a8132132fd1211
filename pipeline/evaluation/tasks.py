"""Define what is to be measured, and under which conditions a result counts."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Literal

from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import Setting
from pipeline.evaluation.section import EvaluationSection
from pipeline.run.evaluations import WEIGHTS_KIND, setting_of

_OPTIONAL_KEYS = (WEIGHTS_KIND, "aspect", "resize")  # not in a line where they are None
_CONDITION_KEYS = ("weights", "data", "short_side", "precision", *_OPTIONAL_KEYS)
VERSION = "protocol_version"
_KEYS = ("step", "dataset", "protocol", "measure", "seed", VERSION, *_CONDITION_KEYS)


@dataclass(frozen=True)
class EvaluationTask:
    """Describes one number to be measured on one set: a line of evaluations.jsonl.

    Args:
        protocol: its key in `evaluation.protocols`; `upstream` on held-out images of the pretraining corpus.
    """

    dataset: str
    protocol: str
    setting: Setting
    version: int = 1  # of the protocol

    @property
    def measure(self) -> str:
        """Return the measure's name, over all seeds."""
        return f"{self.dataset} {self.setting.measure}"


@dataclass(frozen=True)
class MeasuredUnder:
    """Says what besides the task determines a result. A stored result counts only if these are equal."""

    weights: str  # digest of the weights
    data: str | None  # fingerprint of the two splits; None where they cannot be opened
    short_side: int
    precision: str
    weights_kind: Literal["average"] | None = None  # None: the weights that are trained
    aspect: Literal["stretch"] | None = None  # None: images keep their ratio
    resize: Literal["bilinear", "bicubic_antialias"] | None = None  # None: bilinear with antialiasing


@dataclass(frozen=True)
class Outcome:
    """Holds what became of a task: a value, or the reason why there is none."""

    task: EvaluationTask
    value: Measured | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # counts that belong to every result of this set
    reason: str | None = None


@dataclass(frozen=True)
class Key:
    """Identifies a measurement."""

    step: Any
    dataset: Any
    protocol: Any
    measure: Any
    seed: Any
    version: Any
    conditions: tuple[Any, ...]


def list_tasks(section: EvaluationSection) -> list[EvaluationTask]:
    """Return every number that a checkpoint is to have on downstream sets.

    Measures of a protocol under a name of its own carry that name.
    """
    return [
        EvaluationTask(
            dataset.name,
            name,
            setting if name == protocol.protocol else replace(setting, measure=f"{name} {setting.measure}"),
            protocol.version,
        )
        for dataset in section.datasets
        for name, protocol in section.protocols.items()
        for setting in protocol.settings()
    ]


def key_of(step: int, task: EvaluationTask, conditions: MeasuredUnder) -> Key:
    """Identify a measurement."""
    return Key(step, task.dataset, task.protocol, task.setting.measure, task.setting.seed, task.version, astuple(conditions))


def key_of_row(row: dict[str, Any]) -> Key:
    """Identify the measurement that a line of evaluations.jsonl belongs to."""
    row = {VERSION: 1, **row, "measure": setting_of(row)}  # lines of older software do not say the version
    values = [None if isinstance(value := row.get(name), list | dict) else value for name in _KEYS]
    return Key(*values[:6], conditions=tuple(values[6:]))


def describe(step: int, task: EvaluationTask, conditions: MeasuredUnder) -> dict[str, Any]:
    """Return the part of a line that identifies its measurement."""
    setting = task.setting
    return {
        "step": step,
        "dataset": task.dataset,
        "protocol": task.protocol,
        VERSION: task.version,
        "measure": setting.measure,
        "seed": setting.seed,
        "shots": None,
        **dict(setting.parameters),
        **{key: value for key, value in asdict(conditions).items() if key not in _OPTIONAL_KEYS or value is not None},
    }
