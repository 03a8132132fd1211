"""Show the configuration as a run resolves it."""

from __future__ import annotations

import argparse

from pipeline.commands.options import add_config
from pipeline.launch.signals import StopRequest

EPILOG = "example:\n  python -m pipeline show-config configs/h14_in21k.yaml trainer.zero_stage=3"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command)


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.config.read import load_config

    print(load_config(arguments.config, arguments.overrides).to_yaml(), end="")
    return 0
