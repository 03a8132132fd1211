"""Show what runs are doing."""

from __future__ import annotations

import argparse
import os
import sys

from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline status runs/l16_in21k --watch\n  python -m pipeline status runs        # a line a run\n"
    "  python -m pipeline status runs/l16_in21k --json | jq .state\n\n"
    "States: starting, running, saving, waiting for data, finished, stopped by signal, failed, died (its process on this\n"
    "machine is gone), silent (nothing heard for a minute and ten steps, or for half an hour while starting or saving)."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folder of a run, or a folder of such folders")
    command.add_argument("--watch", action="store_true", help="again every two seconds, until no run trains any more")
    command.add_argument("--json", action="store_true", help="everything, for programs")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.monitor.status_text import Style, show

    style = Style.of(sys.stdout, term=os.environ.get("TERM"), no_color=os.environ.get("NO_COLOR"))
    show(arguments.run_dirs, output="json" if arguments.json else "text", watch=arguments.watch, style=style)
    return 0
