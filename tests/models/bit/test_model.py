"""BiT's ResNets against timm's, the published sizes and the paper's costs."""

from __future__ import annotations

import json
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import config_from_dict
from pipeline.models.bit.layers import StdConv2d, Variant, max_pool, same_padding
from pipeline.models.bit.model import BiTConfig, BiTResNet
from pipeline.models.bit.section import BiT
from pipeline.models.bit.trunk import PostActivation
from pipeline.optim.groups import parameter_groups
from tests.models.bit.timm_names import to_timm

# Millions of parameters, and 10^9 multiply-accumulates at 224 pixels, with 1,000 classes.
SIZES = {
    "R50x1": (25.55, 4.09), "R50x2": (97.99, 16.12), "R50x3": (217.32, 36.08), "R101x1": (44.54, 7.80),
    "R101x3": (387.93, 69.5),
    "R152x1": (60.19, 11.5), "R152x2": (236.34, 45.8), "R152x4": (936.53, 182.8), "R200x3": (568.6, 134.3),
}  # fmt: skip


def config_of(name: str = "R50x0.5", **settings: Any) -> BiTConfig:
    return BiT(name=name, **{"num_classes": 1000, **settings}).resolve()


def tiny(variant: Variant, **settings: Any) -> BiTConfig:
    return config_of(variant=variant, **{"blocks": [2, 1, 2], "num_classes": 7, "image_size": 64, **settings})


def random_model(config: BiTConfig) -> BiTResNet:
    """Weights away from zero everywhere, in double precision: what differs then is the definition, not rounding.

    Kernels are large, which standardisation undoes, so that no epsilon counts next to their deviation of 10.
    """
    model, generator = BiTResNet(config).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.add_(1)
            if isinstance(module, StdConv2d):
                module.weight.mul_(200).add_(3)
    return model


