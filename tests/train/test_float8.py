"""Linear layers in float8 against the same rounding written out, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.read import load_config
from pipeline.errors import ConfigError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.train.float8 import RECIPES, Float8Recipe, check_device, layer_names, use_float8
from tests.conftest import REPOSITORY, environment

CPU = torch.device("cpu")
# 5 images of 17 tokens: 85 rows, which 16 does not divide.
CONFIG = ViTConfig(
    image_size=16,
    patch_size=4,
    width=32,
    depth=2,
    mlp_dim=64,
    num_heads=2,
    num_classes=5,
    representation_size=None,
    dropout=0.0,
)
ALL = ["attention.out", "attention.qkv", "mlp.down", "mlp.up"]
WriteConfig = Callable[..., Path]


def model_of(seed: int = 0) -> VisionTransformer:
    model = VisionTransformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(seed))
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return model


def rounded(value: Tensor, kind: torch.dtype, *, dim: int | None, power_of_2: bool) -> Tensor:
    """Return the value after scaling its largest magnitude, of all or along a dimension, to the format's, and back."""
    largest = value.abs().amax() if dim is None else value.abs().amax(dim=dim, keepdim=True)
    scale = torch.finfo(kind).max / largest
    if power_of_2:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return (value * scale).to(kind).float() / scale


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_layer_rounds_and_multiplies_as_its_recipe_says(recipe: Float8Recipe) -> None:
    """Output, input's gradient and weight's gradient, each against a product of rounded fp32 matrices (torchao's recipes)."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(48, 32)
    layer = nn.Sequential(linear)
    inputs = torch.randn(85, 48, generator=generator, requires_grad=True)
    gradient = torch.randn(85, 32, generator=generator)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    use_float8([layer], recipe, layers=None, device=CPU)
    output = layer(inputs)
    output.backward(gradient)
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    by_row, power = recipe != "tensorwise", recipe != "tensorwise"
    of_gradients = e4m3 if by_row else e5m2

    def part(value: Tensor, kind: torch.dtype, dim: int) -> Tensor:
        return rounded(value, kind, dim=dim if by_row else None, power_of_2=power)

    x = inputs.detach()
    wanted = part(x, e4m3, 1) @ part(weight, e4m3, 1).T + bias
    # Rows of the weight are scaled once more for the input's gradient; the last recipe takes the whole tensor's scale there.
    columns = rounded(weight, e4m3, dim=None, power_of_2=True) if recipe == "rowwise_with_gw_hp" else part(weight, e4m3, 0)
    wanted_input = part(gradient, of_gradients, 1) @ columns
    wanted_weight = gradient.T @ x if recipe == RECIPES[2] else part(gradient, of_gradients, 0).T @ part(x, e4m3, 0)
    limit = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output.detach(), wanted, **limit)
    torch.testing.assert_close(inputs.grad, wanted_input, **limit)
    torch.testing.assert_close(linear.weight.grad, wanted_weight, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(linear.bias.grad, gradient.sum(0))
    exact = x @ weight.T + bias
    assert 0.01 < (output.detach() - exact).norm() / exact.norm() < 0.1  # it does round


def test_parameters_are_the_same_objects_with_the_same_names() -> None:
    model = model_of()
    before = dict(model.named_parameters())
    said = use_float8(model.repeated_blocks(), "tensorwise", layers=None, device=CPU)
    assert said == f"float8 products, scaled tensorwise, in 8 linear layers: {', '.join(ALL)}"
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is value for name, value in before.items())
    assert type(model.head) is nn.Linear


def test_named_layers_alone_are_replaced() -> None:
    model, plain = model_of(), model_of()
    said = use_float8(model.repeated_blocks(), "rowwise", layers=["mlp.up", "qkv"], device=CPU)
    assert said.endswith("in 4 linear layers: attention.qkv, mlp.up; not attention.out, mlp.down")
    kinds = {name: type(module) for name, module in model.blocks[1].named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, kind in kinds.items() if kind is not nn.Linear} == {"attention.qkv", "mlp.up"}
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    ours, theirs = model(images), plain(images)
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.1


def test_a_copy_of_a_model_computes_the_same() -> None:
    model = model_of()
    use_float8(model.repeated_blocks(), "tensorwise", layers=None, device=CPU)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_blocks_of_timms_models_have_their_own_names(timm: ModuleType) -> None:
    from pipeline.models.timm.section import Timm

    model = Timm(name="vit_tiny_patch16_224", image_size=32, num_classes=4, family="timm").resolve().build()
    assert sorted(layer_names(model.repeated_blocks())) == ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"]
    use_float8(model.repeated_blocks(), "tensorwise", layers=["fc1", "fc2"], device=CPU)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ["up", "gate"],
            "no linear layer of a block is called 'gate'; there are attention.qkv, attention.out, mlp.up, mlp.down",
        ),
        (["head"], "is called 'head'"),
        (["p"], "is called 'p'"),
    ],
)
def test_names_that_are_none_are_told(layers: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use_float8(model_of().repeated_blocks(), "tensorwise", layers=layers, device=CPU)


def test_sizes_that_float8_does_not_allow_are_left_out_or_refused() -> None:
    block = nn.ModuleDict({"small": nn.Linear(24, 32), "large": nn.Linear(32, 32)})
    with pytest.raises(ConfigError, match=r"small cannot be of float8: .* multiples of 16"):
        use_float8([block], "tensorwise", layers=["small"], device=CPU)
    assert use_float8([block], "tensorwise", layers=None, device=CPU).endswith("in 1 linear layers: large; not small")
    with pytest.raises(ConfigError, match="the sizes of 0 are no multiples of 16"):
        use_float8([nn.Sequential(nn.Linear(24, 24))], "tensorwise", layers=None, device=CPU)
    with pytest.raises(ConfigError, match="they have none; leave it out"):
        use_float8([], "tensorwise", layers=None, device=CPU)


def test_a_gpu_without_float8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    found = {"A100": (8, 0), "L40": (8, 9), "H100": (9, 0)}
    for name, recipe, is_refused in (
        ("A100", "tensorwise", True), ("L40", "tensorwise", False), ("L40", "rowwise", True), ("H100", "rowwise", False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=found[name]: capability)
        if is_refused:
            with pytest.raises(ConfigError, match=f"trainer.float8={recipe} needs a GPU of compute capability"):
                check_device(recipe, torch.device("cuda"))
        else:
            check_device(recipe, torch.device("cuda"))


def test_without_torchao_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs torchao, which is not installed: pip install '\.\[float8\]'"):
        use_float8(model_of().repeated_blocks(), "tensorwise", layers=None, device=CPU)


def test_torchao_is_imported_without_a_word_and_the_environment_is_left_alone() -> None:
    code = (
        "import os, torch; before = dict(os.environ); from pipeline.train.float8 import use_float8\n"
        "block = torch.nn.Sequential(torch.nn.Linear(16, 16))\n"
        "print(use_float8([block], 'rowwise', layers=None, device=torch.device('cpu')))\n"
        "assert dict(os.environ) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "float8 products, scaled rowwise, in 1 linear layers: 0\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.float8_layers=[mlp.up]"], "set trainer.float8 too"),
        (["trainer.float8=tensorwise", "trainer.zero_stage=3"], "set trainer.activation_checkpointing=1 too"),
        (["trainer.float8=tensorwise", "trainer.float8_layers=[]"], "float8_layers"),
        (["trainer.attention=efficient", "trainer.deterministic=true"], "take flash or math"),
        (["trainer.attention=cudnn", "trainer.precision=fp32"], "computes bf16 alone"),
        (["trainer.float8=e4m3"], "'tensorwise', 'rowwise' or 'rowwise_with_gw_hp'"),
    ],
)
def test_settings_that_do_not_go_together_are_told(overrides: list[str], message: str, write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(), overrides)
