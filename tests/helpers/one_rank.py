"""Run a real training of one rank in the test's own process: Lightning, DeepSpeed's engine and gloo around a tiny model.

A batch is a dictionary as `BatchLoader` yields it, except that `images` are (B, FEATURES) floats: one that is infinite gives
gradients that are not finite.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F

from pipeline.distributed.world import World, init_process_group, leave_process_group
from pipeline.objectives.base import ClassifierLoss
from pipeline.optim.adamw import AdamW
from pipeline.optim.base import OptimizerSection
from pipeline.train.module import PretrainModule
from pipeline.train.zero import ZeroStrategy, deepspeed_config

FEATURES, CLASSES, LEARNING_RATE = 3, 2, 0.125


@contextmanager
def one_rank() -> Iterator[None]:
    """Make a process group of one."""
    import deepspeed.comm.comm
    import deepspeed.utils.groups

    with _launcher_variables():
        init_process_group(World.alone(), timeout_s=60)
    try:
        yield
    finally:
        leave_process_group()
        # Otherwise the next group would be taken for this one.
        deepspeed.comm.comm.cdb = None
        deepspeed.utils.groups._WORLD_GROUP = None


@contextmanager
def _launcher_variables() -> Iterator[None]:
    """Set a launcher's variables while Lightning and DeepSpeed read them: a test's child processes are not ranks."""
    before = dict(os.environ)
    World.alone().export()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_batch(number: int, *, value: float = 1.0, **more: Any) -> dict[str, Any]:
    """Make two images, numbers `2 * number` and the next, multiplied by `value`."""
    ids = torch.tensor([2 * number, 2 * number + 1])
    images = value * torch.randn((2, FEATURES), generator=torch.Generator().manual_seed(number))
    return {
        "images": images, "labels": ids % CLASSES, "label_ends": torch.tensor([1, 2]), "loss_weight": 1.0, "sample_ids": ids,
        "positions": ids, "unreadable": [], "retries": [], "wait_s": 0.0, "digest": number, "when_copied": [], **more,
    }  # fmt: skip


def make_module(section: OptimizerSection | None = None) -> PretrainModule:
    model = nn.Linear(FEATURES, CLASSES)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    chosen = section or AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0)
    return PretrainModule(
        model=model, objective=ClassifierLoss(F.cross_entropy), make_optimizer=lambda m: chosen.build(m, fused=False),
        schedule=lambda _: LEARNING_RATE, seed=0
    )  # fmt: skip


def fit(
    callbacks: list[Callback], batches: Iterable[dict[str, Any]], *, folder: Path, max_steps: int, accumulation_steps: int = 1,
    zero_stage: int = 0, logger: Any = False, section: OptimizerSection | None = None,
) -> Trainer:  # fmt: skip
    """Train on these batches until `max_steps`, or as long as there are any. Call it within `one_rank`."""
    with _launcher_variables():
        trainer = _make_trainer(
            callbacks,
            folder=folder,
            max_steps=max_steps,
            accumulation_steps=accumulation_steps,
            zero_stage=zero_stage,
            logger=logger,
        )
        trainer.fit(make_module(section), train_dataloaders=_Stream(batches))
    return trainer


def _make_trainer(
    callbacks: list[Callback], *, folder: Path, max_steps: int, accumulation_steps: int, zero_stage: int, logger: Any
) -> Trainer:
    strategy = ZeroStrategy(
        config=deepspeed_config(zero_stage=zero_stage, precision="fp32", micro_batch_size=2, clip_norm=None), precision="fp32",
        clip_norm=None
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=max_steps, max_epochs=1,
        accumulate_grad_batches=accumulation_steps,
        logger=logger, callbacks=callbacks, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=str(folder),
    )  # fmt: skip
    trainer._signal_connector.register_signal_handlers = lambda: None  # as `build.training` does
    return trainer


class _Stream:
    """Yields batches without a length, like `BatchLoader`."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)
