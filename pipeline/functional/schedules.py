"""Compute learning rates as pure functions of progress or of steps."""

from __future__ import annotations

import math
from typing import Literal

CooldownShape = Literal["linear", "1-sqrt"]


def linear_warmup(step: int, *, peak: float, warmup_steps: int, start: float = 0.0) -> float:
    """Return a line from `start` at step 0 to `peak` at `warmup_steps`."""
    return start + (peak - start) * step / warmup_steps


def linear_decay(progress: float, *, peak: float, end: float) -> float:
    """Decay linearly from `peak` at progress 0 to `end` at 1. The authors end at 1e-5
    (google-research/vision_transformer#2).
    """
    return end + (peak - end) * (1.0 - progress)


def cosine_decay(progress: float, *, peak: float, end: float) -> float:
    """Return half a period of a cosine from `peak` at progress 0 to `end` at 1."""
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def reciprocal_sqrt(step: int, *, peak: float, timescale_steps: int) -> float:
    """Return `peak / sqrt(1 + step / timescale_steps)`: half the peak after three timescales.

    Source: "Scaling Vision Transformers" (arXiv 2106.04560), in the form of big_vision/utils.py,
    `create_learning_rate_schedule`, with a shift of 0.

    Args:
        step: since the end of the warmup.
    """
    return peak / math.sqrt(1.0 + step / timescale_steps)


def cool_down(progress: float, *, rate: float, end: float, shape: CooldownShape) -> float:
    """Return what a cooldown makes of a learning rate: all of it at progress 0, `end` at 1.

    `linear` multiplies by 1 - progress; `1-sqrt` by 1 - sqrt(progress), the better of the two in arXiv 2405.18392, section 3.
    """
    kept = 1.0 - progress if shape == "linear" else 1.0 - math.sqrt(progress)
    return end + (rate - end) * kept
