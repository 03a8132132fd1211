"""The model against the paper's figures and two implementations no one here wrote."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.models.vit.sizes import SIZES, parse_name
from tests.helpers.timm_names import random_model, timm_model, to_timm


def config_of(
    name: str, *, image_size: int = 224, num_classes: int = 1000, tanh: bool = False, dropout: float = 0.0
) -> ViTConfig:
    shape, patch_size = parse_name(name)
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=shape.width,
        depth=shape.depth,
        mlp_dim=shape.mlp_dim,
        num_heads=shape.num_heads,
        num_classes=num_classes,
        representation_size=shape.width if tanh else None,
        dropout=dropout,
    )


def count(config: ViTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in VisionTransformer(config).parameters())


# Table 1 gives millions; with the 1000-class linear head of fine-tuning, L being the L/32 that the 307 M belongs to.
@pytest.mark.parametrize(("name", "millions"), [("B/16", 86), ("L/32", 307), ("H/14", 632)])
def test_parameter_counts_are_the_papers(name: str, millions: int) -> None:
    assert count(config_of(name)) / 1e6 == pytest.approx(millions, rel=0.008)


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [("Ti/16", "vit_tiny_patch16_224"), ("S/32", "vit_small_patch32_224"), ("B/16", "vit_base_patch16_224"),
     ("B/32", "vit_base_patch32_224"), ("L/16", "vit_large_patch16_224"), ("L/32", "vit_large_patch32_224"),
     ("H/14", "vit_huge_patch14_224")],
)  # fmt: skip
def test_parameter_counts_equal_timms(timm: ModuleType, name: str, timm_name: str) -> None:
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model(timm_name, num_classes=1000).parameters())
    assert count(config_of(name)) == theirs


# Parameters in millions with 1000 classes, and 10^9 multiply-accumulates of a 224-pixel image, which torch counts as well.
@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("Ti/16", 5.72, None),
        ("S/32", 22.88, None),
        ("S/16", 22.05, None),
        ("B/32", 88.22, 4.41),
        ("B/16", 86.57, 17.56),
        ("L/32", 306.54, 15.38),
        ("L/16", 304.33, 61.55),
        ("H/14", 632.05, 167.3),
    ],
)
def test_parameters_and_operations_of_every_size(name: str, millions: float, gmacs: float | None) -> None:
    config = config_of(name)
    assert count(config) / 1e6 == pytest.approx(millions, abs=0.006)
    assert gmacs is None or config.cost.macs / 1e9 == pytest.approx(gmacs, rel=0.002)
    with torch.device("meta"):
        model, images = VisionTransformer(config), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert 2 * config.cost.macs == counter.get_total_flops()


# Table 6, exaFLOPs of JFT pretraining: JFT has 303 M images and 18,291 classes. The table's B/32 is 2 % below the
# rule that gives the other four.
@pytest.mark.parametrize(
    ("name", "epochs", "exaflops", "rel"),
    [
        ("B/32", 7, 55, 0.025),
        ("B/16", 7, 224, 0.005),
        ("L/32", 7, 196, 0.005),
        ("L/16", 7, 783, 0.005),
        ("H/14", 14, 4262, 0.005),
    ],
)
def test_training_cost_is_the_papers(name: str, epochs: int, exaflops: float, rel: float) -> None:
    per_image = config_of(name, num_classes=18291, tanh=True).cost.training_flops
    assert per_image * epochs * 303e6 / 1e18 == pytest.approx(exaflops, rel=rel)


def test_macs_equal_what_torch_counts() -> None:
    config = config_of("S/16", tanh=True)
    with torch.device("meta"):
        model, images = VisionTransformer(config), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert 2 * config.cost.macs == counter.get_total_flops()


@pytest.mark.parametrize("name", ["S/16", "Ti/32"])
def test_logits_equal_timms(timm: ModuleType, name: str) -> None:
    config = config_of(name, num_classes=10)
    ours = random_model(config)
    theirs = timm_model(timm, config)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def to_transformers(model: VisionTransformer) -> dict[str, Tensor]:
    state = {"embeddings.cls_token": model.class_token, "embeddings.position_embeddings": model.position}
    renamed = {"patch_embed": "embeddings.patch_embeddings.projection", "norm": "layernorm", "pre_logits": "pooler.dense"}
    for ours, theirs in renamed.items():
        state |= {f"{theirs}.{k}": v for k, v in model.get_submodule(ours).state_dict().items()}
    return state


def test_pre_logits_equal_transformers() -> None:
    from transformers import ViTConfig as TheirConfig  # type: ignore[import-not-found]
    from transformers import ViTModel  # type: ignore[import-not-found]

    config = config_of("Ti/16", tanh=True)
    ours = random_model(config)
    theirs = ViTModel(
        TheirConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            image_size=224,
            patch_size=16,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    ).eval()
    state = to_transformers(ours)
    names = list(theirs.state_dict())
    for i, block in enumerate(ours.blocks):
        copy_block(state, names, i, block)
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_representation(images), theirs(images).pooler_output, atol=1e-5, rtol=1e-5)


def copy_block(state: dict[str, Tensor], names: list[str], number: int, block: torch.nn.Module) -> None:
    """Fill one encoder layer of transformers' state, whose names differ between its versions."""
    here = [name for name in names if f"layer.{number}." in name or f"layers.{number}." in name]
    weights, biases = (block.get_parameter(f"attention.qkv.{name}").chunk(3) for name in ("weight", "bias"))
    query, key, value = ({"weight": weight, "bias": bias} for weight, bias in zip(weights, biases, strict=True))
    sources = {
        ("query", "q_proj"): query,
        ("key", "k_proj"): key,
        ("value", "v_proj"): value,
        ("attention.output.dense", "o_proj"): block.get_submodule("attention.out").state_dict(),
        ("intermediate.dense", "fc1"): block.get_submodule("mlp.up").state_dict(),
        ("layernorm_before",): block.get_submodule("norm_attention").state_dict(),
        ("layernorm_after",): block.get_submodule("norm_mlp").state_dict(),
        ("output.dense", "fc2"): block.get_submodule("mlp.down").state_dict(),
    }
    for name in here:
        part, _, kind = name.rpartition(".")
        source = next(tensors for endings, tensors in sources.items() if part.endswith(endings))
        state[name] = source[kind]


