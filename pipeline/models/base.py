"""What every model family gives to the rest: a configuration that builds, and a model that has a representation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.distributed.precision import TrainingPrecision
from pipeline.image_size import ImageSize, height_and_width


class PatchLayout(NamedTuple):
    """How many patches an image has, and how wide their embeddings are."""

    rows: int
    columns: int
    width: int


class PatchOutput(NamedTuple):
    """What a model of patches gives where its patch embeddings were corrupted."""

    patches: Tensor  # (B, P, D) each patch's output, in raster order
    logits: Tensor  # (B, C)


class Backbone(nn.Module):
    """uint8 images (B, 3, H, W) in, class logits (B, C) out. Its classifier is one dense layer on a representation."""

    def scale(self, images: Tensor) -> Tensor:
        """uint8 images as the floats that `forward` takes too: values in [-1, 1]."""
        return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images

    @abstractmethod
    def forward_representation(self, images: Tensor) -> Tensor:
        """What the classifier reads: (B, R)."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise in place, drawing from `generator` alone."""

    def layer_numbers(self) -> dict[str, int]:
        """Return the layer of each parameter, by its name in the model: layer-wise learning rates depend on it.

        Block i is layer i + 1. What is made before the blocks (class token, positions, patch embedding) is layer 0, what is made
        after them (last norm, head) is one layer more than there are blocks: the rule of BEiT and MAE. Blocks are
        `repeated_blocks`, or those that `_listed_blocks` finds. A family whose model is made otherwise has its own rule.
        """
        blocks = [block for block in self.repeated_blocks() or self._listed_blocks() if any(True for _ in block.parameters())]
        number_of = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
        numbers: dict[str, int] = {}
        outside = 0
        for name, parameter in self.named_parameters():
            inside = number_of.get(id(parameter))
            if inside is not None:
                outside = len(blocks) + 1
            numbers[name] = outside if inside is None else inside
        return numbers

    def _listed_blocks(self) -> list[nn.Module]:
        """Return the entries of the outermost `nn.ModuleList`s, and `nn.Sequential`s called blocks, layers or stages as in timm."""
        outermost: list[str] = []
        blocks: list[nn.Module] = []
        for name, module in self.named_modules():
            is_named_so = name.rpartition(".")[2] in ("blocks", "layers", "stages")
            is_list = isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and is_named_so)
            if is_list and not any(name.startswith(f"{path}.") for path in outermost):
                outermost.append(name)
                blocks += module.children()
        return blocks

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """The blocks that most of the model is made of, in order: what activation checkpointing computes again, and what
        `trainer.compile=blocks` compiles. Their parameters belong to modules inside them. Empty where a family has none.
        """
        return ()


@dataclass(frozen=True)
class BlockCost:
    """What one of a model's repeated blocks costs on one image.

    Attributes:
        macs: multiply-accumulates of its forward pass.
        saved_bytes: that its forward pass keeps for the backward pass, its input included.
        input_bytes: of its input alone, which is all that is kept where the block is computed again.
    """

    macs: int
    saved_bytes: int
    input_bytes: int


class Cost(ABC):
    """What one image costs: operations, and bytes of activations. Computed, not measured."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""

    @property
    def training_flops(self) -> int:
        """Floating-point operations of training on one image: forward, and backward as twice that, at two operations each."""
        return 6 * self.macs

    @abstractmethod
    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        """Bytes that the forward pass keeps for the backward pass.

        Args:
            mask_bytes: of one element of a dropout mask: 1 on GPUs, where it is boolean.
        """

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        """Bytes kept for the backward pass once, whatever the batch, besides the bf16 copies that autocast makes of kernels."""
        return 0

    def blocks(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> list[BlockCost]:
        """Of each of `Backbone.repeated_blocks`, in order; what they save is a part of `saved_bytes`."""
        del precision, mask_bytes
        return []

    @abstractmethod
    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Most that one operation of the backward pass takes beyond what was saved."""


class ModelConfig(ABC):
    """Everything that fixes a model's weights: frozen dataclasses. Lengths in pixels."""

    family: ClassVar[str]  # as in the section, and in the header of a weights file

    image_size: ImageSize
    num_classes: int
    dropout: float

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of the images that the model takes."""
        return height_and_width(self.image_size)

    @abstractmethod
    def build(self) -> Backbone:
        """The model, its weights not initialised."""

    @property
    def patches(self) -> PatchLayout | None:
        """The patches that the model embeds, whose embeddings `Backbone.forward` can corrupt; None for a model without."""
        return None

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What one image costs."""

    @property
    @abstractmethod
    def least_tensors(self) -> int:
        """A lower bound of the tensors of a state dict: a damaged file may describe a model of any size."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)  # type: ignore[call-overload]  # every family's configuration is a dataclass

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """What `to_dict` wrote, after a way through a file.

        Raises:
            ValueError: it is none.
        """
