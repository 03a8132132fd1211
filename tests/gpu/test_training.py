"""Trainings on the device: the plain loop's losses at every stage, the same bits after a resume, memory as planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.run.records import read_metrics
from pipeline.train.float8 import RECIPES
from tests.gpu.conftest import ON_CPU, Run
from tests.helpers.trainings import folder_of
from tests.laws.test_parity import CLIP, train_plainly

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
WriteConfig = Callable[..., Path]
FP32 = [{"zero_stage": stage, "precision": "fp32"} for stage in (0, 1, 2, 3)]
BF16 = [{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)]
BF16 += [{"zero_stage": stage, "precision": "bf16_autocast"} for stage in (0, 2)]


def name_of(trainer: dict[str, Any]) -> str:
    return f"zero{trainer['zero_stage']}_{trainer['precision']}"


def losses_of(config: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder_of(config).metrics)]


@pytest.mark.parametrize("trainer", FP32 + BF16, ids=name_of)
def test_every_stage_is_the_plain_loop(trainer: dict[str, Any], gpu_config: WriteConfig, on_device: Run) -> None:
    """The plain loop runs on the CPU in fp32: fp32 on the device agrees to rounding, bf16 to two per cent."""
    config = gpu_config(name_of(trainer), trainer={**trainer, "duration": "8 steps"}, optimizer={"clip_norm": CLIP})
    # Without this, fp32 products of a GPU may be of TensorFloat-32.
    on_device("train", str(config), NVIDIA_TF32_OVERRIDE="0")
    losses, norms, _ = train_plainly(config)
    is_fp32 = trainer["precision"] == "fp32"
    assert losses_of(config) == pytest.approx(losses, rel=1e-4 if is_fp32 else 0.02)
    ours = [row["train/gradient_norm"] for row in read_metrics(folder_of(config).metrics)]
    assert ours == pytest.approx(norms, rel=1e-3 if is_fp32 else 0.1)


@pytest.mark.parametrize("trainer", [FP32[0], BF16[0], BF16[2]], ids=name_of)
def test_a_resumed_training_has_the_same_bits(trainer: dict[str, Any], gpu_config: WriteConfig, on_device: Run) -> None:
    settings = {**trainer, "deterministic": True}
    whole, parts = (gpu_config(name, trainer=settings) for name in ("whole", "parts"))
    on_device("train", str(whole))
    on_device("train", str(parts), "trainer.max_steps=5")
    on_device("train", str(parts))
    ours, theirs = (load_file(folder_of(config).weights_of(12)) for config in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of(parts)[-7:] == losses_of(whole)[-7:]


def test_another_stage_takes_a_checkpoint_over(gpu_config: WriteConfig, on_device: Run) -> None:
    """A checkpoint of ZeRO-3 goes on at stage 1, as one of several ranks would: to rounding."""
    whole, parts = (gpu_config(name, trainer={"precision": "fp32", "zero_stage": 3}) for name in ("whole", "parts"))
    on_device("train", str(whole), NVIDIA_TF32_OVERRIDE="0")
    on_device("train", str(parts), "trainer.max_steps=5", NVIDIA_TF32_OVERRIDE="0")
    on_device("train", str(parts), "trainer.zero_stage=1", NVIDIA_TF32_OVERRIDE="0")
    assert losses_of(parts)[-7:] == pytest.approx(losses_of(whole)[-7:], rel=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_float8_has_the_loss_of_bf16(recipe: str, gpu_config: WriteConfig, on_device: Run) -> None:
    """Blocks are compiled, and 16 does not divide the rows of a micro-batch."""
    settings = {"precision": "bf16", "duration": "8 steps"}  # after ten the two have gone their own ways
    plain, ours = (gpu_config(name, trainer=settings) for name in ("plain", "float8"))
    on_device("train", str(plain))
    on_device("train", str(ours), f"trainer.float8={recipe}", *([] if ON_CPU else ["trainer.compile=blocks"]))
    assert losses_of(ours) != losses_of(plain)
    assert losses_of(ours) == pytest.approx(losses_of(plain), rel=0.03)


def test_a_resumed_float8_training_has_the_same_bits(gpu_config: WriteConfig, on_device: Run) -> None:
    settings = {"precision": "bf16", "deterministic": True, "float8": "tensorwise"}
    whole, parts = (gpu_config(name, trainer=settings) for name in ("whole", "parts"))
    on_device("train", str(whole))
    on_device("train", str(parts), "trainer.max_steps=5")
    on_device("train", str(parts))
    assert losses_of(parts)[-7:] == losses_of(whole)[-7:]


@pytest.mark.parametrize("choice", [{"compile": "blocks"}, {"compile": True}], ids=str)
def test_compiled_is_equal_to_rounding(choice: dict[str, Any], gpu_config: WriteConfig, on_device: Run) -> None:
    plain, compiled = (gpu_config(name, trainer={"precision": "bf16", "duration": "8 steps"}) for name in ("plain", "compiled"))
    on_device("train", str(plain))
    on_device("train", str(compiled), *(f"trainer.{key}={str(value).lower()}" for key, value in choice.items()))
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=0.02)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_that_are_reduced_in_the_backward_pass_are_the_same_bits(
    stage: int, gpu_config: WriteConfig, on_device: Run
) -> None:
    """Buckets are reduced on a stream of their own, and compiled blocks write to them from several (DeepSpeed #8061, #7965)."""
    settings = {"precision": "fp32", "deterministic": True, "zero_stage": stage, "reduce_bucket_size": 10_000}
    after, during = (
        gpu_config(name, trainer={**settings, "overlap_comm": overlap})
        for name, overlap in (("after", False), ("during", True))
    )
    for config in (after, during):
        on_device("train", str(config), *([] if ON_CPU else ["trainer.compile=blocks"]))
    ours, theirs = (load_file(folder_of(config).weights_of(12)) for config in (during, after))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_blocks_that_are_computed_again_change_no_bit(gpu_config: WriteConfig, on_device: Run) -> None:
    settings = {"precision": "bf16", "deterministic": True, "zero_stage": 3}
    plain, again = (gpu_config(name, trainer=settings, model={"dropout": 0.1}) for name in ("plain", "again"))
    on_device("train", str(plain))
    on_device("train", str(again), "trainer.activation_checkpointing=1")
    ours, theirs = (load_file(folder_of(config).weights_of(12)) for config in (again, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(ON_CPU, reason="memory is planned for GPUs")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_memory_is_as_planned(stage: int, tmp_path: Path) -> None:
    """The peak of a B/16 is between 90 and 110 per cent of what `plan` says, with a batch that fills some GiB."""
    from pipeline.benchmark.train.compare import Plan, measure_group
    from pipeline.benchmark.train.entries import Entry, Group
    from pipeline.benchmark.train.work import standard_config, with_settings
    from pipeline.plan.stages import sizes_of_model, stage_memory

    config = standard_config("B/16", image_size=224, num_classes=1000)
    trainer = {"zero_stage": stage, "precision": "bf16"}
    group = Group("memory", (Entry("ours", "lightning", trainer),))
    plan = Plan(batch_size=128, steps=3, warmup=2, rounds=1)
    (result,) = measure_group(group, config, plan, flops_per_image=1.0).results
    assert result.problem is None
    own = with_settings(config, folder=str(tmp_path), data="", batch_size=128, num_workers=0, **trainer)
    model = sizes_of_model(own.model.resolve(), own.objective)
    planned = stage_memory(own.trainer.zero_stage, own, model=model, num_gpus=1, accumulation=1, memory_bytes=2.0**50).total
    assert result.peak_bytes == pytest.approx(planned, rel=0.1)
