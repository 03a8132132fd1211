"""Names to models: `L/16` is the large model with 16-pixel patches; its sizes, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.models.vit.model import ViTConfig


@dataclass(frozen=True)
class Shape:
    """Width and depth of an encoder."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# B, L, H: the paper's Table 1. Ti, S: DeiT (arXiv 2012.12877, Table 1), as in AugReg (arXiv 2106.10270).
SHAPES = {
    "Ti": Shape(width=192, depth=12, mlp_dim=768, num_heads=3),
    "S": Shape(width=384, depth=12, mlp_dim=1536, num_heads=6),
    "B": Shape(width=768, depth=12, mlp_dim=3072, num_heads=12),
    "L": Shape(width=1024, depth=24, mlp_dim=4096, num_heads=16),
    "H": Shape(width=1280, depth=32, mlp_dim=5120, num_heads=16),
}

MAX_PATCH_DIGITS = 5  # pixels


def parse_name(name: str) -> tuple[Shape, int]:
    """Shape and patch size in pixels of a name such as `L/16`.

    Raises:
        ConfigError: not one of the sizes, or no patch size after the slash.
    """
    size, _, patch = name.partition("/")
    # isdigit() alone takes digits that int() does not (²), and numbers that are too long for it.
    if size not in SHAPES or not (patch.isascii() and patch.isdigit()) or len(patch) > MAX_PATCH_DIGITS or int(patch) == 0:
        raise ConfigError(f"model.name={name[:60]!r} is not a model; write one of {', '.join(SHAPES)} and a patch size: 'L/16'")
    return SHAPES[size], int(patch)


def macs_per_image(config: ViTConfig) -> int:
    """Multiply-accumulates of one forward pass over one image: every matrix product, attention's two included.

    Norms, activations and biases are left out, as in the paper's counts: six times this (forward, and backward as
    twice that, at two operations each) times the images seen reproduces its Table 6.
    """
    tokens = config.num_patches + 1
    patch = config.num_patches * 3 * config.patch_size**2 * config.width
    dense = tokens * (4 * config.width**2 + 2 * config.width * config.mlp_dim)
    attention = 2 * tokens**2 * config.width
    pre_logits = config.width * (config.representation_size or 0)
    head = (config.representation_size or config.width) * config.num_classes
    return patch + config.depth * (dense + attention) + pre_logits + head


def training_flops_per_image(config: ViTConfig) -> int:
    """Floating-point operations of training on one image: forward plus backward, 6 x MACs."""
    return 6 * macs_per_image(config)
