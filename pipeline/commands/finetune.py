"""Fine-tune weights: choose settings from a grid on a part of the training images, then train on all of them and test once."""

from __future__ import annotations

import argparse

from pipeline.commands.options import add_config, read_run
from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline finetune configs/finetune/paper_cifar10.yaml init_from=runs/l16_in21k \\\n"
    "      data.train=/data/cifar10/train evaluation.validation='[{name: test, shards: /data/cifar10/test}]'\n"
    "  python -m pipeline finetune configs/finetune/paper_pets.yaml init_from=L_16.npz ... finetune.seeds=3\n"
    "  sbatch --array=0-3 slurm/finetune.sh configs/finetune/paper_imagenet.yaml init_from=...\n"
    "      # a point a task; the same command without the array does the rest\n\n"
    "Every point is a run of `train` in RUN_DIR/grid/POINT, on one machine. The same command resumes where it was stopped or\n"
    "killed, and gives the same table. `train` takes the same file: one training, tested as it goes.\n"
    "RUN_DIR/finetune.json is the table, which `report RUN_DIR` prints and draws. docs/finetuning.md has the recipes."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command)
    command.add_argument("--list", action="store_true", help="print the points and end")
    command.add_argument("--point", type=int, metavar="N", help="run this point alone, counted from 0, and choose none")


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.errors import ConfigError
        from pipeline.finetune.grid import make_plan, run_grid
        from pipeline.finetune.points import list_points

    config = read_run(arguments.config, arguments.overrides)
    if arguments.list:
        section = config.finetune
        for number, point in enumerate(list_points({} if section is None else section.grid)):
            print(f"{number}\t{point.name}\t{dict(point.settings)}")
        return 0
    stop.install_everywhere()
    plan = make_plan(config, tell=_tell)
    only = None
    if arguments.point is not None:
        if not 0 <= arguments.point < len(plan.points):
            raise ConfigError(f"--point {arguments.point}: the grid has the points 0 to {len(plan.points) - 1}")
        only = [plan.points[arguments.point]]
    table = run_grid(plan, stop=stop, tell=_tell, only=only)
    print(table.to_text())
    return 0


def _tell(text: str) -> None:
    print(f"[finetune] {text}", flush=True)
