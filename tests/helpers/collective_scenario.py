"""Train, and print the collectives that torch.distributed is asked for in some steps, by name. A test runs it on real ranks.

python -m tests.helpers.forked_ranks 2 tests.helpers.collective_scenario CONFIG
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.build.resume import agree_on_start
from pipeline.build.training import make_training
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.distributed.quiet import quiet_libraries
from pipeline.distributed.world import World, device_of, die_with_parent, init_process_group, leave_process_group
from pipeline.launch.signals import StopRequest
from pipeline.run.lock import RunLock

NAMES = ("all_gather", "all_gather_into_tensor", "all_reduce", "barrier", "broadcast", "broadcast_object_list", "reduce")
FIRST, LAST = 3, 7  # steps


class CountCollectives(Callback):
    """Counts calls from the start of a step to the start of a later one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_counting = False
        for name in NAMES:
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += self.is_counting
            return function(*arguments, **options)

        return counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.is_counting = FIRST <= batch_idx < LAST


def main(path: Path) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=600)
    run = resolve_run(load_config(path), world_size=world.size)
    lock = RunLock(run.config.run_dir)
    start = agree_on_start(run, world, device=device_of(world), lock=lock)
    training = make_training(run.with_precision(start.precision), world=world, stop=StopRequest(), start=start)
    count = CountCollectives()
    training.trainer.callbacks.append(count)  # type: ignore[attr-defined]
    training.run()
    lock.release()
    leave_process_group()
    if world.is_first:
        print(f"collectives: {json.dumps(+count.counts)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