def test_uint8_images_are_scaled_to_minus_one_to_one() -> None:
    model = random_model(config_of("Ti/32", num_classes=3))
    raw = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(raw), model(raw.float() / 127.5 - 1))


def test_initial_weights_follow_the_authors_code() -> None:
    model = VisionTransformer(config_of("S/16", tanh=True))
    model.init_weights(torch.Generator().manual_seed(0))
    block = model.blocks[0]
    qkv, up = block.get_parameter("attention.qkv.weight").detach(), block.get_parameter("mlp.up.weight").detach()
    assert qkv[:384].std() == pytest.approx((2 / (384 + 384)) ** 0.5, rel=0.02)  # as a square matrix, not as 384 x 1152
    assert up.std() == pytest.approx((2 / (384 + 1536)) ** 0.5, rel=0.02)
    assert block.get_parameter("mlp.up.bias").detach().std() == pytest.approx(1e-6, rel=0.1)
    assert model.position.detach().std() == pytest.approx(0.02, rel=0.02)
    assert model.patch_embed.weight.detach().std() == pytest.approx((16 * 16 * 3) ** -0.5, rel=0.02)
    assert model.class_token.abs().max() == 0
    assert model.head.weight.abs().max() == 0
    # With a zero head every class starts at the same logit.
    assert model(torch.rand(1, 3, 224, 224)).unique().numel() == 1


def test_dropout_stands_where_the_paper_puts_it() -> None:
    model = VisionTransformer(config_of("Ti/32", dropout=0.1))
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p == 0.1]
    assert names[0] == "dropout"
    assert len(names) == 1 + 2 * SIZES["Ti"].depth


@pytest.mark.parametrize("name", ["XL/16", "L", "L/0", "L/16x"])
def test_unknown_names_are_answered_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a model; write one of Ti, S, B, L, H"):
        parse_name(name)
