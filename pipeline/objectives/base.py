"""What every objective says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pipeline.section import Section

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, C), labels (B,) -> scalar


class ObjectiveSection(Section):
    """The settings of an objective, and what follows from them."""

    head_bias: ClassVar[float] = 0.0  # what the head's biases begin at

    @abstractmethod
    def build(self, *, num_classes: int) -> Loss:
        """The loss of logits (B, C) and labels (B,): a scalar, in fp32."""

    def metrics(self, *, num_classes: int) -> dict[str, Metric]:
        """Metrics of logits and labels by their names in the metrics file; none by default."""
        del num_classes
        return {}
