"""Layer-wise learning rates: which layer a parameter is of, and what that makes of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.errors import ConfigError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.optim.groups import parameter_groups

CONFIG = ViTConfig(
    image_size=8, patch_size=4, width=16, depth=3, mlp_dim=24, num_heads=2, num_classes=3, representation_size=8, dropout=0.0
)


def test_layers_of_a_vit() -> None:
    numbers = VisionTransformer(CONFIG).layer_numbers()
    assert {name for name, number in numbers.items() if number == 0} == {
        "class_token", "position", "patch_embed.weight", "patch_embed.bias"
    }  # fmt: skip
    assert {name.partition(".")[0] for name, number in numbers.items() if number == 4} == {"norm", "pre_logits", "head"}
    assert all(number == int(name.split(".")[1]) + 1 for name, number in numbers.items() if name.startswith("blocks."))


def test_scales_are_timms(timm: ModuleType) -> None:
    """`param_groups_layer_decay` of timm on its own ViT, whose 1-D parameters and positions do not decay either.

    But for the last norm, which timm puts with the last block, and MAE (util/lr_decay.py) with the head, as here.
    """
    from timm.models.vision_transformer import VisionTransformer as TimmViT
    from timm.optim import param_groups_layer_decay

    theirs = TimmViT(img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=3, mlp_ratio=1.5)
    groups = param_groups_layer_decay(
        theirs, weight_decay=0.05, no_weight_decay_list=("pos_embed", "cls_token"), layer_decay=0.75
    )
    model = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), "representation_size": None}))
    ours = parameter_groups(model, weight_decay=0.05, decayed="kernels", layer_decay=0.75)
    assert by_shape(ours, but=model.norm) == by_shape(groups, but=theirs.norm)


def by_shape(groups: list[dict[str, Any]], *, but: nn.Module) -> dict[tuple[int, ...], list[tuple[float, float]]]:
    """Scale and weight decay of each parameter, sorted: names and orders are not the same."""
    left_out = {id(parameter) for parameter in but.parameters()}
    found: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) not in left_out:
                pair = (round(group["lr_scale"], 9), group["weight_decay"])
                found.setdefault(tuple(parameter.shape), []).append(pair)
    return {shape: sorted(found[shape]) for shape in sorted(found)}


def test_a_decay_of_one_changes_no_learning_rate() -> None:
    groups = parameter_groups(VisionTransformer(CONFIG), weight_decay=0.1, decayed="kernels", layer_decay=1.0)
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert len(groups) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model={family: bit, name: R26x1, num_classes: 4}", "optimizer={name: muon, learning_rate: 1, weight_decay: 0}"],
         "matrices of dense layers inside blocks, and this model has none: .* set optimizer.name=adamw"),
        (["model.depth=1", "optimizer.layer_decay=0.5"], None),
        (["optimizer={name: muon, learning_rate: 1, weight_decay: 0}"], None),
    ],
)  # fmt: skip
def test_what_looks_at_layers_is_checked_before_anything_starts(
    write_config: Callable[..., Path], settings: list[str], words: str | None
) -> None:
    """Muon without a matrix to train would be AdamW without a word (DeepSpeed #8384: no parameter was tagged)."""
    config = load_config(write_config(), settings)
    if words is None:
        resolve_run(config, world_size=1)
        return
    with pytest.raises(ConfigError, match=words):
        resolve_run(config, world_size=1)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no blocks"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), weight_decay=0.1, decayed="kernels", layer_decay=0.5)
