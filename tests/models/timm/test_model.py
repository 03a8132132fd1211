"""Backbones of timm: what goes in and out is timm's own, and what cannot be trained is refused in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.distributed.precision import TrainingPrecision
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import config_from_dict
from pipeline.models.counting import count_saved_bytes
from pipeline.models.timm.library import installed_version as timm_version
from pipeline.models.timm.model import TimmConfig, _refuse_buffers
from pipeline.models.timm.section import Timm
from pipeline.optim.groups import parameter_groups
from pipeline.run.weights import load_weights, save_weights
from tests.conftest import Outcome

SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
MODELS: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": SWIN,
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "convnext_atto": {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]},
    "vit_tiny_patch16_224": {"depth": 2},
}


@pytest.fixture(autouse=True)
def _needs_timm(timm: ModuleType) -> None: ...


def config_of(
    name: str = "convnext_atto", *, image_size: int | None = 64, head_bias: float = 0.0, **options: Any
) -> TimmConfig:
    section = Timm(name=name, image_size=image_size, options={**MODELS.get(name, {}), **options}, num_classes=5)
    return section.resolve(head_bias=head_bias)


@pytest.mark.parametrize("name", MODELS)
def test_the_representation_is_what_timms_classifier_reads(timm: ModuleType, name: str) -> None:
    config = config_of(name)
    model = config.build().eval()
    model.init_weights(torch.Generator().manual_seed(0))
    theirs = timm.create_model(
        name, num_classes=5, **({} if name[:2] in ("pv", "co") else {"img_size": 64}), **MODELS[name]
    ).eval()
    classifier = theirs.get_classifier()
    nn.init.normal_(model.head.weight)
    theirs.load_state_dict(model.backbone.state_dict(), strict=False)
    classifier.load_state_dict(model.head.state_dict())
    raw = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # the same operations: equal to the last bits, which depend on fused attention's order
        torch.testing.assert_close(model(raw), theirs(raw.float() / 127.5 - 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_patches_are_in_raster_order_whatever_the_layout_of_timms_features(name: str) -> None:
    model = config_of(name).build().eval()
    model.init_weights(torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = model.forward_outputs(images)
    backbone: Any = model.backbone
    (feature_map,) = backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    assert found.patches is not None
    assert torch.equal(found.patches, feature_map.flatten(2).transpose(1, 2))  # (B, D, h, w) whatever the model
    assert torch.equal(found.representation, model.forward_representation(images))
    assert found.pooled is None


def test_outputs_that_a_model_lacks_are_refused_before_anything_is_written(
    call: Callable[..., Outcome], corpus: Path, tmp_path: Path
) -> None:
    config = config_of()
    save_weights(tmp_path / "x.safetensors", config.build().state_dict(), model=config, step=0, images_seen=0)
    done = call("embed", str(tmp_path / "x.safetensors"), str(corpus), str(tmp_path / "out"), "--features", "pooled")
    assert done.code == 2
    assert "--features pooled: this model has none; it has features, patches" in done.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_follow_from_the_generator_alone(name: str) -> None:
    config = config_of(name, head_bias=-3.0)
    states = []
    for seed, others in ((7, 0), (7, 1), (8, 0)):
        torch.manual_seed(others)
        model = config.build()
        before = torch.get_rng_state()
        model.init_weights(torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())
    same, again, other = states
    assert all(torch.equal(same[key], again[key]) for key in same)
    assert any(not torch.equal(same[key], other[key]) for key in same)
    assert (same["head.weight"].abs().max(), same["head.bias"].unique().tolist()) == (0, [-3.0])
    assert any(tensor.std() > 0 for key, tensor in same.items() if tensor.ndim > 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_bytes_are_what_autograd_keeps(name: str, precision: TrainingPrecision) -> None:
    """Within 3 %: attention and normalisations on a CPU keep statistics of another type than those counted."""
    config = config_of(name)
    counted = count_saved_bytes(config.build, image_size=64, precision=precision)
    few, more = (measured_bytes(config, batch=batch, precision=precision) for batch in (2, 4))
    assert counted.per_image == pytest.approx((more - few) / 2, rel=0.03)
    assert 0 < counted.largest < counted.per_image


def measured_bytes(config: TimmConfig, *, batch: int, precision: TrainingPrecision) -> int:
    """Bytes of the storages that a pass on the CPU leaves, parameters left out."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = config.build().to(dtype)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(torch.zeros(batch, 3, 64, 64, dtype=dtype))
    assert outputs.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


# 10^9 multiply-accumulates at 224 pixels, as published: Swin-T 4.5 (arXiv 2103.14030, Table 1), PVTv2-B0 0.6 (arXiv
# 2106.13797, Table 2), ConvNeXt-T 4.5 (arXiv 2201.03545, Table 1).
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("pvt_v2_b0", 0.6),
        pytest.param("swin_tiny_patch4_window7_224", 4.5, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 4.5, marks=pytest.mark.slow),
    ],
)
def test_operations_are_the_published_ones(name: str, published: float) -> None:
    config = Timm(name=name, num_classes=1000).resolve()  # type: ignore[call-arg]
    assert config.image_size == 224
    assert config.cost.macs / 1e9 == pytest.approx(published, abs=0.06)


