"""Compute the cost of one image in an encoder over patches, and in a ViT."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.distributed.precision import TrainingPrecision, product_bytes, weight_bytes
from pipeline.image_size import height_and_width
from pipeline.models.base import BlockCost, Cost
from pipeline.models.vit.stochastic_depth import block_rates

if TYPE_CHECKING:
    from pipeline.models.vit.encoder_config import EncoderConfig
    from pipeline.models.vit.model import ViTConfig

MASK_ALIGNMENT = 16  # torch pads the rows of a bias of fused attention to a multiple of this, and keeps them padded


@dataclass(frozen=True)
class EncoderCost(Cost):
    """Computes the cost of everything after the patch embedding; a family adds that of the patch embedding."""

    encoder: EncoderConfig

    @property
    @abstractmethod
    def embedding_macs(self) -> int:
        """Return the multiply-accumulates of the patch embedding."""

    @abstractmethod
    def embedding_saved_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the bytes that the patch embedding keeps for the backward pass, the pixels included."""

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of one forward pass over one image: every matrix product, attention's two included.

        Norms, activations and biases are left out, as in the paper's counts: six times this (forward, and backward as
        twice that, at two operations each) times the images seen reproduces its Table 6.
        """
        config = self.encoder
        pre_logits = config.width * (config.representation_size or 0)
        head = (config.representation_size or config.width) * config.num_classes
        return self.embedding_macs + config.depth * self._block_macs + self._map_macs + pre_logits + head

    @property
    def _block_macs(self) -> int:
        config = self.encoder
        tokens = config.num_tokens
        dense = tokens * (4 * config.width**2 + 2 * config.width * config.mlp_dim)
        relative = tokens * (2 * tokens - 1) * config.width if config.position == "relative" else 0
        return dense + 2 * tokens**2 * config.width + relative

    @property
    def _map_macs(self) -> int:
        """Return those of attention pooling. The probe's query is the same for all images of a batch, but counted for each."""
        config = self.encoder
        if config.pooling != "map":
            return 0
        width, patches = config.width, config.num_patches
        return 2 * patches * (width**2 + width) + 2 * width**2 + 2 * width * config.mlp_dim

    def blocks(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> list[BlockCost]:
        config = self.encoder
        stream = weight_bytes(precision)
        rates = block_rates(config.stochastic_depth, depth=config.depth, rule=config.stochastic_depth_rule)
        inside = self._block_saved_bytes(precision=precision, mask_bytes=mask_bytes)
        low = product_bytes(precision)
        return [
            BlockCost(
                macs=self._block_macs,
                saved_bytes=inside + (2 * low if rate else 0),  # which samples skip each branch
                input_bytes=config.num_tokens * stream * config.width,
            )
            for rate in rates
        ]

    def _block_saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int) -> int:
        """Return the bytes that an encoder block saves, without stochastic depth's masks.

        A block saves for each token, in 2-byte elements: its input, the normalised input, q, k, v, the attention's
        output, the sum, the normalised sum (8 D), the MLP's hidden layer before and after GELU (2 M). With M = 4 D and the two
        dropouts of Korthikanti et al. 2022 (arXiv 2205.05198, equation 1) that is their 34 bytes times D, without the part
        of the attention matrix, which fused attention does not save (arXiv 2205.14135); here a third dropout, after GELU,
        adds its mask of M bytes. Attention's log-sum-exp (one fp32 a head) and LayerNorm's mean and deviation come on top.
        """
        config = self.encoder
        width, hidden, heads, tokens = config.width, config.mlp_dim, config.num_heads, config.num_tokens
        low, stream = product_bytes(precision), weight_bytes(precision)
        mask = mask_bytes if config.dropout else 0
        block = 2 * _norm_bytes(config, stream) + 6 * low * width + 2 * low * hidden + 4 * heads + mask * (2 * width + hidden)
        if config.qk_norm:  # normalised q and k; statistics of each head; under autocast fp32 copies of what is normalised
            block += 2 * low * width + 2 * 2 * 4 * heads + (2 * 4 * width if precision == "bf16_autocast" else 0)
        if config.layer_scale is not None:  # what each factor multiplied
            block += 2 * low * width
        if config.position == "relative":  # the logits of one query, by key
            block += low * heads * -(-tokens // MASK_ALIGNMENT) * MASK_ALIGNMENT
        return tokens * block

    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        """Return the bytes that autograd saves for one image, with fused attention and without checkpointing."""
        config = self.encoder
        blocks = sum(block.saved_bytes for block in self.blocks(precision=precision, mask_bytes=mask_bytes))
        mask = mask_bytes if config.dropout else 0  # mask of the dropout after the positions
        ends = config.num_tokens * (_norm_bytes(config, weight_bytes(precision)) + mask * config.width)
        loss = 2 * 4 * config.num_classes  # logits and targets in fp32
        return (
            blocks
            + ends
            + self.embedding_saved_bytes(precision=precision)
            + self._pooling_saved_bytes(precision=precision)
            + product_bytes(precision) * (config.representation_size or 0)
            + loss
        )

    def _pooling_saved_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the bytes kept of the last LayerNorm's output: all of it, for the class token is a view; under autocast a copy
        of what is read; with gap the mean alone.
        """
        config = self.encoder
        low, stream, width = product_bytes(precision), weight_bytes(precision), config.width
        if config.pooling == "gap":
            return low * width
        if config.pooling == "class_token":
            return low * width if precision == "bf16_autocast" else stream * config.num_tokens * width
        read = low * config.num_patches * width if precision == "bf16_autocast" else stream * config.num_tokens * width
        keys = 2 * low * config.num_patches * width
        one_token = low * (3 * width + 2 * config.mlp_dim) + low * width + 2 * 4 + 4 * config.num_heads
        return read + keys + one_token

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the most bytes that one operation of the backward pass takes beyond those that were saved.

        These are the gradients of an MLP's hidden layer before and after GELU, and of the residual stream before and after the
        block; or the logits three times over, in fp32. With relative positions they may also be the gradient of a block's
        attention logits by key and by offset, with the streams'.
        """
        config = self.encoder
        low, stream, tokens = product_bytes(precision), weight_bytes(precision), config.num_tokens
        streams = 2 * tokens * stream * config.width
        by_offset = low * config.num_heads * tokens * 3 * tokens if config.position == "relative" else 0
        return max(2 * tokens * low * config.mlp_dim + streams, by_offset + streams, 3 * 4 * config.num_classes)


@dataclass(frozen=True)
class ViTCost(EncoderCost):
    """Computes the cost of a ViT."""

    encoder: ViTConfig

    @property
    def embedding_macs(self) -> int:
        config = self.encoder
        return config.num_patches * 3 * config.patch_size**2 * config.width

    def embedding_saved_bytes(self, *, precision: TrainingPrecision) -> int:
        height, width = height_and_width(self.encoder.image_size)
        return 3 * height * width * product_bytes(precision)


def _norm_bytes(config: EncoderConfig, stream: int) -> int:
    """Return the bytes that a LayerNorm saves of a token: its input, mean and 1 / deviation."""
    return stream * config.width + 2 * 4
