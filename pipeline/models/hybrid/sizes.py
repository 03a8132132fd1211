"""Map names to sizes of hybrids: `R50+B/16` is the base encoder on a ResNet-50 that makes the image 16 times smaller."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.models.bit.sizes import BLOCKS
from pipeline.models.vit.sizes import SIZES, EncoderSize, nearest_size

STEM_PATCH = 8  # pixels of R+Ti/16's feature map (google-research/vision_transformer, vit_jax/configs/models.py)


@dataclass(frozen=True)
class HybridSize:
    """Holds what a name says.

    Attributes:
        blocks: of each stage of the ResNet; none: its root alone.
        patch_size: in pixels of the feature map.
    """

    encoder: EncoderSize
    blocks: tuple[int, ...]
    patch_size: int


def parse_name(name: str) -> HybridSize:
    """Return the sizes that a name says.

    /32 has the ResNet's four stages. /16 has three, to which the fourth's blocks are added: its third has those of both
    (paper, section 4.1). R+Ti/16 has the root alone, and patches of 8x8 on its output: as many tokens as /32.

    Raises:
        ConfigError: none of them.
    """
    match = re.fullmatch(r"R(\d{0,4})\+([A-Za-z]+)/(16|32)", name, re.ASCII)
    depth = None if match is None or not match[1] else int(match[1])
    is_known = match is not None and match[2] in SIZES and (depth in BLOCKS if match[1] else match[3] == "16")
    if match is None or not is_known:
        depths, sizes = ", ".join(map(str, BLOCKS)), ", ".join(SIZES)
        raise ConfigError(
            f"model.name={name[:60]!r} is not a hybrid; write R, one of {depths} or nothing, + and one of {sizes}, and /16 or "
            "/32: 'R50+B/16', 'R26+S/32', 'R+Ti/16'"
        )
    encoder = SIZES[match[2]]
    if depth is None:
        return HybridSize(encoder=encoder, blocks=(), patch_size=STEM_PATCH)
    first, second, third, fourth = BLOCKS[depth]
    blocks = (first, second, third + fourth) if match[3] == "16" else BLOCKS[depth]
    return HybridSize(encoder=encoder, blocks=blocks, patch_size=1)


def name_of(blocks: tuple[int, ...], patch_size: int, *, width: int) -> str:
    """Return a name of a hybrid with these patches, and with these blocks where a name has them.

    Args:
        width: of the encoder.

    Raises:
        ValueError: no hybrid has such patches.
    """
    encoder = nearest_size(width)
    names = [f"R+{encoder}/16", *(f"R{depth}+{encoder}/{stride}" for stride in (16, 32) for depth in BLOCKS)]
    fitting = [
        name for name in names if parse_name(name).patch_size == patch_size and bool(parse_name(name).blocks) == bool(blocks)
    ]
    if not fitting:
        raise ValueError(f"no hybrid of {len(blocks)} stages has patches of {patch_size} pixels of its feature map")
    return min(fitting, key=lambda name: parse_name(name).blocks != blocks)
