"""These parameters decay."""

from __future__ import annotations

import pytest
from torch import nn

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.optim.groups import Decayed, parameter_groups

CONFIG = ViTConfig(
    image_size=8, patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=3, representation_size=8, dropout=0.0
)


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_kernels_are_the_matrices_and_the_patch_embedding() -> None:
    """A ViT's kernels are all its tensors of two dimensions or more, except class token and positions."""
    model = VisionTransformer(CONFIG)
    decayed, rest = parameter_groups(model, weight_decay=0.1, decayed="kernels")
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.squeeze().ndim >= 2}
    apart = {name for name in tensors if "position" in name or "class" in name}
    assert len(apart) == 1  # the class token has one dimension
    assert names_of(model, decayed["params"]) == tensors.keys() - apart
    per_block = 16 * 48 + 16 * 16 + 2 * 16 * 24  # query, key and value; output; two layers of the MLP
    assert sum(p.numel() for p in decayed["params"]) == 2 * per_block + 16 * 3 * 4 * 4 + 16 * 8 + 8 * 3


@pytest.mark.parametrize("decayed", ["kernels", "all"])
def test_every_parameter_is_in_one_group(decayed: Decayed) -> None:
    model = VisionTransformer(CONFIG)
    listed = [id(p) for group in parameter_groups(model, weight_decay=0.1, decayed=decayed) for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_all_decays_everything_in_one_group() -> None:
    groups = parameter_groups(VisionTransformer(CONFIG), weight_decay=0.1, decayed="all")
    assert [group["weight_decay"] for group in groups] == [0.1]


def test_a_shared_kernel_is_listed_once_and_a_frozen_one_not_at_all() -> None:
    one, other, frozen = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    other.weight = one.weight
    frozen.requires_grad_(False)
    groups = parameter_groups(nn.Sequential(one, nn.LayerNorm(2), other, frozen), weight_decay=0.1, decayed="kernels")
    assert [len(group["params"]) for group in groups] == [1, 2]


def test_a_group_of_nothing_is_left_out() -> None:
    assert len(parameter_groups(nn.LayerNorm(2), weight_decay=0.1, decayed="kernels")) == 1
