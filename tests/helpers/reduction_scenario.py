"""Train, and print how many gradients are reduced while the backward pass still goes on. A test runs it on real ranks.

python -m tests.helpers.forked_ranks 2 tests.helpers.reduction_scenario CONFIG
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
from torch import Tensor

from tests.helpers.rank_training import as_rank, train_here

NAMES = ("all_gather_into_tensor", "all_gather", "all_reduce", "reduce", "reduce_scatter_tensor")
FIRST, LAST = 3, 5  # steps


class CountNumbers(Callback):
    """Counts what the collectives of some steps are given, before and after the last gradient of a backward pass is there."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_counting = False
        self.phase = "after"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in NAMES:
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))
        first = next(parameter for name, parameter in pl_module.named_parameters() if "patch" in name)
        first.register_hook(self._last_gradient)

    def _last_gradient(self, gradient: Tensor) -> None:
        """The patches' kernel is the first that an image meets, and the last that a backward pass comes to."""
        self.phase = "after"

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
            self.counts[f"{name} {self.phase}"] += self.is_counting * max((value.numel() for value in tensors), default=0)
            return function(*arguments, **options)

        return counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.is_counting = FIRST <= batch_idx < LAST

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.phase = "backward"


def main(path: Path) -> None:
    count = CountNumbers()
    with as_rank() as world:
        train_here(path, world, count)
    if world.is_first:
        print(f"numbers: {json.dumps(+count.counts)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
