"""Train a configuration while every rank but the first sleeps in each step. A test runs it on real ranks.

torchrun --nproc-per-node=2 -m tests.helpers.slow_rank CONFIG SLEEP_S
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.build.resume import agree_on_start
from pipeline.build.training import make_training
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, device_of, die_with_parent, init_process_group, leave_process_group
from pipeline.launch.signals import StopRequest
from pipeline.run.lock import RunLock


class Sleeper(Callback):
    """Delays a rank's forward pass."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        time.sleep(self.sleep_s)


def main(config_path: str, sleep_s: float) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=300.0)
    run = resolve_run(load_config(config_path), world_size=world.size)
    lock = RunLock(run.config.run_dir)
    start = agree_on_start(run, world, device=device_of(world), lock=lock)
    training = make_training(run.with_precision(start.precision), world=world, stop=StopRequest(), start=start)
    if not world.is_first:
        training.trainer.callbacks.append(Sleeper(sleep_s))  # type: ignore[attr-defined]
    training.run()
    lock.release()
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
