"""Show a run's results as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = "example:\n  python -m pipeline report runs/demo"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir")
    command.add_argument(
        "--out",
        metavar="FILE|FOLDER",
        help="picture to write (default: RUN_DIR/report.png), or an existing folder: FOLDER/NAME_OF_THE_RUN.png",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.errors import ConfigError

    with collector_paused():
        from pipeline.report.report import write_report

    written = write_report(Path(arguments.run_dir), Path(arguments.out) if arguments.out else None)
    print(written.text)
    if written.error is not None:
        raise ConfigError(written.error)
    return 0
