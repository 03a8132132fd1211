"""Show what a run sees at a step."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.options import add_config
from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline samples runs/l16_in21k --step 41250 --picture spike.png\n"
    "  python -m pipeline samples configs/l16_in21k.yaml data.train=/data/in21k --step 1 | cut -f 5\n\n"
    "A line a position: step, position, corpus, shard, key, class, sample id, and what it substitutes if an image was\n"
    "unreadable. Steps count as in metrics.jsonl and on the dashboard. With --picture the augmented images too."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command, "run", "folder of a run, or a YAML file")
    command.add_argument("--step", type=int, required=True, help="step as in metrics.jsonl; the first is 1")
    command.add_argument("--steps", type=int, default=1, help="how many steps from there (default: 1)")
    command.add_argument(
        "--picture",
        metavar="FILE|FOLDER",
        help="contact sheet of what the model sees; into an existing folder as NAME_OF_THE_RUN-step-N.png",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.build.samples import list_samples
        from pipeline.config.read import load_config
    from pipeline.console.lines import print_lines
    from pipeline.run.checkpoint import RunFolder

    path = Path(arguments.run)
    config = load_config(RunFolder(path).config if path.is_dir() else path, arguments.overrides)
    picture = Path(arguments.picture) if arguments.picture else None
    print_lines(
        list_samples(config, step=arguments.step, num_steps=arguments.steps, picture=picture),
        when_unread="stop" if picture is None else "go on",
    )
    return 0
