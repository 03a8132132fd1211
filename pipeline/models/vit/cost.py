"""What a ViT costs on one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.base import Cost

if TYPE_CHECKING:
    from pipeline.models.vit.model import ViTConfig


@dataclass(frozen=True)
class ViTCost(Cost):
    """Of a ViT."""

    model: ViTConfig

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass over one image: every matrix product, attention's two included.

        Norms, activations and biases are left out, as in the paper's counts: six times this (forward, and backward as
        twice that, at two operations each) times the images seen reproduces its Table 6.
        """
        config = self.model
        tokens = config.num_patches + 1
        patch = config.num_patches * 3 * config.patch_size**2 * config.width
        dense = tokens * (4 * config.width**2 + 2 * config.width * config.mlp_dim)
        attention = 2 * tokens**2 * config.width
        pre_logits = config.width * (config.representation_size or 0)
        head = (config.representation_size or config.width) * config.num_classes
        return patch + config.depth * (dense + attention) + pre_logits + head

    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        """Bytes that autograd saves for one image, with fused attention and without checkpointing (the project has none).

        An encoder block saves for each token, in 2-byte elements: its input, the normalised input, q, k, v, the attention's
        output, the sum, the normalised sum (8 D), the MLP's hidden layer before and after GELU (2 M). With M = 4 D and the two
        dropouts of Korthikanti et al. 2022 (arXiv 2205.05198, equation 1) that is their 34 bytes times D, without the part
        of the attention matrix, which fused attention does not save (arXiv 2205.14135); here a third dropout, after GELU,
        adds its mask of M bytes. Attention's log-sum-exp (one fp32 a head) and LayerNorm's mean and deviation come on top.

        """
        model = self.model
        width, hidden, tokens = model.width, model.mlp_dim, model.num_patches + 1
        low = 4 if precision == "fp32" else 2  # what matrix products read and write
        stream = 2 if precision == "bf16" else 4  # the residual stream
        mask = mask_bytes if model.dropout else 0
        norm = stream * width + 2 * 4  # a LayerNorm: its input, mean and 1 / deviation
        block = 2 * norm + 6 * low * width + 2 * low * hidden + 4 * model.num_heads + mask * (2 * width + hidden)
        # The last LayerNorm and its output, of which autocast keeps the class token alone; the dropout after the positions.
        ends = norm + (0 if precision == "bf16_autocast" else stream * width) + mask * width
        pixels = 3 * model.image_size**2 * low  # what the patch embedding read
        representation = low * ((model.representation_size or 0) + (model.width if precision == "bf16_autocast" else 0))
        loss = 2 * 4 * model.num_classes  # logits and targets in fp32
        return tokens * (model.depth * block + ends) + pixels + representation + loss

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Most that one operation of the backward pass takes beyond what was saved: gradients of an MLP's hidden layer before
        and after GELU, and of the residual stream before and after the block; or logits three times over, in fp32."""
        model = self.model
        low = 4 if precision == "fp32" else 2
        stream = 2 if precision == "bf16" else 4
        tokens = model.num_patches + 1
        return max(tokens * (2 * low * model.mlp_dim + 2 * stream * model.width), 3 * 4 * model.num_classes)
