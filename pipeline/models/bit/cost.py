"""What a ResNet of BiT costs on one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.base import Cost
from pipeline.models.bit.layers import GROUPS
from pipeline.models.bit.trunk import TrunkConfig

if TYPE_CHECKING:
    from pipeline.models.bit.model import BiTConfig

INDEX_BYTES = 8  # of the pixel that a max-pool chose, int64
NORM_BYTES = 2 * 4 * GROUPS  # mean and 1 / deviation of a group normalisation, of one image


class Unit(NamedTuple):
    """A bottleneck block: channels, and sides of its images in pixels."""

    inputs: int
    mid: int
    out: int
    side: int
    out_side: int

    @property
    def has_projection(self) -> bool:
        return self.inputs != self.out or self.side != self.out_side

    @property
    def kernels(self) -> int:
        """Elements of its convolutions."""
        return self.mid * (self.inputs + 9 * self.mid + self.out) + (self.inputs * self.out if self.has_projection else 0)

    @property
    def macs(self) -> int:
        projection = self.inputs * self.out if self.has_projection else 0
        return self.inputs * self.mid * self.side**2 + (self.mid * (9 * self.mid + self.out) + projection) * self.out_side**2


@dataclass(frozen=True)
class TrunkCost:
    """Of a trunk on one image of `image_size` pixels."""

    trunk: TrunkConfig
    image_size: int

    @property
    def root_side(self) -> int:
        return -(-self.image_size // 2)

    def units(self) -> Iterator[Unit]:
        inputs, side = self.trunk.width, -(-self.root_side // 2)
        for number, count in enumerate(self.trunk.blocks):
            mid = self.trunk.width * 2**number
            for unit in range(count):
                out_side = -(-side // 2) if number and not unit else side
                yield Unit(inputs=inputs, mid=mid, out=4 * mid, side=side, out_side=out_side)
                inputs, side = 4 * mid, out_side

    @property
    def macs(self) -> int:
        """Of all convolutions; the standardisation of their kernels, which is no work of an image, is left out."""
        return 3 * 49 * self.trunk.width * self.root_side**2 + sum(unit.macs for unit in self.units())

    @property
    def kernels(self) -> int:
        """Elements of all convolutions."""
        return 3 * 49 * self.trunk.width + sum(unit.kernels for unit in self.units())

    def saved_bytes(self, *, precision: TrainingPrecision) -> int:
        """Bytes that autograd saves for one image.

        A convolution saves what it reads, a normalisation what it reads, a ReLU what it writes. Without autocast a
        convolution reads what the ReLU before it wrote, which is saved once. Under autocast normalisations and ReLUs are
        computed in fp32, and each convolution saves a bf16 copy of its input besides.
        """
        low = 4 if precision == "fp32" else 2  # what convolutions read and write
        high = 2 if precision == "bf16" else 4  # what normalisations and ReLUs read and write
        copied = low if precision == "bf16_autocast" else 0  # of a convolution's input, that it does not share
        units = list(self.units())
        if self.trunk.variant == "v1":
            return self._root_v1(low, high, copied, units) + sum(_unit_v1(unit, low, high, copied) for unit in units)
        width, side = self.trunk.width, self.root_side
        root = low * (3 * self.image_size**2 + width * (side + 2) ** 2) + INDEX_BYTES * width * (-(-side // 2)) ** 2
        last = units[-1]
        end = 2 * high * last.out * last.out_side**2 + NORM_BYTES
        return root + sum(_unit_v2(unit, high, copied) for unit in units) + end

    def _root_v1(self, low: int, high: int, copied: int, units: list[Unit]) -> int:
        width, side = self.trunk.width, self.root_side
        pooled = -(-side // 2)
        image = 3 * (self.image_size + 5 if self.image_size % 2 == 0 else self.image_size) ** 2  # an uneven padding is a copy
        stem = width * (2 * high * side**2 + INDEX_BYTES * pooled**2)
        read = 0 if units else low  # by the embedding, where there are no blocks
        return low * image + stem + NORM_BYTES + read * width * pooled**2

    @property
    def largest_map(self) -> int:
        """Elements of the largest feature map."""
        return max(
            self.trunk.width * self.root_side**2,
            *(max(unit.mid * unit.side**2, unit.out * unit.out_side**2) for unit in self.units()),
            0,
        )


def _unit_v1(unit: Unit, low: int, high: int, copied: int) -> int:
    """Without what the unit before it saved: its own input's ReLU."""
    before, after = unit.side**2, unit.out_side**2
    read = (low if unit.inputs == unit.mid else copied) * (1 + unit.has_projection) * unit.inputs * before
    if unit.inputs == unit.mid and not copied:  # the first unit reads what the max-pool wrote, which nobody else saves
        read = low * unit.inputs * before
    padded = unit.mid * (unit.side + 1) ** 2 if unit.side != unit.out_side and unit.side % 2 == 0 else 0
    middle = low * padded + copied * unit.mid * (0 if padded else before) + copied * unit.mid * after
    convolved = unit.mid * (before + after) + unit.out * after * (2 if unit.has_projection else 1)
    activated = unit.mid * (before + after) + unit.out * after
    return read + middle + high * (convolved + activated) + NORM_BYTES * (4 if unit.has_projection else 3)


def _unit_v2(unit: Unit, high: int, copied: int) -> int:
    before, after = unit.side**2, unit.out_side**2
    normed = unit.inputs * before + unit.mid * (before + after)  # saved before normalisation, and after the ReLU
    read = unit.inputs * before * (1 + unit.has_projection) + unit.mid * (before + after)
    return 2 * high * normed + copied * read + 3 * NORM_BYTES


def standardising_bytes(kernels: int, *, precision: TrainingPrecision) -> int:
    """Bytes saved once a pass for standardised kernels: the centred kernel in fp32, and what the convolution reads.

    In bf16 the fp32 copy that they are computed from is saved too. Autocast's own bf16 copies are counted elsewhere, for
    all kernels alike (`pipeline/plan/memory.py`).
    """
    return kernels * {"fp32": 4 + 4, "bf16": 4 + 4 + 2, "bf16_autocast": 4}[precision]


@dataclass(frozen=True)
class BiTCost(Cost):
    """Of a ResNet of BiT."""

    model: BiTConfig

    @property
    def trunk(self) -> TrunkCost:
        return TrunkCost(self.model.trunk, self.model.image_size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass: convolutions and head."""
        return self.trunk.macs + self.model.trunk.out_channels * self.model.num_classes

    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        low = 4 if precision == "fp32" else 2
        representation = low * self.model.trunk.out_channels
        return self.trunk.saved_bytes(precision=precision) + representation + 2 * 4 * self.model.num_classes

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        return standardising_bytes(self.trunk.kernels, precision=precision)

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Gradients of a block's output, of its branch and of its shortcut at the largest feature map; or three times the
        logits, in fp32. What cuDNN takes for a convolution is not known."""
        high = 2 if precision == "bf16" else 4
        return 3 * max(high * self.trunk.largest_map, 4 * self.model.num_classes)
