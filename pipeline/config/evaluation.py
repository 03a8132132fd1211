"""Read the evaluator's settings alone: of a suite, or of a configuration whose other sections do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.read import apply_overrides, read_values, validate
from pipeline.errors import ConfigError
from pipeline.evaluation.section import EvaluationSection
from pipeline.monitor.section import TrackingSection
from pipeline.section import Section


class EvaluationConfig(Section):
    """Configures an evaluation of weights that no run of this software has trained."""

    evaluation: EvaluationSection = EvaluationSection()  # type: ignore[call-arg]
    tracking: TrackingSection = TrackingSection(mode="disabled")  # type: ignore[call-arg]


def read_suite(path: Path) -> dict[str, Any]:
    """Return the evaluator's settings that a file has: plain values, not checked.

    Raises:
        ConfigError: it cannot be read, or has no section `evaluation`.
    """
    found = read_values(path).get("evaluation")
    if not isinstance(found, dict):
        raise ConfigError(f"{path} has no section `evaluation`, which names the sets and protocols of a suite")
    return found


def load_evaluation(suite: Path | None, overrides: list[str]) -> EvaluationConfig:
    """Return the settings of a suite, if any, with `section.key=value` overrides.

    Raises:
        ConfigError: with what is wrong.
    """
    values: dict[str, Any] = {} if suite is None else {"evaluation": read_suite(suite)}
    apply_overrides(values, overrides)
    return validate(EvaluationConfig, values, source="evaluation" if suite is None else str(suite))
