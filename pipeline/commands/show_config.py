"""Show the configuration as a run resolves it."""

from __future__ import annotations

import argparse

from pipeline.commands.options import add_config, read_run
from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = "example:\n  python -m pipeline show-config configs/h14_in21k.yaml trainer.zero_stage=3"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command)


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.config.resolve import describe_learning_rate

    config = read_run(arguments.config, arguments.overrides)
    print(config.to_yaml(), end="")
    told = describe_learning_rate(config)
    if told is not None:
        print(f"# {told}")
    return 0
