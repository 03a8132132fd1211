"""The evaluator's accuracies on the device are those of the CPU, within a stated bound."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.records import read_json_lines
from tests.gpu.conftest import Run
from tests.helpers.trainings import folder_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
MOST = 1 / 22  # one image of the test set


def test_accuracies_are_the_cpus(gpu_config: Callable[..., Path], on_device: Run, on_cpu: Run) -> None:
    """In fp32 no feature differs by more than rounding, so that at most one of 22 images changes its class."""
    config = gpu_config("evaluated", trainer={"precision": "fp32"})
    on_device("train", str(config))
    here, there = folder_of(config).root, folder_of(config).root.with_name("evaluated-on-cpu")
    shutil.copytree(here, there)
    settings = ("evaluation.precision=fp32", "evaluation.cache_gib=0")
    on_device("evaluate", str(here), *settings, NVIDIA_TF32_OVERRIDE="0")
    on_cpu("evaluate", str(there), *settings)
    ours, theirs = (accuracies(folder / "evaluations.jsonl") for folder in (here, there))
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 12
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=MOST + 1e-9), key


def accuracies(path: Path) -> dict[str, float]:
    """Return the accuracies of a run by what they are of."""
    keys = ("step", "dataset", "protocol", "shots", "seed")
    rows = [row for row in read_json_lines(path) if "accuracy" in row]
    return {json.dumps([row.get(key) for key in keys]): row["accuracy"] for row in rows}
