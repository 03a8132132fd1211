"""Which layer, and which weight decay, a parameter of a backbone of timm has: timm's own rules, for every kind of block."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline.models.timm.library import default_size, installed_version
from pipeline.models.timm.model import TimmConfig
from pipeline.optim.groups import parameter_groups

# Blocks in stages, in lists of several names, with tokens of their own, with registers, with rotary positions.
MODELS = [
    "swin_tiny_patch4_window7_224", "convnext_atto", "twins_svt_small", "vit_tiny_patch16_224",
    "vit_medium_patch16_reg4_gap_256", "pvt_v2_b0", "eva02_tiny_patch14_224", "beit_base_patch16_224", "nest_tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_those_of_timms_layer_wise_decay(timm: ModuleType, name: str) -> None:
    """Of timm's whole model, whose classifier is ours."""
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        version = installed_version()
        model = TimmConfig(name=name, image_size=default_size(name), options=(), timm_version=version, num_classes=5).build()
        theirs = timm.create_model(name, num_classes=5)
    named = {id(parameter): key for key, parameter in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.5)
    scales = {named[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    found = scales_of(model, layer_decay=0.5)
    assert {key.removeprefix("backbone."): scale for key, scale in found.items() if key.startswith("backbone.")} == {
        key: scale for key, scale in scales.items() if f"backbone.{key}" in found
    }
    assert {scale for key, scale in found.items() if key.startswith("head.")} == {1.0}
    assert len(set(scales.values())) > 4


def scales_of(model: Any, *, layer_decay: float) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.1, decayed="kernels", layer_decay=layer_decay)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
