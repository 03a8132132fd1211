"""The models that are compared: every size, pooling and family of which timm or transformers has the same definition."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.base import Backbone
from pipeline.models.bit.layers import StdConv2d
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.vit.model import ViTConfig
from pipeline.models.vit.section import ViT
from tests.helpers import timm_names
from tests.helpers.parity import transformers_names as hf
from tests.helpers.parity.measure import Side, Twins
from tests.models.bit import timm_names as bit_names

CLASSES = 11
Case = Callable[[], Twins]

# Two blocks of each size, on few patches: what a size adds is width, heads and patches.
SIZES = {
    "Ti/16": (48, 32),
    "S/16": (48, 32),
    "S/32": (96, 64),
    "B/16": (48, 32),
    "B/32": (96, 64),
    "L/16": (48, 32),
    "H/14": (42, 28),
}
CHOICES: dict[str, dict[str, Any]] = {
    "gap": {"pooling": "gap"},
    "map, tanh GELU": {"pooling": "map", "gelu": "tanh"},
    "registers, LayerScale": {"registers": 4, "layer_scale": 0.1, "position_class_token": False},
    "positions on patches alone": {"position_class_token": False},
    "QK norm, no biases of q, k, v": {"qk_norm": True, "qkv_bias": False},
}


def vit_config(name: str, *, image_size: int | tuple[int, int], **settings: Any) -> ViTConfig:
    values = {"representation": "none", "num_classes": CLASSES, "depth": 2, **settings}
    return ViT(name=name, image_size=image_size, **values).resolve()


def images_of(config: Any, *, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *config.height_and_width, generator=torch.Generator().manual_seed(1))


def fill(model: nn.Module) -> nn.Module:
    """Draw weights away from zero everywhere, so that no part of a model is silent.

    Kernels of a ResNet are far from any epsilon: standardising them gives the same whatever their scale.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.add_(1)
            if isinstance(module, StdConv2d):
                module.weight.mul_(200).add_(3)
    return model.eval()


def with_timm_vit(config: ViTConfig) -> Twins:
    ours, theirs = fill(config.build()), timm_names.timm_model(importlib.import_module("timm"), config)
    return _twins(ours, theirs, partial(_plain, timm_names.to_timm), images_of(config))


def with_timm_hybrid(name: str, timm_name: str, size: int) -> Twins:
    from tests.models.hybrid.test_model import to_timm

    small = {"depth": 2, "num_heads": 3}
    config = Hybrid(name=name, representation="none", num_classes=CLASSES, image_size=size, width=48, **small).resolve()
    timm = importlib.import_module("timm")
    theirs = timm.create_model(timm_name, img_size=size, num_classes=CLASSES, embed_dim=48, **small).eval()
    return _twins(fill(config.build()), theirs, lambda tensors: to_timm(dict(tensors), config), images_of(config))


def with_timm_bit() -> Twins:
    from tests.models.bit.test_model import timm_twin

    config = BiT(name="R50x0.5", blocks=[2, 1, 2], num_classes=CLASSES, image_size=64).resolve()
    theirs = timm_twin(importlib.import_module("timm"), config).float().eval()
    return _twins(fill(config.build()), theirs, partial(_plain, bit_names.to_timm), images_of(config))


def with_transformers_vit(config: ViTConfig) -> Twins:
    prefix = "vit" if config.has_class_token else "ijepa"
    renamed = partial(hf.to_vit, prefix=prefix)
    return _twins(fill(config.build()), hf.vit(config), renamed, images_of(config), their_output=lambda output: output.logits)


def with_transformers_siglip(config: ViTConfig) -> Twins:
    return _representations(config, hf.siglip(config), hf.to_siglip)


def with_transformers_registers(config: ViTConfig) -> Twins:
    return _representations(config, hf.registers(config), hf.to_registers)


def with_transformers_bit() -> Twins:
    config = BiT(name="R50x0.5", blocks=[2, 1, 2], num_classes=CLASSES, image_size=64).resolve()
    return _twins(fill(config.build()), hf.bit(config), hf.to_bit, images_of(config), their_output=lambda output: output.logits)


def _plain(rename: Callable[[dict[str, Tensor]], dict[str, Tensor]], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rename(dict(tensors))


def _representations(config: ViTConfig, theirs: nn.Module, renamed: Any) -> Twins:
    ours = fill(config.build())
    assert isinstance(ours, Backbone)
    return _twins(
        ours,
        theirs,
        renamed,
        images_of(config),
        run=ours.forward_representation,
        their_output=lambda output: output.pooler_output,
    )


def _twins(
    ours: nn.Module,
    theirs: nn.Module,
    renamed: Any,
    images: Tensor,
    *,
    run: Any = None,
    their_output: Callable[[Any], Tensor] = lambda output: output,
) -> Twins:
    """Give their model our weights. What it has besides, and does not use, stays: a mask token."""
    missing, unexpected = theirs.load_state_dict(renamed(ours.state_dict()), strict=False)
    assert not unexpected, unexpected
    assert all("mask_token" in name for name in missing), missing
    theirs = theirs.float().eval()
    return Twins(Side(ours, run or ours), Side(theirs, lambda x: their_output(theirs(x))), renamed, images)


def all_cases() -> dict[tuple[str, str], Case]:
    """Return what makes each pair, by model and library."""
    cases: dict[tuple[str, str], Case] = {}
    for name, size in SIZES.items():
        config = vit_config(name, image_size=size)
        cases[f"ViT-{name}", "timm"] = partial(with_timm_vit, config)
        cases[f"ViT-{name}", "transformers"] = partial(with_transformers_vit, config)
    small = vit_config("Ti/16", image_size=(48, 32))
    for choice, settings in CHOICES.items():
        cases[f"ViT-Ti/16, {choice}", "timm"] = partial(with_timm_vit, replace(small, **settings))
    cases["ViT-Ti/16, gap", "transformers"] = partial(with_transformers_vit, replace(small, pooling="gap"))
    square = replace(small, image_size=48)
    attention_pooling = replace(square, pooling="map", gelu="tanh")
    cases["ViT-Ti/16, map, tanh GELU", "transformers"] = partial(with_transformers_siglip, attention_pooling)
    registers = replace(square, registers=4, layer_scale=0.1)
    cases["ViT-Ti/16, registers, LayerScale", "transformers"] = partial(with_transformers_registers, registers)
    hybrids = {
        "R50+B/16": ("vit_base_r50_s16_224", 64),
        "R26+S/32": ("vit_small_r26_s32_224", 96),
        "R+Ti/16": ("vit_tiny_r_s16_p8_224", 96),
    }
    for name, (timm_name, pixels) in hybrids.items():
        cases[name, "timm"] = partial(with_timm_hybrid, name, timm_name, pixels)
    cases["R50x0.5", "timm"] = with_timm_bit
    cases["R50x0.5", "transformers"] = with_transformers_bit
    return cases
