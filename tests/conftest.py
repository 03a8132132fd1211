"""Fixtures give small real shards, the reference libraries, and real ranks."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from PIL import Image

# Every call of a test checks shapes and types at the boundaries of the math.
install_import_hook(["pipeline.models", "pipeline.functional"], "beartype.beartype")

from data_tools.index import index_folder  # noqa: E402
from data_tools.parallel import LocalWorkers  # noqa: E402
from pipeline.benchmark.torchvision_operators import declare_torchvision_operators  # noqa: E402
from pipeline.data.shards.index import ShardIndex, load_index  # noqa: E402
from pipeline.run.checkpoint import RunFolder  # noqa: E402
from tests.helpers.reference_libraries import REFERENCE, find_library  # noqa: E402

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

REPOSITORY = Path(__file__).parent.parent
sys.path.append(str(REFERENCE / "scientific"))  # scikit-learn, transformers, imagehash; after our own environment's versions

WriteShards = Callable[..., ShardIndex]
EXIT_TIMEOUT_S = 60


def pytest_unconfigure() -> None:
    """Fail the tests for a process or thread left behind, and say where it waits, instead of waiting for it for ever."""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker that has finished waits for the others
        faulthandler.dump_traceback_later(EXIT_TIMEOUT_S, exit=True, file=sys.__stderr__)


def make_image(number: int, *, num_classes: int, size: int) -> np.ndarray:
    """Make a picture whose class can be learnt: noise under a bright bar at a height that depends on the class."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 100, (size, size, 3), dtype=np.uint8)
    band = size // num_classes
    pixels[(number % num_classes) * band : (number % num_classes + 1) * band] += 120
    return pixels


def encode(pixels: np.ndarray, *, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def write_shards() -> WriteShards:
    """Write shards of the given sizes into a folder and index them."""

    def write(
        folder: Path,
        *,
        shard_sizes: list[int],
        block_samples: int = 4,
        num_classes: int = 4,
        size: int = 24,
        format: str = "JPEG",
    ) -> ShardIndex:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        for shard, count in enumerate(shard_sizes):
            members: list[tuple[str, bytes]] = []
            for _ in range(count):
                image = encode(make_image(number, num_classes=num_classes, size=size), format=format)
                members += [
                    (f"{number:05d}.{format.lower()}", image),
                    (f"{number:05d}.cls", str(number % num_classes).encode()),
                ]
                number += 1
            write_tar(folder / f"shard-{shard:03d}.tar", members)
        index_folder(str(folder), block_samples=block_samples, workers=LocalWorkers(1))
        return load_index(str(folder))

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_shards: WriteShards) -> Path:
    """Write 83 small JPEGs in three uneven shards, four classes."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder, shard_sizes=[37, 25, 21])
    return folder


@pytest.fixture(scope="session")
def downstream(tmp_path_factory: pytest.TempPathFactory, write_shards: WriteShards) -> dict[str, str]:
    """Write a downstream set: 40 train and 22 test images."""
    folder = tmp_path_factory.mktemp("downstream")
    write_shards(folder / "train", shard_sizes=[23, 17])
    write_shards(folder / "test", shard_sizes=[22])
    return {"name": "bars", "train": str(folder / "train"), "test": str(folder / "test")}


@pytest.fixture(scope="session")
def tiny_config(corpus: Path, downstream: dict[str, str]) -> dict[str, Any]:
    """Give a configuration that trains in seconds. Where bf16 is about as fast as fp32, `auto` would choose by chance."""
    return {
        "name": "tiny",
        "seed": 3,
        "model": {"name": "Ti/8", "image_size": 16, "num_classes": 4, "width": 32, "depth": 2, "num_heads": 2, "dropout": 0.1},
        "data": {"train": str(corpus), "num_workers": 0, "min_area": 0.5, "flip": False},
        "objective": {"name": "softmax"},
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.05, "clip_norm": 1.0},
        "schedule": {"warmup": "2 steps"},
        "trainer": {
            "duration": "12 steps",
            "global_batch_size": 8,
            "zero_stage": 2,
            "devices": 2,
            "peak_tflops": 1.0,
            "precision": "fp32",
        },
        "checkpoint": {"every": "4 steps", "keep_last": 2},
        "evaluation": {
            "datasets": [downstream],
            "protocols": {"few_shot": {"shots": [1, 5], "seeds": [0, 1]}, "linear": {}},
            "num_workers": 0,
            "precision": "fp32",
        },
        "tracking": {"log_every": 1, "mode": "disabled"},
    }


@pytest.fixture
def write_config(tmp_path: Path, tiny_config: dict[str, Any]) -> Callable[..., Path]:
    """Write the tiny configuration, with sections changed, as a YAML file whose runs go to tmp_path/runs."""

    def write(name: str = "tiny", **sections: Any) -> Path:
        values = {**tiny_config, "name": name, "output_dir": str(tmp_path / "runs")}
        for section, changes in sections.items():
            values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child process: one thread a rank, no network."""
    # A W&B client started in this process makes its children share its service, which outlives a killed child.
    inherited = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    return {**inherited, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "", **extra}


def run_command(
    *arguments: str, module: str = "pipeline", timeout_s: float = 240, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
    )


@dataclass(frozen=True)
class Outcome:
    """Describes what a command did."""

    code: int
    text: str


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command of `python -m pipeline` in this process: the same code without the start of an interpreter."""
    from pipeline.__main__ import main

    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = main(list(arguments), process="shared")
        captured = capfd.readouterr()
        return Outcome(code, captured.out + captured.err)

    return run


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """Import torchvision, made importable next to a CPU build of torch: its transforms work, its operators do not."""
    find_reference("torchvision")
    declare_torchvision_operators()
    return importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """Import timm, which imports torchvision."""
    del torchvision
    find_reference("timm")
    return importlib.import_module("timm")


def find_reference(name: str) -> ModuleSpec:
    """Return where a reference library is; without it the test is skipped."""
    spec = find_library(name)
    if spec is None:
        pytest.skip(f"{name} is not installed; `make test` installs it into .reference")
    return spec


def timm_file(path: str) -> ModuleType:
    """Return a module of timm that needs no other one, without the seconds that importing timm takes."""
    folder = find_reference("timm").submodule_search_locations
    assert folder is not None
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(folder[0]) / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, object]) -> RunFolder:
    """Train the undisturbed run."""
    from tests.helpers.trainings import folder_of, train

    folder = tmp_path_factory.mktemp("reference")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny_config, "output_dir": str(folder / "runs")}))
    train(config, "tracking.mode=offline")
    return folder_of(config)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules of docs/examples importable."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "examples"))
