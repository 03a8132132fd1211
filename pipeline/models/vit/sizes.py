"""Map names to sizes of models: `L/16` is the large model with 16-pixel patches."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class EncoderSize:
    """Holds width and depth of an encoder."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# B, L, H: the paper's Table 1. Ti, S: DeiT (arXiv 2012.12877, Table 1), as in AugReg (arXiv 2106.10270).
SIZES = {
    "Ti": EncoderSize(width=192, depth=12, mlp_dim=768, num_heads=3),
    "S": EncoderSize(width=384, depth=12, mlp_dim=1536, num_heads=6),
    "B": EncoderSize(width=768, depth=12, mlp_dim=3072, num_heads=12),
    "L": EncoderSize(width=1024, depth=24, mlp_dim=4096, num_heads=16),
    "H": EncoderSize(width=1280, depth=32, mlp_dim=5120, num_heads=16),
}

MAX_PATCH_DIGITS = 5  # pixels


def nearest_size(width: int) -> str:
    """Return the name of the size whose width is nearest: a model of one's own is a size with other numbers."""
    return min(SIZES, key=lambda name: abs(SIZES[name].width - width))


def parse_name(name: str) -> tuple[EncoderSize, int]:
    """Return the encoder size, and the patch size in pixels, that a name such as `L/16` says.

    Raises:
        ConfigError: not one of the sizes, or no patch size after the slash.
    """
    size, _, patch = name.partition("/")
    # isdigit() alone takes digits that int() does not (²), and numbers that are too long for it.
    if size not in SIZES or not (patch.isascii() and patch.isdigit()) or len(patch) > MAX_PATCH_DIGITS or int(patch) == 0:
        raise ConfigError(f"model.name={name[:60]!r} is not a model; write one of {', '.join(SIZES)} and a patch size: 'L/16'")
    return SIZES[size], int(patch)
