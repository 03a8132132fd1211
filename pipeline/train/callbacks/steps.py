"""Shared by the callbacks: when a batch's end is an optimizer step's end."""

from __future__ import annotations

from lightning.pytorch import Trainer


def is_step_end(trainer: Trainer, batch_idx: int) -> bool:
    """Whether micro-batch `batch_idx` was the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
