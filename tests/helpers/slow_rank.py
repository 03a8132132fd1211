"""Train a configuration while every rank but the first sleeps in each step. A test runs it on real ranks.

torchrun --nproc-per-node=2 -m tests.helpers.slow_rank CONFIG SLEEP_S
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers.rank_training import as_rank, train_here


class Sleeper(Callback):
    """Delays a rank's forward pass."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        time.sleep(self.sleep_s)


def main(config_path: str, sleep_s: float) -> None:
    with as_rank(timeout_s=300.0) as world:
        train_here(config_path, world, *([] if world.is_first else [Sleeper(sleep_s)]))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