def count(config: BiTConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.build().parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_operations_are_the_published_ones(name: str) -> None:
    millions, giga_macs = SIZES[name]
    assert count(config_of(name)) / 1e6 == pytest.approx(millions, rel=3e-4)
    assert config_of(name).cost.macs / 1e9 == pytest.approx(giga_macs, rel=5e-3)


@pytest.mark.parametrize(
    "name",
    ["R50x1", "R101x1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("R50x3", "R101x3", "R152x2", "R152x4"))],
)
def test_parameter_counts_equal_timms(timm: ModuleType, name: str) -> None:
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model(f"resnetv2_{name[1:]}_bit", num_classes=1000).parameters())
    assert count(config_of(name)) == theirs


# ViT's Table 6 (arXiv 2010.11929), exaFLOPs on JFT's 303 M images of 18,291 classes. Its ResNets are 3 to 5 % below the rule
# that reproduces its ViTs (tests/models/vit/test_model.py) to half a percent.
@pytest.mark.parametrize(
    ("name", "epochs", "exaflops"),
    [("R50x1", 7, 50), ("R50x2", 7, 199), ("R101x1", 7, 96), ("R152x1", 7, 141), ("R152x2", 7, 563), ("R152x2", 14, 1126),
     ("R200x3", 14, 3306)],
)  # fmt: skip
def test_training_cost_is_the_papers(name: str, epochs: int, exaflops: float) -> None:
    computed = config_of(name, num_classes=18291).cost.training_flops * epochs * 303e6 / 1e18
    assert 1.0 < computed / exaflops < 1.05


def timm_twin(timm: ModuleType, config: BiTConfig) -> nn.Module:
    """timm's ResNet of the same definition, as its `resnetv2_*_bit` and its hybrids make it."""
    layers = timm.layers.std_conv
    conv = layers.StdConv2d if config.variant == "v2" else layers.StdConv2dSame
    return timm.models.resnetv2.ResNetV2(
        layers=config.blocks,
        channels=tuple(4 * config.width * 2**stage for stage in range(len(config.blocks))),
        stem_chs=config.width,
        num_classes=config.num_classes,
        preact=config.variant == "v2",
        stem_type="fixed" if config.variant == "v2" else "same",
        conv_layer=partial(conv, eps=1e-8),
    ).double()


@pytest.mark.parametrize("size", [64, 61])
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_logits_and_gradients_equal_timms(timm: ModuleType, variant: Variant, size: int) -> None:
    """timm adds 1e-8 to a kernel's variance, here 100, where the sources add 1e-10 (v2), or 1e-5 to the deviation, 10 (v1).

    That is at most 1e-6 of a kernel's scale. timm's normalisation adds 1e-5 to the variance, as the source of v2; that of v1
    adds 1e-6, next to a variance above 10: 5e-7 of the scale. So v1 is off by some 1e-6, and its gradients by more, where
    such a difference decides on which side of zero a ReLU is. A wrong padding moves logits by more than a percent.
    """
    config = tiny(variant, image_size=size)
    ours = random_model(config)
    theirs = timm_twin(timm, config)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    images = torch.rand(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.tensor([0, 3, 5])
    rel = 1e-9 if variant == "v2" else 1e-5
    outputs = [model(images) for model in (ours, theirs)]
    assert relative_difference(*outputs) < rel
    for logits in outputs:
        nn.functional.cross_entropy(logits, labels).backward()
    gradients = to_timm({name: gradient(parameter) for name, parameter in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        assert relative_difference(gradients[name], gradient(parameter)) < 100 * rel, name


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.slow
def test_a_whole_r50x1_gives_timms_logits(timm: ModuleType) -> None:
    ours = random_model(config_of("R50x1"))
    theirs = timm.create_model("resnetv2_50x1_bit").double()
    theirs.load_state_dict(to_timm(ours.state_dict()))
    images = torch.rand(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        assert relative_difference(ours(images), theirs(images)) < 1e-9


@pytest.mark.parametrize(("variant", "expected"), [("v1", 0.5), ("v2", 0.5**0.5)])
def test_epsilon_is_added_to_the_deviation_or_to_the_variance(variant: Variant, expected: float) -> None:
    """Of a kernel whose deviation is 1e-5, and whose variance therefore is 1e-10: both epsilons count as much as it does."""
    layer = StdConv2d(64, 8, kernel=3, variant=variant)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)))
        layer.weight /= layer.weight.std(dim=(1, 2, 3), correction=0, keepdim=True)
        layer.weight.mul_(1e-5).add_(0.5 * 1e-5)
    deviation, mean = torch.std_mean(layer.standardised(), dim=(1, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.full((8,), expected), rtol=1e-3, atol=0)
    assert mean.abs().max() < 1e-4


@pytest.mark.parametrize("size", [7, 8, 112, 113])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (1, 2)])
def test_same_padding_is_tensorflows(timm: ModuleType, size: int, kernel: int, stride: int) -> None:
    image = torch.ones(1, 1, size, size)
    theirs = timm.layers.padding.pad_same(image, [kernel, kernel], [stride, stride])
    before, after = same_padding(size, kernel=kernel, stride=stride)
    torch.testing.assert_close(theirs, nn.functional.pad(image, (before, after, before, after)))


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (8, 7)])
def test_max_pool_of_v1_is_timms_and_that_of_v2_lets_zeros_win(timm: ModuleType, size: tuple[int, int]) -> None:
    images = -torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) - 1
    theirs = timm.layers.create_pool2d("max", kernel_size=3, stride=2, padding="same")
    assert torch.equal(max_pool(images, variant="v1"), theirs(images))
    assert max_pool(images, variant="v2")[..., 0, 0].max() == 0


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_initial_weights_follow_the_sources(variant: Variant) -> None:
    model = BiTResNet(tiny(variant, num_classes=3))
    model.init_weights(torch.Generator().manual_seed(0))
    assert model.trunk.conv_root.weight.detach().std() == pytest.approx(147**-0.5, rel=0.03)
    for name, parameter in model.named_parameters():
        if ".gn" in name:
            is_last = variant == "v1" and name.endswith("gn3.weight")
            assert parameter.unique().tolist() == [0.0 if is_last or name.endswith("bias") else 1.0], name
    assert model(torch.rand(2, 3, 64, 64)).abs().max() == 0  # with a zero head every class starts at its bias
    again = BiTResNet(tiny(variant, num_classes=3))
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_v1_block_begins_as_its_shortcut() -> None:
    model = BiTResNet(tiny("v1"))
    model.init_weights(torch.Generator().manual_seed(0))
    block = model.trunk.get_submodule("stages.0.1")
    assert isinstance(block, PostActivation)
    images = torch.rand(1, 128, 8, 8)
    assert torch.equal(block(images), images)


