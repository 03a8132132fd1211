"""Find out whether the machines here are fit for a training."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pipeline.errors import ConfigError, ExitCode
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n"
    "  python -m pipeline preflight                                # this machine: all of its GPUs, or one CPU rank\n"
    "  srun --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 \\\n"
    "      python -m pipeline preflight --folder /shared/runs --data /data/in21k    # a table by machine, the odd one named\n\n"
    "It looks at software, limits, memory and GPUs, measures matrix products, copies, the run folder's file system, shards,\n"
    "reductions, links between machines and clocks, and trains a tiny model with a resume. It takes about a minute.\n"
    "Exit codes: 0 fit, or with warnings; 2 a problem that would end a training."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, default=Path("runs"), help="where run folders will be (default: runs)")
    command.add_argument("--data", metavar="SHARDS", help="folder or URL of indexed shards, to measure how fast they are read")
    command.add_argument("--ranks", type=int, help="processes on this machine (default: a GPU each, or 1); not under srun")
    command.add_argument("--join", type=float, default=120.0, metavar="SECONDS", help="wait for all ranks (default: 120)")
    command.add_argument("--no-training", action="store_true", help="leave out the tiny training")
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipeline.launch.environment import read_ranks

    ranks = read_ranks()
    if ranks.launcher == "none":
        num_ranks = _num_ranks(arguments.ranks)
        if num_ranks > 1:
            from pipeline.launch.local import launch_local

            return launch_local([sys.executable, "-m", "pipeline", *sys.argv[1:]], num_ranks=num_ranks, stop=stop)
    return _examine(arguments)


def _num_ranks(asked: int | None) -> int:
    import torch

    if asked is not None and asked < 1:
        raise ConfigError(f"--ranks {asked}: use 1 or more")
    return asked or max(1, torch.cuda.device_count())


def _examine(arguments: argparse.Namespace) -> int:
    from pipeline.distributed.world import World, die_with_parent
    from pipeline.preflight.examine import Wishes, examine
    from pipeline.preflight.table import describe_findings, find_odd, make_table, to_values

    world, begin = World.from_environment(), time.monotonic()
    if world.launcher == "local":
        die_with_parent()

    def say(text: str) -> None:
        if world.is_first:
            print(f"[preflight] {text} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)

    wishes = Wishes(arguments.folder, arguments.data, trains=not arguments.no_training, join_s=arguments.join)
    machines = examine(world, wishes, say=say)
    findings = find_odd(machines)
    if world.is_first:
        count = f"{len(machines)} machine{'s' * (len(machines) > 1)}, {world.size} rank{'s' * (world.size > 1)}"
        print(f"{count}, {time.monotonic() - begin:.0f} s\n\n{make_table(machines)}\n")
        print("\n".join(describe_findings(findings, num_machines=len(machines))), flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(to_values(machines, findings), indent=1) + "\n")
    return ExitCode.ERROR if any(finding.severity == "problem" for finding in findings) else ExitCode.DONE
