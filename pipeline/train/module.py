"""Define the Lightning module: a forward pass and a loss. Callbacks do everything that watches or saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from pipeline.keyed_random import Purpose, derive_key
from pipeline.objectives.base import Objective


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's, as `torch.manual_seed` does.

    That one formats the call stack for each kind of device that this machine has not, which takes milliseconds.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)


class PretrainModule(LightningModule):
    """Wraps a model and what it is trained for.

    Args:
        model: uint8 images (B, 3, H, W) to logits (B, C).
        objective: of the model and a micro-batch; its parameters are trained too.
        make_optimizer: called with the model once.
        schedule: optimizer step to learning rate.
        seed: seed of the dropout masks, together with step, micro-step and rank.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.seed = seed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.model)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Both are functions of the step alone, so a resumed run needs no saved scheduler and no saved generators.
        micro_step = batch_idx % self.trainer.accumulate_grad_batches
        seed_generators(
            derive_key(self.seed, Purpose.DROPOUT, self.global_step, micro_step, self.global_rank) >> 1, self.device
        )
        self.trainer.strategy.set_learning_rate(self.schedule(self.global_step))  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        output = self.objective(self.model, batch)
        # The weight makes the mean over micro-batches and ranks the mean over images, where a batch does not divide evenly.
        loss = output.loss * batch["loss_weight"]
        # Lightning divides "loss" by the micro-batches of a step; callbacks read what was there before.
        return {"loss": loss, "micro_loss": loss.detach(), "predictions": output.predictions, "targets": output.targets}
