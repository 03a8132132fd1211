"""Train several configurations one after another in one process group. Tests run it on real ranks.

    torchrun --nproc-per-node=2 -m tests.helpers.rank_scenarios SCENARIOS.json

SCENARIOS.json lists configuration files; each run leaves its own run folder, which the test reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.build.resume import agree_on_start
from pipeline.build.training import make_training
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, device_of, die_with_parent, init_process_group, leave_process_group
from pipeline.launch.signals import StopRequest
from pipeline.run.lock import RunLock


class SaveByDeepSpeed(Callback):
    """Leaves DeepSpeed's own checkpoint of the end of the training, to compare ours with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.engine.save_checkpoint(str(self.folder), tag="end")  # type: ignore[attr-defined]


def main(listing: Path) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=600)
    for path in json.loads(listing.read_text()):
        run = resolve_run(load_config(path), world_size=world.size)
        lock = RunLock(run.config.run_dir)
        start = agree_on_start(run, world, device=device_of(world), lock=lock)
        training = make_training(run.with_precision(start.precision), world=world, stop=StopRequest(), start=start)
        training.trainer.callbacks.append(SaveByDeepSpeed(run.config.run_dir / "deepspeed"))  # type: ignore[attr-defined]
        training.run()
        lock.release()
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
