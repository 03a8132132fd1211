"""Learning rates as pure functions of progress."""

from __future__ import annotations

import math


def linear_warmup(step: int, *, peak: float, warmup_steps: int) -> float:
    """From 0 at step 0 to `peak` at `warmup_steps`."""
    return peak * step / warmup_steps


def linear_decay(progress: float, *, peak: float, end: float) -> float:
    """Decay linearly from `peak` at progress 0 to `end` at 1. The authors end at 1e-5
    (google-research/vision_transformer#2).
    """
    return end + (peak - end) * (1.0 - progress)


def cosine_decay(progress: float, *, peak: float, end: float) -> float:
    """Return half a period of a cosine from `peak` at progress 0 to `end` at 1."""
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
