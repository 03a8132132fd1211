"""Run by tests on real ranks: trains several configurations one after another in one process group.

    torchrun --nproc-per-node=2 -m tests.rank_scenarios SCENARIOS.json

SCENARIOS.json lists configuration files; each run leaves its own run folder, which the test reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline import build
from pipeline.interruption import StopRequest
from pipeline.planning import make_plan
from pipeline.quiet import quiet_libraries
from pipeline.read_config import load_config
from pipeline.run_lock import RunLock
from pipeline.start import agree_on_start
from pipeline.world import World, die_with_parent, init_process_group, leave_process_group


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
        plan = make_plan(load_config(path), world_size=world.size)
        lock = RunLock(plan.config.run_dir)
        start = agree_on_start(plan, world, device=build.device_of(world), lock=lock)
        training = build.make_training(plan.with_precision(start.precision), world=world, stop=StopRequest(), start=start)
        training.trainer.callbacks.append(SaveByDeepSpeed(plan.config.run_dir / "deepspeed"))  # type: ignore[attr-defined]
        training.run()
        lock.release()
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
