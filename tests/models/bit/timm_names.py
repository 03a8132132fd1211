"""Our ResNets' tensors under timm's names."""

from __future__ import annotations

from torch import Tensor

PARTS = {"conv_proj": "downsample.conv", "gn_proj": "downsample.norm", "gn1": "norm1", "gn2": "norm2", "gn3": "norm3"}
ROOTS = {"conv_root": "stem.conv", "gn_root": "stem.norm", "gn_end": "norm"}


def timm_name(name: str) -> str:
    """Of a tensor of a trunk: `stages.0.1.gn1.weight` is `stages.0.blocks.1.norm1.weight`."""
    part, _, kind = name.rpartition(".")
    if part in ROOTS:
        return f"{ROOTS[part]}.{kind}"
    stages, stage, block, layer = part.split(".")
    return f"{stages}.{stage}.blocks.{block}.{PARTS.get(layer, layer)}.{kind}"


def to_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a whole `BiTResNet`; its head is a 1x1 convolution there."""
    renamed = {timm_name(name.removeprefix("trunk.")): value for name, value in tensors.items() if name.startswith("trunk.")}
    return {**renamed, "head.fc.weight": tensors["head.weight"][:, :, None, None], "head.fc.bias": tensors["head.bias"]}