def test_the_heads_bias_is_what_the_objective_asks_for() -> None:
    config = BiT(name="R26x0.5", blocks=(1,), num_classes=3).resolve(head_bias=-10.0)
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(0))
    assert model.head.bias.tolist() == [-10.0] * 3


def test_uint8_images_are_scaled_to_minus_one_to_one() -> None:
    model = random_model(tiny("v2"))
    raw = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(raw), model(raw.double() / 127.5 - 1), rtol=1e-5, atol=1e-5)


def test_kernels_decay_and_normalisations_do_not() -> None:
    model = BiTResNet(tiny("v1"))
    decayed, rest = parameter_groups(model, weight_decay=0.1, decayed="kernels")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(".conv" in names[id(p)] or names[id(p)] == "head.weight" for p in decayed["params"])
    assert all(".gn" in names[id(p)] or names[id(p)] == "head.bias" for p in rest["params"])


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_layers_are_the_root_the_blocks_and_the_end(variant: Variant) -> None:
    numbers = BiTResNet(tiny(variant)).layer_numbers()
    parts = {name.rpartition(".")[0]: number for name, number in numbers.items()}
    assert parts["trunk.conv_root"] == 0
    assert [parts[f"trunk.stages.{block}.conv2"] for block in ("0.0", "0.1", "1.0", "2.0", "2.1")] == [1, 2, 3, 4, 5]
    assert parts["head"] == max(numbers.values()) == 6
    assert parts.get("trunk.gn_end", 6) == 6


@pytest.mark.parametrize("config", [tiny("v1"), tiny("v2"), config_of("R152x4")])
def test_a_configuration_survives_a_file(config: BiTConfig) -> None:
    assert config_from_dict("bit", json.loads(json.dumps(config.to_dict()))) == config
    with torch.device("meta"):
        assert config.least_tensors <= len(config.build().state_dict())


@pytest.mark.parametrize(
    "damage",
    [{"blocks": []}, {"blocks": [1] * 9}, {"blocks": [True]}, {"blocks": "3463"}, {"width": 48}, {"variant": "v3"},
     {"variant": ["v1"]}, {"head_bias": float("nan")}, {"image_size": 0}, {"more": 1}],
)  # fmt: skip
def test_a_damaged_description_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config_from_dict("bit", {**tiny("v1").to_dict(), **damage})


@pytest.mark.parametrize(
    ("name", "words"),
    [("L/16", "write R, one of 26, 50, 101, 152, 200"), ("R34x1", "write R"), ("R50", "write R"), ("R50x0", "multiple of 0.5"),
     ("R50x0.75", "multiple of 0.5")],
)  # fmt: skip
def test_unknown_names_are_answered_in_words(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(name)


@torch.no_grad()
def test_patches_are_the_pixels_of_the_feature_map_in_raster_order() -> None:
    model = BiTResNet(BiT(name="R50x1", num_classes=3, image_size=64).resolve())
    model.init_weights(torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found, features = model.forward_outputs(images), model.forward_features(images)
    assert found.patches is not None
    assert torch.equal(found.patches[:, 4], features[:, :, 1, 1])  # two rows of three
    assert torch.equal(found.representation, model.forward_representation(images))
    assert torch.equal(found.representation, found.pooled)  # type: ignore[arg-type]
