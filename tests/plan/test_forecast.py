"""A forecast is consistent: a stage that it says fits does fit, and its numbers follow from one another."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.read import load_config
from pipeline.errors import ConfigError
from pipeline.plan.cluster import Cluster
from pipeline.plan.forecast import Forecast, make_forecast
from tests.conftest import REPOSITORY

IN21K = 14_197_122


def make_cluster(**changes: Any) -> Cluster:
    values: dict[str, Any] = {
        "gpu": "h100", "num_nodes": 4, "gpus_per_node": 8, "gpu_memory_gib": None, "headroom": 0.1, "mfu": 0.4, "price": None,
        "network_gb_per_s": 50.0, "node_mtbf_hours": 5000.0, "save_s": 20.0, "restart_s": 300.0, "images_per_s_per_core": 250.0,
    }  # fmt: skip
    return Cluster(**{**values, **changes})


def forecast(
    *overrides: str, recipe: str = "l16_in21k", num_samples: int | None = IN21K, image_bytes: float | None = 1e5, **cluster: Any
) -> Forecast:
    config = load_config(REPOSITORY / "configs" / f"{recipe}.yaml", list(overrides))
    return make_forecast(config, cluster=make_cluster(**cluster), num_samples=num_samples, image_bytes=image_bytes)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_largest_micro_batch_fits_and_one_more_does_not(stage: int) -> None:
    """A batch of as many images makes the micro-batch the GPU's whole share."""
    settings = (f"trainer.zero_stage={stage}", f"trainer.precision={'bf16' if stage else 'bf16_autocast'}")
    largest = next(memory for memory in forecast(*settings).memory if memory.chosen).largest_micro_batch
    assert largest > 10
    for size in (largest, largest + 1):
        plan = forecast(*settings, f"trainer.global_batch_size={32 * size}", "trainer.micro_batch_size=null")
        chosen = next(memory for memory in plan.memory if memory.chosen)
        assert (plan.micro_batch_size, chosen.stage) == (size, stage)
        assert chosen.fits == (size == largest)


@pytest.mark.parametrize(("nodes", "gib"), [(1, 12.0), (3, 6.0), (3, 8.0), (5, 24.0)])
def test_the_micro_batch_to_set_fits_and_needs_the_fewest_parts(gib: float, nodes: int) -> None:
    options: dict[str, Any] = {"gpu_memory_gib": gib, "num_nodes": nodes}
    chosen = next(memory for memory in forecast("trainer.zero_stage=1", **options).memory if memory.chosen)
    usable = chosen.usable_micro_batch
    if usable == 0:
        assert chosen.largest_micro_batch <= 1
        return
    plan = forecast("trainer.zero_stage=1", f"trainer.micro_batch_size={usable}", **options)
    assert next(memory for memory in plan.memory if memory.chosen).fits
    share = -(-plan.global_batch_size // plan.num_gpus)
    assert plan.accumulation_steps == -(-share // chosen.largest_micro_batch)


@pytest.mark.parametrize("gib", [4.0, 6.0, 8.0, 24.0])
def test_pairs_that_are_mixed_stay_whole_in_the_micro_batch_to_set(gib: float) -> None:
    """30 images a GPU are 15 pairs: three micro-batches of 5 pairs, not two of 15 images."""
    settings = ("trainer.zero_stage=1", "objective.mixing.mixup_alpha=0.5", "trainer.global_batch_size=960")
    chosen = next(memory for memory in forecast(*settings, gpu_memory_gib=gib).memory if memory.chosen)
    usable = chosen.usable_micro_batch
    assert usable % 2 == 0
    assert usable <= chosen.largest_micro_batch
    assert (usable > 0) == (chosen.largest_micro_batch > 1)
    if usable:
        plan = forecast(*settings, f"trainer.micro_batch_size={usable}", gpu_memory_gib=gib)
        assert next(memory for memory in plan.memory if memory.chosen).fits
        assert plan.accumulation_steps == -(-15 // (chosen.largest_micro_batch // 2))


def test_an_objectives_own_parameters_are_counted() -> None:
    """A mask token of 1024 and a dense head from 1024 to 512 colours."""
    plain, masked = forecast(), forecast("objective.name=masked_patches")
    assert masked.num_parameters - plain.num_parameters == 1024 + 1024 * 512 + 512


def test_a_run_of_saves_by_hand() -> None:
    """20 steps are saved every 6: at 6, 12, 18 and at the end. The last two and every twelfth step stay, and all weights."""
    plan = forecast(
        "trainer.duration=20 steps", "checkpoint.every=6 steps", "checkpoint.keep_last=2", "checkpoint.keep_every=12 steps",
        "schedule.warmup=1 steps"
    )  # fmt: skip
    checkpoints, numel = plan.checkpoints, plan.num_parameters
    assert (checkpoints.interval_steps, checkpoints.weights_bytes) == (6, 4 * numel)
    assert checkpoints.checkpoint_bytes == 12 * numel  # two moments and the weights
    assert checkpoints.kept_bytes == 3 * 8 * numel + 5 * 4 * numel  # with the weights of step 0
    assert checkpoints.interval_s == pytest.approx(6 * plan.compute.step_s)


def test_failures_grow_with_the_nodes_and_with_the_time() -> None:
    one, many = forecast(num_nodes=1).checkpoints, forecast(num_nodes=64).checkpoints
    assert one.interruptions.mtbf_s == 5000 * 3600
    assert many.interruptions.mtbf_s == pytest.approx(one.interruptions.mtbf_s / 64)
    assert many.lost_at_daly <= many.lost
    assert many.lost_at_daly > one.lost_at_daly
    run = forecast(num_nodes=64)
    expected = run.compute.seconds / (1 - run.checkpoints.lost) / run.checkpoints.interruptions.mtbf_s
    assert run.checkpoints.expected_failures == pytest.approx(expected)


def test_a_setting_of_the_configuration_beats_the_data_sheet() -> None:
    by_sheet, by_hand = forecast(), forecast("trainer.peak_tflops=98.9")
    assert by_hand.compute.computing_s == pytest.approx(10 * by_sheet.compute.computing_s)
    assert forecast(gpu_memory_gib=40.0).memory_bytes == pytest.approx(0.9 * 40 * 2**30)
    assert by_sheet.memory_bytes == pytest.approx(0.9 * 80 * 2**30)


def test_max_steps_cut_the_run_short() -> None:
    assert forecast("trainer.max_steps=100").compute.steps == 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_nodes": 0}, "--nodes 0: must be more than 0"),
        ({"save_s": -1.0}, "--save-seconds -1: must be more than 0"),
        ({"mfu": 1.01}, "--mfu 1.01"),
        ({"headroom": 1.0}, "--headroom 1"),
        ({"price": -1.0}, "--price cannot be less than 0"),
        ({"num_samples": 0}, "--samples and --image-bytes must be more than 0"),
        ({"image_bytes": 0.0}, "--samples and --image-bytes must be more than 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        forecast(**changes)
