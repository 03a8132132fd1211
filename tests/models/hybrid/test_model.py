"""Hybrids against timm's, the published sizes and the paper's costs."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import config_from_dict
from pipeline.models.hybrid.model import Hybrid as HybridModel
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.hybrid.section import Hybrid
from pipeline.optim.groups import parameter_groups
from tests.helpers.parity.cases import fill
from tests.helpers.timm_names import timm_name as encoder_name
from tests.models.bit.timm_names import timm_name as trunk_name

# Millions of parameters with 1,000 classes, tokens and 10^9 multiply-accumulates, all at 224 pixels.
SIZES = {
    "R50+B/16": (98.66, 197, 21.54), "R50+B/32": (110.95, 50, 8.46), "R50+L/16": (316.48, 197, 65.54),
    "R50+L/32": (328.99, 50, 19.41), "R26+S/32": (36.43, 50, 3.46), "R26+B/32": (101.38, 50, 6.71), "R+Ti/16": (6.34, 50, 0.43),
}  # fmt: skip
TIMM = {
    "R50+B/16": "vit_base_r50_s16_224", "R50+L/32": "vit_large_r50_s32_224", "R26+S/32": "vit_small_r26_s32_224",
    "R26+B/32": "vit_base_r26_s32_224", "R+Ti/16": "vit_tiny_r_s16_p8_224",
}  # fmt: skip


def config_of(name: str, **settings: Any) -> HybridConfig:
    return Hybrid(name=name, **{"num_classes": 1000, "representation": "none", **settings}).resolve()


def random_model(config: HybridConfig) -> HybridModel:
    """Weights away from zero everywhere, in double precision; kernels of the trunk so large that no epsilon counts."""
    model = HybridModel(config).double()
    fill(model)
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_tokens_and_operations_are_the_published_ones(name: str) -> None:
    millions, tokens, giga_macs = SIZES[name]
    config = config_of(name)
    with torch.device("meta"):
        assert count(config.build()) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert config.num_tokens == tokens
    assert config.cost.macs / 1e9 == pytest.approx(giga_macs, rel=1e-2 if name == "R+Ti/16" else 2e-3)


@pytest.mark.parametrize("name", TIMM)
def test_parameter_counts_equal_timms(timm: ModuleType, name: str) -> None:
    with torch.device("meta"):
        assert count(config_of(name).build()) == count(timm.create_model(TIMM[name], num_classes=1000))


# Paper, Table 6, exaFLOPs on JFT's 303 M images of 18,291 classes. R50+L/16 has 859 for 7 epochs and 1668 for 14 there, of
# which only the second is what the rule gives that reproduces the other rows: the first is taken for a misprint of 834.
# The ResNets under /32 are up to 2 % below the rule, as those that stand alone (tests/models/bit/test_model.py).
@pytest.mark.parametrize(
    ("name", "epochs", "exaflops", "rel"),
    [
        ("R50+B/32", 7, 106, 0.02),
        ("R50+B/16", 7, 274, 0.005),
        ("R50+L/32", 7, 246, 0.006),
        ("R50+L/16", 7, 834, 0.005),
        ("R50+L/16", 14, 1668, 0.005),
    ],
)
def test_training_cost_is_the_papers(name: str, epochs: int, exaflops: float, rel: float) -> None:
    per_image = config_of(name, num_classes=18291, representation="tanh").cost.training_flops
    assert per_image * epochs * 303e6 / 1e18 == pytest.approx(exaflops, rel=rel)


def to_timm(tensors: dict[str, Tensor], config: HybridConfig) -> dict[str, Tensor]:
    """Tensors, or gradients, by timm's names."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("patch_embed.0."):
            inner = trunk_name(name.removeprefix("patch_embed.0."))
            renamed[f"patch_embed.backbone.{inner if config.blocks else inner.removeprefix('stem.')}"] = tensor
        elif name.startswith("patch_embed.1."):
            renamed[name.replace("patch_embed.1.", "patch_embed.proj.")] = tensor
        else:
            renamed[encoder_name(name)] = tensor
    return renamed


