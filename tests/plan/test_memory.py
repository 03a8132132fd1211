"""Predicted memory is compared with what DeepSpeed's engines hold on two real ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.optim.groups import parameter_groups
from pipeline.plan.memory import ParameterSizes, StateBytes, saved_bytes_per_pass, sizes_of_groups, state_bytes
from pipeline.train.section import REDUCE_BUCKET_SIZE
from pipeline.train.zero import deepspeed_config
from tests.helpers.trainings import run_ranks

RANKS = 2
MODEL = ViTConfig(
    image_size=32, patch_size=8, width=192, depth=8, mlp_dim=768, num_heads=4, num_classes=1000,
    representation_size=192, dropout=0.0,
)  # fmt: skip
Case = dict[str, Any]
FOUR_STAGES: list[Case] = [
    {"stage": stage, "precision": precision, "batch": 4, "accumulation_steps": 1, "bucket_elements": 300_000}
    for stage, precision in [
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (3, "fp32"),
    ]  # bf16 takes minutes where a CPU has no instructions for it
]
ALL: list[Case] = [
    {"stage": stage, "precision": precision, "batch": 4, "accumulation_steps": accumulation, "bucket_elements": bucket}
    for stage, precision in [
        (0, "bf16_autocast"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (1, "bf16_autocast"), (2, "bf16_autocast"),
        (0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"),
    ]
    for accumulation, bucket in [(1, 300_000), (2, 2_000_000)]
]  # fmt: skip


def sizes_of(config: ViTConfig) -> tuple[ParameterSizes, int]:
    """Return the sizes of every parameter, and of all kernels together."""
    with torch.device("meta"):
        groups = parameter_groups(VisionTransformer(config), weight_decay=0.1, decayed="kernels")
    sizes = sizes_of_groups(groups)
    return sizes, sum(sizes.groups[0])


def predict(case: Case) -> tuple[StateBytes, int]:
    """Return the engine's state, and everything at its peak."""
    sizes, kernels = sizes_of(MODEL)
    state = state_bytes(
        sizes,
        stage=case["stage"],
        precision=case["precision"],
        num_ranks=RANKS,
        optimizer_bytes=8,
        accumulation_steps=case["accumulation_steps"],
        bucket_elements=case["bucket_elements"],
        staging_buckets=1,
    )
    precision = case["precision"]
    image = MODEL.cost.saved_bytes(precision=precision) + MODEL.cost.working_bytes(precision=precision)
    return state, state.total + case["batch"] * image + saved_bytes_per_pass(kernels, precision=precision)


def measure(cases: list[Case], folder: Path) -> list[dict[str, int]]:
    (folder / "cases.json").write_text(json.dumps({"model": asdict(MODEL), "cases": cases}))
    run_ranks("tests.plan.measure_ranks", str(folder / "cases.json"), str(folder / "out.json"), num_ranks=RANKS)
    return json.loads((folder / "out.json").read_text())


def check(case: Case, found: dict[str, int], *, slack: float) -> None:
    """Check what is held between steps to 0.1 %. The peak is never above the prediction, nor far below."""
    state, peak = predict(case)
    for part in ("parameters", "masters", "moments"):
        assert found[part] == pytest.approx(getattr(state, part), rel=1e-3), (case, part)
    # With fp32 weights stages 1 and 2 hold more gradients during a backward pass than at its end: only the peak shows it.
    if case["stage"] in (0, 3) or case["precision"] == "bf16":
        assert found["gradients"] == pytest.approx(state.gradients, rel=1e-3), case
    assert peak / slack <= found["peak"] <= peak, (case, peak / found["peak"])


@pytest.mark.slow
def test_engines_hold_what_is_predicted(tmp_path: Path) -> None:
    for case, found in zip(FOUR_STAGES, measure(FOUR_STAGES, tmp_path), strict=True):
        check(case, found, slack=1.35)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_engines_of_every_precision_hold_what_is_predicted(tmp_path: Path) -> None:
    for case, found in zip(ALL, measure(ALL, tmp_path), strict=True):
        check(case, found, slack=1.35)


def test_a_run_uses_the_bucket_that_is_assumed() -> None:
    config = deepspeed_config(zero_stage=1, precision="bf16", micro_batch_size=1, clip_norm=None)
    assert config["zero_optimization"]["reduce_bucket_size"] == REDUCE_BUCKET_SIZE
