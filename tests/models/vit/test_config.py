"""A ViT's description in a file: older ones, damaged ones; and settings that do not go together."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models import config_from_dict
from pipeline.models.vit.model import ViTConfig
from pipeline.models.vit.section import ViT

# What the first weights files say of a model, key by key.
OLD = {
    "image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2, "num_classes": 3,
    "representation_size": 16, "dropout": 0.1, "head_bias": -3.0,
}  # fmt: skip
ALL_CHOSEN = ViTConfig(
    image_size=(16, 24), patch_size=8, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=3, representation_size=None,
    dropout=0.0, pooling="map", position="learned_2d", position_at="every_layer", position_class_token=False, gelu="tanh",
    qkv_bias=False, qk_norm=True, layer_scale=1e-4, registers=4, stochastic_depth=0.2, stochastic_depth_rule="uniform",
)  # fmt: skip


def through_a_file(config: ViTConfig) -> Any:
    return json.loads(json.dumps(config.to_dict()))


def test_an_older_description_is_the_same_model_as_ever() -> None:
    config = config_from_dict("vit", OLD)
    by_settings = ViT(name="Ti/8", image_size=32, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=3, dropout=0.1)  # type: ignore[call-arg]
    assert config == by_settings.resolve(head_bias=-3.0)
    assert set(config.build().state_dict()) == {
        "class_token", "position", "patch_embed.weight", "patch_embed.bias", "norm.weight", "norm.bias", "pre_logits.weight",
        "pre_logits.bias", "head.weight", "head.bias",
        *(
            f"blocks.{i}.{part}.{kind}" for i in range(2) for kind in ("weight", "bias")
            for part in ("norm_attention", "attention.qkv", "attention.out", "norm_mlp", "mlp.up", "mlp.down")
        ),
    }  # fmt: skip


FIRST_VERSION = {
    "patch_embed.weight": 183.28131454513823,
    "position": 4.462917137716431,
    "blocks.0.attention.qkv.weight": 164.74486993488972,
    "blocks.1.mlp.down.weight": 73.35086644114926,
    "blocks.1.mlp.down.bias": 1.1507788270748165e-05,
    "pre_logits.weight": 54.83880725171184,
}


def test_initial_weights_of_the_default_are_what_they_were() -> None:
    """The order of draws fixes a run's weights; these sums of magnitudes are the first version's.

    To 1e-6, since a processor's logarithm and cosine may differ in the last bit.
    """
    model = config_from_dict("vit", OLD).build()
    model.init_weights(torch.Generator().manual_seed(3))
    state = {name: float(tensor.double().abs().sum()) for name, tensor in model.state_dict().items()}
    for name, value in FIRST_VERSION.items():
        assert state[name] == pytest.approx(value, rel=1e-6), name


def test_what_is_written_is_read() -> None:
    assert ViTConfig.from_dict(through_a_file(ALL_CHOSEN)) == ALL_CHOSEN
    for field in fields(ViTConfig):  # so that a field that is added later is in here
        if field.name not in OLD:
            assert getattr(ALL_CHOSEN, field.name) != field.default, field.name


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "mean"}, {"pooling": None}, {"pooling": ["gap"]}, {"position": 1}, {"position_at": ""}, {"gelu": "TANH"},
        {"position_class_token": 1}, {"qkv_bias": "true"}, {"qk_norm": None}, {"layer_scale": "1e-4"},
        {"layer_scale": float("nan")},
        {"layer_scale": True}, {"registers": -1}, {"registers": 1.0}, {"registers": True}, {"registers": 2**31},
        {"stochastic_depth": 1.0}, {"stochastic_depth": -0.1}, {"stochastic_depth": None}, {"stochastic_depth_rule": {}},
        {"image_size": [16]}, {"image_size": [16, 24, 8]}, {"image_size": [16, 25]}, {"image_size": [16, 0]},
        {"image_size": "16"}, {"image_size": {"height": 16}}, {"image_size": [16, [24]]}, {"image_size": [16, True]},
        {"representation_size": 16}, {"width": 15}, {"unknown": 1}, {"num_heads": 0}, {"width": None}, {"depth": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_description_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ViTConfig.from_dict({**through_a_file(ALL_CHOSEN), **changes})


@pytest.mark.parametrize("name", sorted(OLD.keys() - {"head_bias"}))
def test_what_the_first_files_had_cannot_be_left_out(name: str) -> None:
    with pytest.raises(ValueError, match="is not the keys"):
        ViTConfig.from_dict({key: value for key, value in OLD.items() if key != name})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "map"}, "pooling=map has a hidden layer of its own, .* set model.representation=none"),
        ({"position": "none", "position_at": "shared"}, "position=none has none"),
        ({"position": "relative", "position_at": "every_layer"}, "leave model.position_at=every_layer out"),
        ({"position": "sincos_2d", "position_at": "every_layer"}, "set model.position_at=shared"),
        ({"position": "sincos_2d", "width": 6, "num_heads": 1}, "a multiple of 4"),
        ({"position": "learned_2d", "width": 9, "num_heads": 3}, "model.width=9 is odd"),
        (
            {"image_size": (32, 30)},
            r"model.image_size=\[32, 30\]: its width is not divisible by the patch size 16 .* use 16 or 32",
        ),
        ({"image_size": (30, 32)}, r"model.image_size=\[30, 32\]: its height is not divisible"),
        ({"image_size": 30}, "model.image_size=30 is not divisible by the patch size 16 of Ti/16; use 16 or 32"),
    ],
    ids=str,
)
def test_choices_that_no_model_has_together_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViT(**{"name": "Ti/16", "num_classes": 2, **settings}).resolve()


def test_a_square_that_is_given_by_both_sides_is_one() -> None:
    both, one = (ViT(name="Ti/16", image_size=size, num_classes=2).resolve() for size in ((32, 32), 32))  # type: ignore[call-arg]
    assert both == one
    assert replace(both, image_size=(32, 48)).grid == (2, 3)
