"""Define what every protocol says of itself: those that read features, and those that run the model themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.data.class_counts import ClassCounts
from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.reading import Reading
from pipeline.evaluation.splits import Splits
from pipeline.run.weights import Weights
from pipeline.section import Section


@dataclass(frozen=True)
class Setting:
    """Describes one number that a protocol measures on a set.

    Args:
        measure: its name after the set's name: `5-shot`.
        seed: seed of the draw; None where nothing is drawn.
        parameters: parameters kept in the result, by name.
    """

    measure: str
    seed: int | None = None
    parameters: tuple[tuple[str, int | float | str], ...] = ()


class ProtocolSection(Section):
    """Holds the settings of a protocol, and what follows from them.

    A member has a literal field `protocol`, by which it is chosen; without it the key of `evaluation.protocols` chooses.

    Attributes:
        version: of the definition. It rises when other numbers are to be expected from the same features; results of another
            version are measured again.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def settings(self) -> list[Setting]:
        """Return every number that the protocol measures on a set."""

    def why_impossible(self, train: ClassCounts) -> str | None:
        """Return why it can measure nothing on a set with this train split; None if it can."""
        del train
        return None

    def notes(self, train: ClassCounts, *, class_names: Sequence[str] | None, path: str) -> list[str]:
        """Return what a user should know before a run about a set with this train split.

        Args:
            path: path of these settings in the configuration.
        """
        del train, class_names, path
        return []

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return what a reader of a result should know."""
        del row
        return []


class FeatureProtocol(ProtocolSection):
    """Measures frozen features of the two splits, which are computed once for all protocols that read the same."""

    @property
    def reads(self) -> FeatureKind:
        """Return the features that it measures."""
        return REPRESENTATION

    @abstractmethod
    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure one of the settings.

        Raises:
            EvaluationError: the set does not have what it needs.
        """


@dataclass(frozen=True)
class Subject:
    """Holds a model and a set, for protocols that run the model themselves.

    Attributes:
        weights: on the device of `reading`.
        places: of the splits `train` and `test`, as settings of shards: `path`, and `index` where it lies elsewhere.
        scratch: folder for runs of its own, below the run folder.
    """

    weights: Weights
    dataset: str
    train: ShardIndex
    test: ShardIndex
    places: Mapping[str, Mapping[str, str]]
    transform: EvalTransform
    reading: Reading
    scratch: Path


class ModelProtocol(ProtocolSection):
    """Measures a model, not its features: its attention, or what it becomes by more training."""

    @abstractmethod
    def measure_model(self, subject: Subject, setting: Setting) -> Measured:
        """Measure one of the settings.

        Raises:
            EvaluationError: the model or the set does not have what it needs.
        """
