"""Compare the configurations of two runs as `doctor` does: settings that can change numbers, and those that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config.deviation import built_values, compare_effects, compare_values
from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.config.upgrade import upgrade
from pipeline.config.yaml_text import Plain, parse_yaml
from pipeline.errors import ConfigError
from pipeline.section import flatten, relaunch_rule

ROUNDING = (
    "trainer.devices",
    "trainer.zero_stage",
    "trainer.micro_batch_size",
    "trainer.compile",
    "trainer.activation_checkpointing",
    "trainer.precision",
    "trainer.attention",
    "trainer.float8",
    "trainer.float8_layers",
)
_WITHOUT_INFLUENCE = ("name", "output_dir", "data.accept", "trainer.max_skipped_steps", "trainer.peak_tflops")
_SECTIONS_WITHOUT = ("tracking.", "evaluation.", "checkpoint.")
Influence = Literal["numbers", "rounding", "none"]


@dataclass(frozen=True)
class Setting:
    """Holds a setting's two values in words, `-` for none, and what it can change."""

    key: str
    a: str
    b: str
    influence: Influence


@dataclass(frozen=True)
class Settings:
    """Holds how two configurations differ.

    Attributes:
        effects: numbers that follow from several settings.
        precision: of the two trainings; None where a configuration does not say.
        noise: whether the training draws masks by rank (dropout or stochastic depth).
        note: why less could be compared; None where all was.
    """

    settings: list[Setting]
    effects: list[Setting]
    precision: tuple[str | None, str | None]
    noise: bool
    note: str | None = None


def compare_settings(a: Path, b: Path, *, alike: frozenset[str] = frozenset()) -> Settings:
    """Compare two files as they are read today. Where this version cannot read one, their values are compared as they stand.

    Args:
        alike: keys of paths whose contents are known to be the same, so that the paths have no influence.

    Raises:
        ConfigError: a file is no configuration at all.
    """
    try:
        ours, theirs = load_config(a), load_config(b)
        values = built_values(ours), built_values(theirs)
    except ConfigError as error:
        note = f"compared as they are written, because one cannot be read by this version: {error}"
        return _describe(_read_plain(a), _read_plain(b), effects=[], alike=alike, note=note)
    effects = [Setting(found.key, found.here, found.recipe, "numbers") for found in compare_effects(ours, theirs)]
    return _describe(*values, effects=effects, alike=alike, note=None)


def _read_plain(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, it is {type(values).__name__}")
    return {key: value.value if isinstance(value, Plain) else value for key, value in flatten(upgrade(values)).items()}


def _describe(
    a: Mapping[str, Any], b: Mapping[str, Any], *, effects: list[Setting], alike: frozenset[str], note: str | None
) -> Settings:
    found = compare_values(dict(a), dict(b))
    influences: list[Influence] = [("none" if each.key in alike else influence_of(each.key)) for each in found]
    settings = [Setting(each.key, each.here, each.recipe, what) for each, what in zip(found, influences, strict=True)]
    precisions = [values.get("trainer.precision") for values in (a, b)]
    noise = any(values.get(key) for values in (a, b) for key in ("model.dropout", "model.stochastic_depth"))
    return Settings(
        settings=settings,
        effects=effects,
        precision=(_text(precisions[0]), _text(precisions[1])),
        noise=noise,
        note=note,
    )


def influence_of(key: str) -> Influence:
    """Return what a setting can change: the numbers of a training, only how they are rounded, or neither."""
    if key in ROUNDING:
        return "rounding"
    free = not key.startswith("model.") and relaunch_rule(RunConfig, key) == "free"
    return "none" if free or key in _WITHOUT_INFLUENCE or key.startswith(_SECTIONS_WITHOUT) else "numbers"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
