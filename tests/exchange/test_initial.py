"""A model that begins with weights of another: what is taken, what is resized, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ExchangeError
from pipeline.exchange.initial import Beginning, Head, begin_with
from pipeline.exchange.patches import resize_patches
from pipeline.exchange.pretrained import Pretrained
from pipeline.models.base import Backbone, ModelConfig
from tests.exchange.models import config_of, model_of
from tests.helpers.parity.cases import images_of


def begin(name: str, config: ModelConfig | None = None, *, head: Head = "auto", **changes: Any) -> tuple[Beginning, Backbone]:
    """Begin a model with the weights of a case; its own settings differ by `changes`."""
    weights = model_of(name)
    wanted = config or replace(weights.config, **changes)  # type: ignore[type-var]
    fresh = wanted.build()
    fresh.init_weights(torch.Generator().manual_seed(1))
    found = begin_with(weights, fresh, wanted, head=head, positions="bicubic_antialias")
    fresh.load_state_dict(found.tensors)
    return found, fresh.eval()


@torch.no_grad()
def logits(model: Backbone, config: ModelConfig) -> torch.Tensor:
    return model(images_of(config))


@torch.no_grad()
def features(model: Backbone, config: ModelConfig) -> torch.Tensor:
    return model.forward_representation(images_of(config))


@pytest.mark.parametrize("name", ["class_token", "gap", "map", "registers", "learned_2d", "relative", "every_layer", "bit"])
def test_a_model_of_the_same_form_is_the_model_of_the_weights(name: str) -> None:
    found, model = begin(name)
    assert (found.fresh, found.left_out, found.resized) == ([], [], [])
    assert torch.equal(logits(model, config_of(name)), logits(model_of(name).build(), config_of(name)))


@pytest.mark.parametrize("name", ["class_token", "pre_logits", "hybrid", "bit"])
def test_another_number_of_classes_begins_a_head_of_zeros(name: str) -> None:
    found, model = begin(name, num_classes=3)
    assert set(found.fresh) == {key for key in found.tensors if key.startswith(("head.", "pre_logits."))}
    assert logits(model, config_of(name)).abs().max() == 0
    if name != "pre_logits":
        assert torch.equal(features(model, config_of(name)), features(model_of(name).build(), config_of(name)))


def test_a_new_head_on_request() -> None:
    found, _ = begin("class_token", head="new")
    assert list(found.fresh) == ["head.weight", "head.bias"]
    assert sorted(found.left_out) == ["head.bias", "head.weight"]


def test_fine_tuning_drops_both_layers_of_the_pretraining_head() -> None:
    """Section 3.2 of the paper: the whole head is replaced by one dense layer of zeros."""
    config = replace(config_of("pre_logits"), representation_size=None, num_classes=5)  # type: ignore[type-var]
    found, _ = begin("pre_logits", config)
    assert list(found.fresh) == ["head.weight", "head.bias"]
    assert sorted(found.left_out) == ["head.bias", "head.weight", "pre_logits.bias", "pre_logits.weight"]


@pytest.mark.parametrize("name", ["class_token", "positions_on_patches", "gap", "learned_2d", "hybrid"])
def test_positions_are_resized_to_a_larger_image(name: str) -> None:
    before = model_of(name)
    size = 2 * before.config.height_and_width[0]
    found, model = begin(name, image_size=size)
    (text,) = found.resized
    assert "positions of 2 x 2 patches" in text
    assert "are resized to 4 x 4" in text
    assert logits(model, replace(before.config, image_size=size)).isfinite().all()  # type: ignore[type-var]
    kept = [key for key in before.tensors if not key.startswith("position")]
    assert all(torch.equal(found.tensors[key], before.tensors[key]) for key in kept)


def test_positions_that_follow_from_the_grid_need_none() -> None:
    found, _ = begin("sincos", image_size=64)
    assert (found.resized, found.fresh) == ([], [])


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 32), (16, 14)])
def test_patches_are_resized_as_timm_does(timm: ModuleType, old: int, new: int) -> None:
    kernel = torch.randn(5, 3, old, old, generator=torch.Generator().manual_seed(0))
    resample = timm.layers.patch_embed.resample_patch_embed
    theirs = resample(kernel, [new, new], interpolation="bilinear", antialias=True)
    torch.testing.assert_close(resize_patches(kernel, size=new), theirs, rtol=0, atol=1e-3 * float(theirs.abs().max()))


def test_larger_patches_of_a_larger_image_have_the_same_embeddings() -> None:
    """Up to rounding, as FlexiViT's section 3.4 shows."""
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    larger = F.interpolate(patch, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(F.conv2d(larger, resize_patches(kernel, size=16)), F.conv2d(patch, kernel))


def test_another_patch_size_keeps_the_grid_or_resizes_it_too() -> None:
    found, _ = begin("class_token", patch_size=32, image_size=64)
    assert list(found.resized) == ["patches of 16 px are resized to 32 px"]
    found, _ = begin("class_token", patch_size=8)
    assert [text.split()[0] for text in found.resized] == ["patches", "positions"]


def test_from_a_class_token_to_the_mean_of_the_patches_and_back() -> None:
    found, _ = begin("class_token", config_of("gap"))
    assert list(found.left_out) == ["class_token"]
    assert torch.equal(found.tensors["position"], model_of("class_token").tensors["position"][:, 1:])
    assert any("pooling=class_token, this model has gap" in note for note in found.notes)
    found, _ = begin("gap", replace(config_of("class_token"), position_class_token=False))  # type: ignore[type-var]
    assert list(found.fresh) == ["class_token"]


def test_layer_scale_is_folded_into_a_model_without() -> None:
    _, model = begin("layer_scale", config_of("class_token"))
    expected = logits(model_of("layer_scale").build(), config_of("class_token"))
    torch.testing.assert_close(logits(model, config_of("class_token")), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("class_token", {"width": 96, "mlp_dim": 192}, "width of 48, this model one of 96: set model.width=48"),
        ("class_token", {"depth": 3}, "depth of 2, this model one of 3"),
        ("class_token", {"num_heads": 4}, "num_heads of 3"),
        ("class_token", {"position": "relative"}, "model.position=learned_1d at stem"),
        ("relative", {"image_size": 64}, "belongs to one number of patches"),
        ("class_token", {"qkv_bias": False}, "set model.qkv_bias=true"),
        ("class_token", {"qk_norm": True}, "lacks blocks.0.attention.norm_query.weight"),
        ("hybrid", {"blocks": (1, 1, 1, 1)}, "another ResNet below its encoder"),
        ("bit", {"width": 32}, "in this model"),
    ],
)
def test_another_model_is_refused_in_words(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        begin(name, **changes)
    assert type(caught.value).__name__ in ("ExchangeError", "ConfigError")


def test_another_family_is_refused() -> None:
    with pytest.raises(ExchangeError, match="family bit, this model is of vit"):
        begin("bit", config_of("class_token"))


def test_another_gelu_is_told() -> None:
    found, _ = begin("tanh_gelu", gelu="exact")
    assert any("trained with model.gelu=tanh, this model has exact" in line for line in found.describe())


def test_weights_without_a_head_are_taken() -> None:
    weights = model_of("class_token")
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("head.")}
    headless = Pretrained(weights.config, tensors, source="features")
    fresh = weights.config.build()
    fresh.init_weights(torch.Generator().manual_seed(1))
    found = begin_with(headless, fresh, weights.config, head="auto", positions="bicubic_antialias")
    assert list(found.fresh) == ["head.weight", "head.bias"]