def test_kernels_of_convolutions_decay_and_normalisations_do_not() -> None:
    model = config_of("swin_tiny_patch4_window7_224").build()
    decayed, rest = parameter_groups(model, weight_decay=0.1, decayed="kernels")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert not [name for p in decayed["params"] if "norm" in (name := names[id(p)]) or "bias" in name]
    assert all(p.ndim == 1 or "relative_position_bias_table" in names[id(p)] for p in rest["params"])


def test_a_configuration_survives_a_file() -> None:
    config = config_of("swin_tiny_patch4_window7_224", drop_path_rate=0.1)
    assert config_from_dict("timm", json.loads(json.dumps(config.to_dict()))) == config
    assert config.dropout == 0.1
    assert config.least_tensors <= len(config.build().state_dict())


@pytest.mark.parametrize(
    "damage",
    [{"name": 3}, {"options": []}, {"options": {"pretrained": True}}, {"options": {"depth": 10**9}}, {"options": {"a": {}}},
     {"image_size": 0}, {"head_bias": float("inf")}, {"more": 1}],
)  # fmt: skip
def test_a_damaged_description_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config_from_dict("timm", {**config_of().to_dict(), **damage})


def test_weights_of_another_version_of_timm_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    written = replace(config_of(), timm_version="0.9.1").to_dict()
    with pytest.raises(CheckpointError, match=r"of timm 0\.9\.1, and timm .* pip install timm==0\.9\.1"):
        config_from_dict("timm", written)
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    with pytest.raises(CheckpointError, match=r"pip install '\.\[timm\]'"):
        config_from_dict("timm", written)


def test_state_that_ranks_could_not_share_is_refused() -> None:
    """Running statistics of BatchNorm are averaged over the ranks; of other state nothing is known."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, kernel_size=1))
    _refuse_buffers("good", model)
    model.register_buffer("queue", torch.zeros(5))
    with pytest.raises(ConfigError, match=r"model\.name=moco keeps 1 tensors .*\(queue, \.\.\.\)"):
        _refuse_buffers("moco", model)


def test_weights_with_running_statistics_are_whole(tmp_path: Path) -> None:
    """They come back as they were, the count of batches as a whole number."""
    config = config_of(name="test_resnet", image_size=32)
    model = config.build()
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()(torch.rand(4, 3, 32, 32))
    path = tmp_path / "weights.safetensors"
    save_weights(path, model.state_dict(), model=config, step=1, images_seen=4)
    loaded = load_weights(path).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype, name
    assert any(
        bool((tensor == 1).all()) for name, tensor in loaded.state_dict().items() if name.endswith("num_batches_tracked")
    )


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model\.family=timm needs the library timm .* pip install '\.\[timm\]'"):
        config_of()


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_rotary_positions_are_rounded_once_where_the_model_is_bf16(name: str) -> None:
    """DeepSpeed casts the whole module, its buffers too (DeepSpeed #5812): bf16 would turn far patches by more."""
    model: Any = TimmConfig(
        name=name, image_size=224, options=(("depth", 1),), timm_version=timm_version(), num_classes=2
    ).build()
    exact = model.backbone.rope.get_embed((40, 40)).clone()
    rounded = model.bfloat16().backbone.rope.get_embed((40, 40)).float()
    assert float((rounded - exact).abs().max()) <= 2**-8  # of sines and cosines, which are at most 1


def test_a_timm_that_rounds_rotary_positions_is_refused(monkeypatch: pytest.MonkeyPatch, timm: ModuleType) -> None:
    monkeypatch.setattr(timm, "__version__", "1.0.30")
    with pytest.raises(ConfigError, match=r"needs timm 1\.0\.31 or newer, and 1\.0\.30 is installed"):
        config_of()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "swin_tinny_patch4_window7_224"}, "did you mean swin_tiny_patch4_window7_224"),
        ({"name": "convnext_atto.d2_in1k"}, "did you mean convnext_atto"),
        ({"name": "hf-hub:timm/resnet50"}, "is not an architecture of timm"),
        ({"options": {"checkpoint_path": "x"}}, r"model\.options\.checkpoint_path is not a setting"),
        ({"options": {"deepness": 3}}, "cannot make convnext_atto with deepness=3"),
        ({"options": {"dims": {"a": 1}}}, "use numbers, texts, and lists"),
        ({"name": "vit_tiny_patch16_224", "image_size": 8}, "vit_tiny_patch16_224"),
        ({"name": "mvitv2_tiny", "image_size": [224, 160]}, r"img_size=\(224, 160\): AssertionError: assert .*size"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Timm(**{"name": "convnext_atto", "num_classes": 5, **settings}).resolve()
