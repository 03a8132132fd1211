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

from tests.helpers.rank_training import as_rank, train_here

NAMES = ("all_gather", "all_gather_into_tensor", "all_reduce", "barrier", "broadcast", "broadcast_object_list", "reduce")
FIRST, LAST = 3, 7  # steps


class CountCollectives(Callback):
    """Counts calls from the start of a step to the start of a later one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_counting = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here on. DeepSpeed holds some functions since its start, such as that which gathers the weights."""
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
    count = CountCollectives()
    with as_rank() as world:
        train_here(path, world, count)
    if world.is_first:
        print(f"collectives: {json.dumps(+count.counts)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
