"""Say where two runs part, and what explains that one ends lower."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline compare runs/l16_in21k runs/l16_again\n"
    "  python -m pipeline compare runs/a runs/b --json difference.json\n\n"
    "It reads the folders' files alone: runs, or evaluated models (weights/ and evaluations.jsonl). It prints which settings,\n"
    "shards, first weights and software differ; the first logged step at which samples, learning rates, losses and gradient\n"
    "norms do; evaluations side by side, with an interval and whether the difference is more than chance; and at last the\n"
    "likely reasons, the one that explains the others first. The exit code is 0 whether they differ or not."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_a", metavar="RUN_A", help="folder of a run, for example the one to replicate")
    command.add_argument("run_b", metavar="RUN_B", help="folder of another run; differences are B - A")
    command.add_argument("--json", metavar="FILE", help="write all of it to a file, for programs")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.errors import ConfigError

    with collector_paused():
        from pipeline.compare.comparison import compare_folders
        from pipeline.compare.text import to_text
        from pipeline.compare.verdict import judge
        from pipeline.files import write_whole
        from pipeline.json_text import to_finite

    found = compare_folders(Path(arguments.run_a), Path(arguments.run_b))
    verdicts = judge(found)
    print(to_text(found, verdicts))
    if arguments.json is not None:
        values = {**asdict(found), "verdict": [asdict(verdict) for verdict in verdicts]}
        try:
            write_whole(arguments.json, json.dumps(to_finite(values), indent=1) + "\n", durability="unflushed")
        except OSError as error:
            raise ConfigError(f"--json {arguments.json} cannot be written: {error.strerror}") from error
    return 0
