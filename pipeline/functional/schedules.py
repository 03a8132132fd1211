"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["linear", "cosine", "constant"]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, decay: Decay, end: float = 0.0) -> float:
    """Learning rate of optimizer step `step` (0 is the first).

    Linear warmup from 0 over `warmup_steps`, then `decay` from `peak` to `end`, reached at `total_steps`.
    Linear is the paper's choice for ImageNet-21k and JFT, cosine for ImageNet-1k (Table 3); its `linear_end`
    is 1e-5 (google-research/vision_transformer, issue #2).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match decay:
        case "constant":
            return peak
        case "linear":
            return end + (peak - end) * (1.0 - progress)
        case "cosine":
            return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
