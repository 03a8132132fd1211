"""Predicted memory against what DeepSpeed's engines hold on two real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch

from pipeline.capacity.activations import saved_bytes_per_image, saved_bytes_per_pass, working_bytes_per_image
from pipeline.capacity.memory import ParameterSizes, StateBytes, sizes_of_groups, state_bytes
from pipeline.capacity.storage import checkpoint_bytes
from pipeline.models.vit import VisionTransformer, ViTConfig
from pipeline.optim import parameter_groups
from tests.conftest import REPOSITORY, environment

RANKS = 2
MODEL = ViTConfig(
    image_size=32, patch_size=8, width=192, depth=8, mlp_dim=768, num_heads=4, num_classes=1000,
    representation_size=192, dropout=0.0,
)  # fmt: skip
CASES = [
    {"stage": stage, "precision": precision, "batch": 4, "accumulation_steps": accumulation, "bucket_elements": bucket}
    for stage, precision in [
        (0, "bf16_autocast"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (1, "bf16_autocast"), (2, "bf16_autocast"),
        (0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"),
    ]
    for accumulation, bucket in [(1, 300_000), (2, 2_000_000)]
]  # fmt: skip


def sizes_of(config: ViTConfig) -> tuple[ParameterSizes, int]:
    """Of every parameter, and of all kernels together."""
    with torch.device("meta"):
        groups = parameter_groups(VisionTransformer(config), weight_decay=0.1, decayed="kernels")
    sizes = sizes_of_groups(groups)
    return sizes, sum(sizes.groups[0])


def predict(case: dict[str, Any]) -> tuple[StateBytes, int]:
    """The engine's state, and everything at its peak."""
    sizes, kernels = sizes_of(MODEL)
    state = state_bytes(
        sizes, stage=case["stage"], precision=case["precision"], num_ranks=RANKS,
        accumulation_steps=case["accumulation_steps"], bucket_elements=case["bucket_elements"], staging_buckets=1,
    )  # fmt: skip
    precision = case["precision"]
    image = saved_bytes_per_image(MODEL, precision=precision) + working_bytes_per_image(MODEL, precision=precision)
    return state, state.total + case["batch"] * image + saved_bytes_per_pass(kernels, precision=precision)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "cases.json").write_text(json.dumps({"model": asdict(MODEL), "cases": CASES}))
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "-m",
         "tests.capacity.measure_ranks", str(folder / "cases.json"), str(folder / "out.json"), str(folder / "saved")],
        cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return json.loads((folder / "out.json").read_text())


def test_report(measured: list[dict[str, int]]) -> None:
    n = sizes_of(MODEL)[0].total
    for case, found in zip(CASES, measured, strict=True):
        state, peak = predict(case)
        p = asdict(state) | {
            "peak": peak,
            "checkpoint": checkpoint_bytes(sizes_of(MODEL)[0], stage=case["stage"], precision=case["precision"]),
        }
        print(
            case["stage"],
            case["precision"],
            case["accumulation_steps"],
            {k: f"{p[k] / n:.3f}/{found[k] / n:.3f} {p[k] / found[k] if found[k] else 0:.3f}" for k in found},
        )
