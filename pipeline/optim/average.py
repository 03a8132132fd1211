"""Average the weights of a run as it goes: what the paper calls Polyak averaging, and others EMA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section

AVERAGE = "average"  # its name among the tensors that an optimizer keeps for a parameter


class AverageSection(Section):
    """Holds the settings of the average. After each update, average = decay * average + (1 - decay) * weights.

    It begins as the initial weights.

    Paper, section 4.1 and Table 2: 0.9999 (for its best ImageNet numbers). DeiT: 0.99996 (facebookresearch/deit, main.py).
    """

    decay: float = Field(default=0.9999, gt=0, lt=1)
    warmup: Literal["none", "timm"] = Field(
        default="none",
        description="none: the same decay from the first update on; timm: min(decay, 1 - n^(-2/3)) at the n-th update, "
        "so that the average does not lag behind the first steps",
    )

    def decay_at(self, update: int) -> float:
        """Return the decay of the n-th update, counted from 1.

        `timm` is the warmup of timm's ModelEmaV3 (timm/utils/model_ema.py) with its power 2/3 and gamma 1.
        """
        if self.warmup == "none":
            return self.decay
        return min(self.decay, 1.0 - update ** (-2 / 3))
