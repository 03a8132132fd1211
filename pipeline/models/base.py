"""Define what every model family gives to the rest: a configuration that builds, and a model that has a representation."""

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
    """Says how many patches an image has, and how wide their embeddings are."""

    rows: int
    columns: int
    width: int


class PatchOutput(NamedTuple):
    """Holds the outputs of a model of patches whose patch embeddings were corrupted."""

    patches: Tensor  # (B, P, D) each patch's output, in raster order
    logits: Tensor  # (B, C)


class ModelOutputs(NamedTuple):
    """Holds what a model computes of images on the way to its logits; None for what its family does not have."""

    representation: Tensor  # (B, R) what the classifier reads
    pooled: Tensor | None  # (B, D) one vector an image, before pre-logits
    patches: Tensor | None  # (B, P, D) one vector a patch, in raster order, after the last normalisation


class Backbone(nn.Module):
    """Maps uint8 images (B, 3, H, W) to class logits (B, C). Its classifier is one dense layer on a representation."""

    def scale(self, images: Tensor) -> Tensor:
        """Return uint8 images as floats in [-1, 1], which `forward` takes too; floats are returned as they are."""
        return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images

    @abstractmethod
    def forward_representation(self, images: Tensor) -> Tensor:
        """Return what the classifier reads: (B, R)."""

    def forward_outputs(self, images: Tensor) -> ModelOutputs:
        """Return the representation and what it is made from, of one forward pass."""
        return ModelOutputs(self.forward_representation(images), pooled=None, patches=None)

    def forward_last_blocks(self, images: Tensor, *, count: int) -> Tensor | None:
        """Return one vector of each of the last blocks, first to last, then the mean of the last one's patches.

        They are (B, count + 1, D), and all are after the final normalisation. None for a family without tokens, and for a
        model with fewer blocks.
        """
        del images, count
        return None

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise all weights in place, drawing from `generator` alone."""

    def layer_numbers(self) -> dict[str, int]:
        """Return the layer of each parameter, by its name in the model: layer-wise learning rates depend on it.

        Block i is layer i + 1. Parameters made before the blocks (class token, positions, patch embedding) are of layer 0.
        Those made after them (last norm, head) are of the last layer, number of blocks + 1. This is the rule of BEiT and MAE.
        Blocks are `repeated_blocks`, or those that `_listed_blocks` finds. A family whose model is made otherwise has its own
        rule.
        """
        blocks = [block for block in self.numbered_blocks() if any(True for _ in block.parameters())]
        number_of = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
        numbers: dict[str, int] = {}
        outside = 0
        for name, parameter in self.named_parameters():
            inside = number_of.get(id(parameter))
            if inside is not None:
                outside = len(blocks) + 1
            numbers[name] = outside if inside is None else inside
        return numbers

    def numbered_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks that `layer_numbers` counts."""
        return self.repeated_blocks() or self.listed_blocks()

    def listed_blocks(self) -> list[nn.Module]:
        """Return the entries of the outermost `nn.ModuleList`s, and of `nn.Sequential`s named blocks, layers or stages."""
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
        """Return the blocks that most of the model is made of, in order; none where a family has none.

        Activation checkpointing computes them again, and `trainer.compile=blocks` compiles them. Their parameters belong to
        modules inside them.
        """
        return ()


@dataclass(frozen=True)
class BlockCost:
    """Holds the cost of one of a model's repeated blocks on one image.

    Attributes:
        macs: multiply-accumulates of its forward pass.
        saved_bytes: bytes that its forward pass keeps for the backward pass, its input included.
        input_bytes: bytes of its input alone, which is all that is kept where the block is computed again.
    """

    macs: int
    saved_bytes: int
    input_bytes: int


class Cost(ABC):
    """Computes the cost of one image: operations, and bytes of activations. Nothing is measured."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Return the multiply-accumulates of one forward pass."""

    @property
    def training_flops(self) -> int:
        """Return the floating-point operations of training on one image.

        The backward pass counts as two forward passes, and a multiply-accumulate as two operations.
        """
        return 6 * self.macs

    @abstractmethod
    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        """Return the bytes that the forward pass keeps for the backward pass.

        Args:
            mask_bytes: bytes of one element of a dropout mask: 1 on GPUs, where it is boolean.
        """

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        """Return the bytes kept once for the backward pass, whatever the batch, without autocast's bf16 copies of kernels."""
        return 0

    def blocks(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> list[BlockCost]:
        """Return the cost of each of `Backbone.repeated_blocks`, in order; what they save is a part of `saved_bytes`."""
        del precision, mask_bytes
        return []

    @abstractmethod
    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the most bytes that one operation of the backward pass takes beyond those that were saved."""


class ModelConfig(ABC):
    """Holds everything that fixes a model's weights. Each family has a frozen dataclass of it. Lengths are in pixels."""

    family: ClassVar[str]  # the family's name in the section, and in the header of a weights file

    image_size: ImageSize
    num_classes: int
    dropout: float

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Return the height and width in pixels of the images that the model takes."""
        return height_and_width(self.image_size)

    @abstractmethod
    def build(self) -> Backbone:
        """Return the model. Its weights are not initialised."""

    @property
    def patches(self) -> PatchLayout | None:
        """Return the patches that the model embeds, which `Backbone.forward` can corrupt; None for a model without."""
        return None

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Return the cost of one image."""

    @property
    @abstractmethod
    def least_tensors(self) -> int:
        """Return a lower bound of the number of tensors in a state dict: a damaged file may describe a model of any size."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)  # type: ignore[call-overload]  # every family's configuration is a dataclass

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Return the configuration that `to_dict` wrote to a file.

        Raises:
            ValueError: the values describe none.
        """
