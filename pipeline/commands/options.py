"""Define arguments that several commands have."""

from __future__ import annotations

import argparse

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
