"""Say which of a model's outputs are its features: what its classifier reads, or the tokens of its last blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.errors import EvaluationError
from pipeline.models.base import Backbone


@dataclass(frozen=True)
class FeatureKind:
    """Names features of a model, one vector an image.

    Attributes:
        last_blocks: 0: the representation, which the classifier reads. n: the class tokens of the last n blocks, first to last,
            then the mean of the last block's patches, all after the final LayerNorm: (n + 1) D values. A model without a class
            token has the mean of the block's patches in its place.
    """

    last_blocks: int = 0

    def compute(self, model: Backbone, images: Tensor) -> Tensor:
        """Return the features of images, (B, R).

        Raises:
            EvaluationError: the model has no such features.
        """
        if not self.last_blocks:
            return model.forward_representation(images)
        found = model.forward_last_blocks(images, count=self.last_blocks)
        if found is None:
            raise EvaluationError(
                f"the model gives no tokens of its last {self.last_blocks} blocks (it has fewer, or is no Vision Transformer); "
                "blocks=[1] average=[false] of the protocol reads what its classifier reads"
            )
        return found.flatten(1)

    def key(self) -> dict[str, int]:
        """Return what distinguishes these features from others of the same images; nothing for the representation."""
        return {"last_blocks": self.last_blocks} if self.last_blocks else {}


REPRESENTATION = FeatureKind()
