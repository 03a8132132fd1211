"""Compute the cost of one image in a ResNet of BiT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from pipeline.distributed.precision import TrainingPrecision, product_bytes, weight_bytes
from pipeline.image_size import height_and_width
from pipeline.models.base import BlockCost, Cost
from pipeline.models.bit.layers import GROUPS, same_padding
from pipeline.models.bit.trunk import TrunkConfig
from pipeline.models.counting import count_blocks

if TYPE_CHECKING:
    from pipeline.models.bit.model import BiTConfig

INDEX_BYTES = 8  # index of the pixel that a max-pool chose, int64
NORM_BYTES = 2 * 4 * GROUPS  # mean and 1 / deviation in a group normalisation of one image


Size = tuple[int, int]  # height and width in pixels


class Unit(NamedTuple):
    """Describes a bottleneck block: its channels, and the sizes of its images."""

    inputs: int
    mid: int
    out: int
    size: Size
    out_size: Size

    @property
    def has_projection(self) -> bool:
        return self.inputs != self.out or self.size != self.out_size

    @property
    def kernels(self) -> int:
        """Return the elements of its convolutions."""
        return self.mid * (self.inputs + 9 * self.mid + self.out) + (self.inputs * self.out if self.has_projection else 0)

    @property
    def macs(self) -> int:
        projection = self.inputs * self.out if self.has_projection else 0
        after = self.mid * (9 * self.mid + self.out) + projection
        return self.inputs * self.mid * prod(self.size) + after * prod(self.out_size)


@dataclass(frozen=True)
class TrunkCost:
    """Computes the cost of a trunk on one image of `size` pixels."""

    trunk: TrunkConfig
    size: Size

    @property
    def root_size(self) -> Size:
        """Return the size of what the root's convolution writes."""
        return _halved(self.size)

    def units(self) -> Iterator[Unit]:
        inputs, size = self.trunk.width, _halved(self.root_size)
        for number, count in enumerate(self.trunk.blocks):
            mid = self.trunk.width * 2**number
            for unit in range(count):
                out_size = _halved(size) if number and not unit else size
                yield Unit(inputs=inputs, mid=mid, out=4 * mid, size=size, out_size=out_size)
                inputs, size = 4 * mid, out_size

    @property
    def macs(self) -> int:
        """Return those of all convolutions. The standardisation of kernels is left out: it is done once a batch."""
        return 3 * 49 * self.trunk.width * prod(self.root_size) + sum(unit.macs for unit in self.units())

    @property
    def kernels(self) -> int:
        """Return the elements of all convolutions."""
        return 3 * 49 * self.trunk.width + sum(unit.kernels for unit in self.units())

    def saved_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the bytes that autograd saves for one image, without what the next layer makes of the feature map.

        A convolution saves what it reads, a normalisation what it reads, a ReLU what it writes. Without autocast a
        convolution reads what the ReLU before it wrote, which is saved once. Under autocast normalisations and ReLUs are
        computed in fp32, and each convolution saves a bf16 copy of its input besides.
        """
        low = product_bytes(precision)  # what convolutions read and write
        high = weight_bytes(precision)  # what normalisations and ReLUs read and write
        copied = low if precision == "bf16_autocast" else 0  # autocast's copy of a convolution's input
        if self.trunk.variant == "v1":
            return self._root_v1(low, high) + sum(_unit_v1(unit, low, high, copied) for unit in self.units())
        height, width = self.root_size
        chosen = INDEX_BYTES * prod(_halved(self.root_size))
        root = low * 3 * prod(self.size) + self.trunk.width * (low * (height + 2) * (width + 2) + chosen)
        *_, last = self.units()
        end = 2 * high * last.out * prod(last.out_size) + NORM_BYTES
        return root + sum(_unit_v2(unit, high, copied) for unit in self.units()) + end

    def _root_v1(self, low: int, high: int) -> int:
        image = 3 * (_padded_area(self.size, kernel=7) or prod(self.size))
        height, width = self.root_size
        padded = _padded_area(self.root_size, kernel=3) if height % 2 != width % 2 else 0  # the max-pool's padded copy
        stem = high * (2 * height * width + padded) + INDEX_BYTES * prod(_halved(self.root_size))
        return low * image + self.trunk.width * stem + NORM_BYTES

    @property
    def largest_map(self) -> int:
        """Return the elements of the largest feature map."""
        maps = [max(unit.mid * prod(unit.size), unit.out * prod(unit.out_size)) for unit in self.units()]
        return max(self.trunk.width * prod(self.root_size), *maps, 0)


def _halved(size: Size) -> Size:
    height, width = size
    return -(-height // 2), -(-width // 2)


def _padded_area(size: Size, *, kernel: int) -> int:
    """Return the pixels of the copy that an uneven SAME padding at stride 2 makes; 0 where padding is even and needs none."""
    paddings = [same_padding(side, kernel=kernel, stride=2) for side in size]
    if all(before == after for before, after in paddings):
        return 0
    return prod(side + sum(padding) for side, padding in zip(size, paddings, strict=True))


def _unit_v1(unit: Unit, low: int, high: int, copied: int) -> int:
    """Return the bytes that a unit of v1 saves, without its input's ReLU, which the unit before it saved."""
    before, after = prod(unit.size), prod(unit.out_size)
    reads = 1 + unit.has_projection
    # The first unit reads what the max-pool wrote, which nobody else saves.
    read = unit.inputs * before * (copied * reads if copied or unit.inputs != unit.mid else low)
    padded = _padded_area(unit.size, kernel=3) if unit.size != unit.out_size else 0
    middle = unit.mid * (low * padded + copied * (0 if padded else before) + copied * after)
    convolved = unit.mid * (before + after) + unit.out * after * reads
    activated = unit.mid * (before + after) + unit.out * after
    return read + middle + high * (convolved + activated) + NORM_BYTES * (2 + reads)


