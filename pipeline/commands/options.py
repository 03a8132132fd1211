"""Define arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused

if TYPE_CHECKING:
    from pipeline.config.run import RunConfig

EXAMPLE = "trainer.max_steps=100 optimizer.learning_rate=3e-4"


def add_config(
    command: argparse.ArgumentParser, name: str = "config", help: str = "YAML file; configs/ holds the recipes"
) -> None:
    """Add a configuration, and settings that replace its own."""
    command.add_argument(name, help=help)
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help=f"settings that replace the file's, for example {EXAMPLE}",
    )


def read_run(path: str, overrides: Sequence[str]) -> RunConfig:
    """Read a run's configuration. Where it begins with weights and names no model, its model is that of the weights.

    Raises:
        PipelineError: what is wrong, in words.
    """
    with collector_paused():
        from pipeline.config.read import load_config

    config = load_config(path, list(overrides))
    if config.init_from is None:
        return config
    from pipeline.build.initial import with_model_of_weights

    return with_model_of_weights(config)