@pytest.mark.parametrize(("name", "size"), [("R50+B/16", 64), ("R26+S/32", 96), ("R+Ti/16", 96)])
def test_logits_and_gradients_equal_timms(timm: ModuleType, name: str, size: int) -> None:
    """Whole ResNets under small encoders.

    timm adds 1e-8 to a kernel's variance, here 100, where the source adds 1e-5 to the deviation, and its group normalisation
    adds 1e-5 to the variance, above 10 here, where the source adds 1e-6: outputs differ by some 1e-6, and gradients by more,
    where that decides on which side of zero a ReLU is. A wrong padding moves logits by more than a percent.
    """
    small = {"depth": 2, "num_heads": 3}
    config = config_of(name, image_size=size, num_classes=5, width=48, **small)
    ours = random_model(config)
    theirs = timm.create_model(TIMM[name], img_size=size, num_classes=5, embed_dim=48, **small).double().eval()
    theirs.load_state_dict(to_timm(ours.state_dict(), config))
    images = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    outputs = [model(images) for model in (ours, theirs)]
    assert relative_difference(*outputs) < 1e-5
    for logits in outputs:
        nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    gradients = to_timm({name: gradient(parameter) for name, parameter in ours.named_parameters()}, config)
    for key, parameter in theirs.named_parameters():
        assert relative_difference(gradients[key], gradient(parameter)) < 1e-3, key


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["R50+B/16", "R26+S/32", "R+Ti/16"])
def test_whole_hybrids_give_timms_logits(timm: ModuleType, name: str) -> None:
    config = config_of(name)
    ours = random_model(config)
    theirs = timm.create_model(TIMM[name], num_classes=config.num_classes).double().eval()
    theirs.load_state_dict(to_timm(ours.state_dict(), config))
    images = torch.rand(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        assert relative_difference(ours(images), theirs(images)) < 1e-5


def test_initial_weights_follow_the_authors_code() -> None:
    config = config_of("R26+Ti/32", image_size=64, depth=1, blocks=[1, 1, 1, 1], num_classes=3)
    models = [HybridModel(config) for _ in range(2)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(0))
    state, again = (model.state_dict() for model in models)
    assert all(torch.equal(state[name], again[name]) for name in state)
    projection = state["patch_embed.1.weight"]
    assert projection.std() == pytest.approx(projection[0].numel() ** -0.5, rel=0.03)
    assert state["patch_embed.1.bias"].abs().max() == 0
    assert state["patch_embed.0.stages.0.0.gn3.weight"].abs().max() == 0  # a block begins as its shortcut
    assert state["patch_embed.0.gn_root.weight"].unique().tolist() == [1.0]
    assert state["position"].std() == pytest.approx(0.02, rel=0.1)
    assert models[0](torch.rand(1, 3, 64, 64)).abs().max() == 0


def test_kernels_decay_and_normalisations_do_not() -> None:
    model = config_of("R26+Ti/32", image_size=64, depth=1, blocks=[1, 1, 1, 1], num_classes=3).build()
    decayed, rest = parameter_groups(model, weight_decay=0.1, decayed="kernels")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trunk = {name for name in names.values() if name.startswith("patch_embed.0.")}
    assert {name for name in trunk if ".conv" in name} == {names[id(p)] for p in decayed["params"]} & trunk
    assert {name for name in trunk if ".gn" in name} == {names[id(p)] for p in rest["params"]} & trunk


def test_the_whole_resnet_is_layer_0_as_a_patch_embedding_is() -> None:
    numbers = config_of("R26+Ti/32", image_size=64, depth=2, blocks=[1, 1, 1, 1], num_classes=3).build().layer_numbers()
    assert {number for name, number in numbers.items() if name.startswith("patch_embed.")} == {0}
    assert (numbers["blocks.1.mlp.up.weight"], numbers["head.weight"]) == (2, 3)


@pytest.mark.parametrize(
    "settings",
    [{"pooling": "gap"}, {"pooling": "map"}, {"position": "sincos_2d", "registers": 2},
     {"stochastic_depth": 0.1, "gelu": "tanh"}, {"position": "relative", "qk_norm": True, "image_size": [64, 96]}],
)  # fmt: skip
def test_the_encoders_choices_are_the_hybrids_too(settings: dict[str, Any]) -> None:
    config = config_of("R26+Ti/32", **{"image_size": 64, "depth": 1, "blocks": [1, 1, 1, 1], "num_classes": 3, **settings})
    assert config_from_dict("hybrid", json.loads(json.dumps(config.to_dict()))) == config
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(0))
    height, width = config.height_and_width
    raw = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert model(raw).shape == (2, 3)
    assert config.least_tensors <= len(model.state_dict())


@pytest.mark.parametrize(
    "damage",
    [{"blocks": [1] * 9}, {"blocks": [0]}, {"root_width": 48}, {"patch_size": 0}, {"image_size": 225}, {"num_heads": 5},
     {"more": 1}],
)  # fmt: skip
def test_a_damaged_description_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config_from_dict("hybrid", {**config_of("R26+S/32").to_dict(), **damage})


@pytest.mark.parametrize("name", ["R50+B/8", "R34+B/16", "R+Ti/32", "B/16", "R50xB/16", "R50+XL/16", "R50+B/16 "])
def test_unknown_names_are_answered_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a hybrid; write R, one of 26, 50, 101, 152, 200 or nothing"):
        config_of(name)


def test_sizes_that_tokens_do_not_cover_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"230 is not divisible by the 32 pixels of a token of R26\+S/32; use 224 or 256"):
        config_of("R26+S/32", image_size=230)
