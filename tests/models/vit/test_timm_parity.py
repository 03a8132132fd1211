"""Each choice that timm has too: logits and one step's gradients of the same weights."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.models.vit.section import ViT
from pipeline.models.vit.stochastic_depth import StochasticDepth, block_rates
from tests.helpers.timm_names import random_model, timm_model, to_timm

TINY = ViTConfig(
    image_size=32, patch_size=8, width=48, depth=2, mlp_dim=80, num_heads=3, num_classes=7, representation_size=None,
    dropout=0.0
)  # fmt: skip
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "gap": {"pooling": "gap"},
    "map": {"pooling": "map", "mlp_dim": 192},  # timm's pooling has an MLP of four widths, whatever the encoder's
    "map, tanh GELU": {"pooling": "map", "mlp_dim": 192, "gelu": "tanh"},
    "positions on patches alone": {"position_class_token": False},
    "no positions": {"position": "none"},
    "registers": {"registers": 3, "position_class_token": False},
    "registers, gap": {"registers": 3, "pooling": "gap", "position_class_token": False},
    "registers, map": {"registers": 2, "pooling": "map", "mlp_dim": 192, "position_class_token": False},
    "qk norm": {"qk_norm": True},
    "layer scale": {"layer_scale": 0.1},
    "stochastic depth, not in training": {"stochastic_depth": 0.3},
    "tanh GELU": {"gelu": "tanh"},
    "no biases of q, k, v": {"qkv_bias": False},
    "not square": {"image_size": (16, 40)},
    "so150m2-like": {"pooling": "gap", "registers": 1, "qkv_bias": False, "layer_scale": 1e-1, "position_class_token": False},
}


def step(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss that weights them all."""
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.float() * weights).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def both(timm: ModuleType, config: ViTConfig) -> tuple[VisionTransformer, nn.Module]:
    ours = random_model(config)
    theirs = timm_model(timm, config)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    return ours, theirs


def images_of(config: ViTConfig) -> Tensor:
    return torch.randn(2, 3, *config.height_and_width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CHOICES)
def test_logits_and_gradients_equal_timms_in_fp32(timm: ModuleType, name: str) -> None:
    config = replace(TINY, **CHOICES[name])
    ours, theirs = both(timm, config)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    images = images_of(config)
    (logits, gradients), (their_logits, their_gradients) = step(ours, images), step(theirs, images)
    # Sums of at most a few hundred fp32 terms in another order: some units of 2^-24 of the largest partial sum.
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
    renamed = to_timm(gradients)
    assert renamed.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            renamed[key], gradient, atol=2e-5 * max(scale, 1e-3), rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["default", "map", "registers", "registers, gap"])
def test_patches_and_pooled_tokens_equal_timms(timm: ModuleType, name: str) -> None:
    config = replace(TINY, **CHOICES[name])
    ours, theirs = both(timm, config)
    images = images_of(config)
    found = ours.forward_outputs(images)
    tokens: Any = theirs.forward_features(images)  # type: ignore[operator]
    pooled: Any = theirs.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    assert found.patches is not None
    torch.testing.assert_close(found.patches, tokens[:, theirs.num_prefix_tokens :], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.representation, ours.forward_representation(images))


@pytest.mark.parametrize("name", ["default", "gap", "map", "registers", "qk norm", "layer scale"])
def test_logits_equal_timms_in_bf16(timm: ModuleType, name: str) -> None:
    """Both round to 8 bits after each operation; neither may be further from fp32 than the other by more than that."""
    config = replace(TINY, **CHOICES[name])
    ours, theirs = both(timm, config)
    images = images_of(config)
    with torch.no_grad():
        exact = ours(images)
        found, other = ours.bfloat16()(images).float(), theirs.bfloat16()(images.bfloat16()).float()
    scale = float(exact.abs().max())
    assert float((found - other).abs().max()) <= 4 * 2**-8 * scale
    assert float((found - exact).abs().max()) <= 2 * float((other - exact).abs().max()) + 2**-8 * scale


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_b16_equals_timms(timm: ModuleType) -> None:
    config = ViT(name="B/16", num_classes=1000, representation="none").resolve()  # type: ignore[call-arg]
    ours, theirs = both(timm, config)
    images = images_of(config)
    (logits, gradients), (their_logits, their_gradients) = step(ours, images), step(theirs, images)
    scale = float(their_logits.abs().max())
    torch.testing.assert_close(logits, their_logits, atol=1e-5 * scale, rtol=1e-4)
    for key, gradient in to_timm(gradients).items():
        torch.testing.assert_close(gradient, their_gradients[key], atol=1e-4 * float(gradient.abs().max()), rtol=1e-3)


def test_stochastic_depth_is_timms(timm: ModuleType) -> None:
    """Equal rates by block, and equal draws from equal generators."""
    assert block_rates(0.3, depth=12, rule="linear") == pytest.approx(timm.layers.calculate_drop_path_rates(0.3, 12))
    assert block_rates(0.3, depth=3, rule="uniform") == [0.3, 0.3, 0.3]
    assert block_rates(0.3, depth=1, rule="linear") == [0.0]
    branch = torch.randn(64, 3, 5)
    torch.manual_seed(5)
    ours = StochasticDepth(0.4).train()(branch)
    torch.manual_seed(5)
    theirs = timm.layers.DropPath(0.4).train()(branch)
    assert torch.equal(ours, theirs)
    dropped = (ours == 0).all(dim=(1, 2))
    assert 0 < int(dropped.sum()) < 64
    torch.testing.assert_close(ours[~dropped], branch[~dropped] / 0.6)
    assert torch.equal(StochasticDepth(0.4).eval()(branch), branch)


@pytest.mark.parametrize("rule", ["linear", "uniform"])
def test_each_block_skips_at_its_rate(rule: Any) -> None:
    """Logits in training take one value for each set of branches that can be skipped."""
    config = replace(TINY, stochastic_depth=0.5, stochastic_depth_rule=rule, depth=2)
    model = random_model(config)
    assert [block.get_submodule("skip").rate for block in model.blocks] == ([0.0, 0.5] if rule == "linear" else [0.5, 0.5])
    images = images_of(config)
    with torch.no_grad():
        kept = model(images)
        model.train()
        torch.manual_seed(0)
        draws = {tuple(row.tolist()) for _ in range(200) for row in model(images)[:1]}
    assert len(draws) == (4 if rule == "linear" else 16)  # each of two or four branches, on or off
    assert tuple(kept[0].tolist()) not in draws  # what is kept is divided by the rate of keeping


@pytest.mark.parametrize("name", ["default", "gap", "registers", "registers, map", "no positions"])
def test_tokens_of_the_last_blocks_are_timms(timm: ModuleType, name: str) -> None:
    config = replace(TINY, depth=3, **CHOICES[name])
    ours, theirs = both(timm, config)
    images = images_of(config)
    with torch.no_grad():
        found = ours.eval().forward_last_blocks(images, count=2)
        layers = theirs.eval().get_intermediate_layers(images, n=2, norm=True, return_prefix_tokens=True)  # type: ignore[operator]
    means = [
        (layer if isinstance(layer, Tensor) else layer[0]).mean(dim=1) for layer in layers
    ]  # without prefix tokens no pair
    firsts = [prefix[:, 0] for _, prefix in layers] if config.pooling == "class_token" else means
    assert found is not None
    torch.testing.assert_close(found, torch.stack([*firsts, means[-1]], dim=1), atol=1e-5, rtol=1e-5)
    assert ours.forward_last_blocks(images, count=4) is None
