"""What the device may change is checked on one: `pytest -m gpu`. GPU_TESTS_ON=cpu tries the same tests on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, environment

ON_CPU = os.environ.get("GPU_TESTS_ON") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or ON_CPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU here; GPU_TESTS_ON=cpu tries these tests on the CPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if ON_CPU else "cuda", None if ON_CPU else 0)


Run = Callable[..., str]


@pytest.fixture
def on_device() -> Run:
    """Run `python -m MODULE ...` on the GPU. Return what it printed."""
    return lambda *arguments, module="pipeline", **extra: _run(arguments, module, environment(**_visible(), **extra))


@pytest.fixture
def on_cpu() -> Run:
    """Run `python -m MODULE ...` on the CPU. Return what it printed."""
    return lambda *arguments, module="pipeline", **extra: _run(arguments, module, environment(**extra))


def _visible() -> dict[str, str]:
    return {} if ON_CPU else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def _run(arguments: tuple[str, ...], module: str, variables: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def gpu_config(tmp_path: Path, tiny_config: dict[str, Any]) -> Callable[..., Path]:
    """Write the tiny configuration for one rank, without dropout, wide enough for a GPU's kernels; sections may differ."""
    import yaml

    def write(name: str, **sections: dict[str, Any]) -> Path:
        values = {
            **tiny_config,
            "name": name,
            "output_dir": str(tmp_path / "runs"),
            "model": {**tiny_config["model"], "dropout": 0.0, "width": 128},
            "trainer": {**tiny_config["trainer"], "devices": 1, "hardware": "found"},
        }
        for key, value in values.items():
            values[key] = {**value, **sections.pop(key, {})} if isinstance(value, dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**values, **sections}))
        return path

    return write
