"""Train several configurations one after another in one process group. Tests run it on real ranks.

    torchrun --nproc-per-node=2 -m tests.helpers.rank_scenarios SCENARIOS.json

SCENARIOS.json lists configuration files; each run leaves its own run folder, which the test reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers.rank_training import as_rank, train_here


class SaveByDeepSpeed(Callback):
    """Leaves DeepSpeed's own checkpoint of the end of the training, to compare ours with."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.engine.save_checkpoint(f"{trainer.default_root_dir}/deepspeed", tag="end")  # type: ignore[attr-defined]


def main(listing: Path) -> None:
    with as_rank() as world:
        for path in json.loads(listing.read_text()):
            train_here(path, world, SaveByDeepSpeed())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
