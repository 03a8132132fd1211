"""Measure the accuracy of a run's checkpoints, in a process of its own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline evaluate runs/l16_in21k --watch\n"
    "  python -m pipeline evaluate runs/demo evaluation.protocols.few_shot.shots=[10]\n\n"
    "Reads weights/ only and appends to evaluations.jsonl; what is in there already is not computed again.\n"
    "Several may run at once. With --watch it ends when the run's last step is evaluated, or the run has failed. A "
    "signal ends it at once, with exit\n"
    "code 75: the same command resumes."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", help="folder of a run, for example runs/l16_in21k")
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="evaluation.key=value", help="settings that replace the run's"
    )
    command.add_argument("--watch", action="store_true", help="wait for new checkpoints until the run is complete")
    command.add_argument("--poll-seconds", type=float, default=5.0, help="how often to look for new weights (default: 5)")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipeline.console.streams import keep_output_in
    from pipeline.run.folder import RunFolder

    keep_output_in(RunFolder(Path(arguments.run_dir)).output_log)
    print(f"[eval] evaluating {arguments.run_dir}; loading torch", flush=True)
    from pipeline.errors import ConfigError
    from pipeline.launch.allotment import Torch, check_visible

    with collector_paused():
        from pipeline.build.evaluator import make_evaluator
        from pipeline.config.read import load_config
        from pipeline.evaluation.watch import wait_for_weights, watch_run

    folder = RunFolder(Path(arguments.run_dir))
    if arguments.watch:
        wait_for_weights(folder, stop=stop, poll_s=arguments.poll_seconds)
    if not folder.config.exists():
        raise ConfigError(f"{folder.root} is not a run folder: it has no config.yaml; `python -m pipeline train` makes one")
    foreign = [text for text in arguments.overrides if text.partition(".")[0] not in ("evaluation", "tracking")]
    if foreign:
        raise ConfigError(f"{foreign[0]}: `evaluate` takes evaluation.* and tracking.* alone; the rest is the run's own")
    config = load_config(folder.config, arguments.overrides)
    if config.evaluation.hardware == "allotted":
        check_visible(os.environ, Torch.look(), setting="evaluation.hardware=found")
    evaluator = make_evaluator(folder, config)
    watch_run(evaluator, folder, watch=arguments.watch, stop=stop, poll_s=arguments.poll_seconds)
    return 0