def _unit_v2(unit: Unit, high: int, copied: int) -> int:
    before, after = prod(unit.size), prod(unit.out_size)
    normed = unit.inputs * before + unit.mid * (before + after)  # saved before normalisation, and after the ReLU
    read = unit.inputs * before * (1 + unit.has_projection) + unit.mid * (before + after)
    return 2 * high * normed + copied * read + 3 * NORM_BYTES


def standardising_bytes(kernels: int, *, precision: TrainingPrecision) -> int:
    """Return the bytes saved once a pass for standardised kernels: the centred kernel in fp32, and what the convolution reads.

    In bf16 the fp32 copy that they are computed from is saved too. Autocast's own bf16 copies are counted elsewhere, for
    all kernels alike (`pipeline/plan/memory.py`).
    """
    return kernels * {"fp32": 4 + 4, "bf16": 4 + 4 + 2, "bf16_autocast": 4}[precision]


@dataclass(frozen=True)
class BiTCost(Cost):
    """Computes the cost of a ResNet of BiT."""

    model: BiTConfig

    @property
    def trunk(self) -> TrunkCost:
        return TrunkCost(self.model.trunk, height_and_width(self.model.image_size))

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of one forward pass: convolutions and head."""
        return self.trunk.macs + self.model.trunk.out_channels * self.model.num_classes

    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        low = product_bytes(precision)
        representation = low * self.model.trunk.out_channels
        return self.trunk.saved_bytes(precision=precision) + representation + 2 * 4 * self.model.num_classes

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        return standardising_bytes(self.trunk.kernels, precision=precision)

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the larger of two numbers of bytes.

        One is the gradients of a block's output, of its branch and of its shortcut at the largest feature map. The other is
        three times the logits, in fp32. What cuDNN takes for a convolution is not known.
        """
        high = weight_bytes(precision)
        return 3 * max(high * self.trunk.largest_map, 4 * self.model.num_classes)

    def blocks(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> list[BlockCost]:
        return count_blocks(self.model, precision)
