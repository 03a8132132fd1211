"""Blocks that are computed again, and blocks that are compiled, against the plain model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from pipeline.commands.benchmark import CHOICES_CONFIG
from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.distributed.precision import TrainingPrecision
from pipeline.errors import ConfigError
from pipeline.models.bit.section import BiT
from pipeline.models.counting import count_blocks
from pipeline.models.timm.section import Timm
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.plan.activations import activation_bytes
from pipeline.train.blocks import checkpoint_blocks, every_nth, prepare_blocks, why_not_compile
from tests.conftest import run_command
from tests.train.compiled_blocks import train_once

# Everything that draws masks or owns parameters inside a block.
CONFIG = ViTConfig(
    image_size=16, patch_size=8, width=24, depth=4, mlp_dim=32, num_heads=3, num_classes=5, representation_size=24, dropout=0.1,
    stochastic_depth=0.3, layer_scale=0.1, position="relative", registers=2, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_computing_again_changes_no_bit(every: int) -> None:
    plain, again = train_once(CONFIG), train_once(CONFIG, every=every)
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.parametrize(
    ("device", "changes", "reason"),
    [
        ("cpu", {}, "a CPU takes minutes"),
        ("cuda", {"has_blocks": False}, "lists no repeated blocks"),
        ("cuda", {"is_even": False}, "differ in size"),
    ],
)
def test_why_auto_compiles_nothing(device: str, changes: dict[str, bool], reason: str) -> None:
    said = why_not_compile(torch.device(device), **{"has_blocks": True, "is_even": True, **changes})
    assert reason in str(said)


def test_auto_needs_triton_and_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triton.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    cuda = torch.device("cuda")
    assert "there is no C compiler" in str(why_not_compile(cuda, has_blocks=True, is_even=True))
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert why_not_compile(cuda, has_blocks=True, is_even=True) is None
    with monkeypatch.context() as without:
        without.setattr("sysconfig.get_path", lambda _: str(tmp_path))  # pytorch 90178, vllm 19656: no headers
        assert "Python's headers are not there" in str(why_not_compile(cuda, has_blocks=True, is_even=True))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    assert "triton is not installed" in str(why_not_compile(cuda, has_blocks=True, is_even=True))


def test_on_a_cpu_auto_compiles_nothing_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = load_config(CHOICES_CONFIG, ["data.train=/data", "evaluation.validation=/data"]).trainer
    assert trainer.compile == "auto"
    model = VisionTransformer(CONFIG)
    before = [block.forward for block in model.blocks]
    assert prepare_blocks(model, trainer, device=torch.device("cpu"), is_even=True) == []
    assert [block.forward for block in model.blocks] == before


BIT = {
    variant: BiT(name="R26x0.5", blocks=(1, 2), variant=variant, image_size=32, num_classes=5).resolve()
    for variant in ("v1", "v2")
}


@pytest.mark.parametrize("variant", BIT)
def test_resnets_are_computed_again_with_the_same_bits(variant: str) -> None:
    config = BIT[variant]
    assert len(config.build().repeated_blocks()) == 3
    plain, again = train_once(config), train_once(config, every=1)
    assert all(torch.equal(again[name], value) for name, value in plain.items())


TIMM_BLOCKS = {
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 16,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "drop_path_rate": 0.3,
    },
    "pvt_v2_b0": {"depths": [1, 2, 1, 1]},
    "vit_tiny_patch16_224": {"depth": 5, "drop_path_rate": 0.3},
}


@pytest.mark.parametrize("name", TIMM_BLOCKS)
def test_backbones_of_timm_are_computed_again_with_the_same_bits(name: str, timm: ModuleType) -> None:
    """Blocks inside of stages are blocks too, with all their arguments."""
    config = Timm(name=name, image_size=64, options=TIMM_BLOCKS[name], num_classes=5).resolve()
    assert len(config.build().repeated_blocks()) == 5
    plain, again = train_once(config), train_once(config, every=2)
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
def test_counted_blocks_are_those_of_the_formulas(precision: TrainingPrecision) -> None:
    """Of a ViT, whose blocks are computed by formulas: counting, which other families rely on, finds the same."""
    model = replace(CONFIG, dropout=0.0, stochastic_depth=0.0, position="learned_1d", qk_norm=False, layer_scale=None)
    for number, (counted, computed) in enumerate(
        zip(count_blocks(model, precision), model.cost.blocks(precision=precision), strict=True)
    ):
        assert counted.macs == computed.macs, number
        assert counted.saved_bytes == pytest.approx(computed.saved_bytes, rel=0.01), number
        assert counted.input_bytes == pytest.approx(computed.input_bytes, rel=0.01), number


@pytest.mark.parametrize("variant", BIT)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
def test_what_a_resnets_blocks_save_is_a_part_of_all(variant: str, precision: TrainingPrecision) -> None:
    cost = BIT[variant].cost
    blocks = cost.blocks(precision=precision)
    assert 0.3 < sum(block.saved_bytes for block in blocks) / cost.saved_bytes(precision=precision) < 1
    assert sum(block.macs for block in blocks) < cost.macs
    sizes = [activation_bytes(cost, precision=precision, every=every) for every in (1, 2, None)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_every_nth_begins_with_the_first() -> None:
    blocks = list(range(7))
    assert [every_nth(blocks, every) for every in (None, 1, 2, 3, 9)] == [[], blocks, [0, 2, 4, 6], [0, 3, 6], [0]]


def test_without_gradients_nothing_is_kept_or_computed_again() -> None:
    model = VisionTransformer(CONFIG).eval()
    checkpoint_blocks(model.repeated_blocks())
    plain = VisionTransformer(CONFIG).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto"], ids=["BatchNorm", "a scale of the block's own"])
def test_blocks_that_cannot_be_computed_again_are_told(
    name: str, tmp_path: Path, tiny_config: dict[str, Any], timm: ModuleType
) -> None:
    path = tmp_path / "timm.yaml"
    model = {"family": "timm", "name": name, "image_size": 32, "num_classes": 4}
    path.write_text(yaml.safe_dump({**tiny_config, "model": model}))
    for setting in ("trainer.activation_checkpointing=1", "trainer.compile=blocks"):
        with pytest.raises(ConfigError, match=f"{setting} is about a model's repeated blocks\\. timm lists none"):
            resolve_run(load_config(path, [setting]), world_size=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_compiled_is_equal_to_rounding() -> None:
    """By blocks and as a whole, with and without computing again: fp32 sums in another order, some units of 2^-24 of each."""
    done = run_command(module="tests.train.compiled_blocks", timeout_s=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # One piece for all blocks, and one for the first, which never skips: not one for each rate, of which torch compiles eight.
    assert lines[:2] == [{"rule": "uniform", "graphs": 1}, {"rule": "linear", "graphs": 2}], done.stdout
    rows = lines[2:]
    assert [(row["compiled"], row["every"]) for row in rows] == [("blocks", None), ("blocks", 1), ("model", None), ("model", 1)]
    assert all(row["worst"] < 1e-4 for row in rows), rows
