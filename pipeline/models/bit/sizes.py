"""Map names to sizes of ResNets: `R50x3` has 50 layers, and three times the channels of the usual one."""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline.errors import ConfigError
from pipeline.models.bit.layers import GROUPS

# Blocks a stage (He et al. 2015, arXiv 1512.03385, Table 1); 26 as in google-research/big_vision models/bit.py.
BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
ROOT_CHANNELS = 64


def parse_name(name: str) -> tuple[tuple[int, ...], int]:
    """Return the blocks of each stage and the channels of the root that a name such as `R50x1` or `R26x0.5` says.

    Raises:
        ConfigError: not one of the depths, or a width whose channels do not divide into 32 groups.
    """
    match = re.fullmatch(r"R(\d{1,4})x(\d{1,3}(?:\.\d{1,3})?)", name, re.ASCII)
    if match is None or int(match[1]) not in BLOCKS:
        depths = ", ".join(map(str, BLOCKS))
        raise ConfigError(f"model.name={name[:60]!r} is not a ResNet; write R, one of {depths}, x and a width: 'R50x1'")
    width = Fraction(match[2]) * ROOT_CHANNELS
    if width == 0 or width.denominator != 1 or width % GROUPS:
        raise ConfigError(
            f"model.name={name}: {float(width):g} channels do not divide into {GROUPS} groups; "
            f"use a width that is a multiple of {GROUPS / ROOT_CHANNELS:g}"
        )
    return BLOCKS[int(match[1])], int(width)
