"""A run takes bf16 where it is fast, and a resumed run its own precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.build.resume import read_last_launch, recorded_precision
from pipeline.distributed.precision import choose_evaluation_precision, choose_training_precision, measure_bf16_speedup
from pipeline.errors import CheckpointError
from tests.conftest import environment, run_command
from tests.helpers.trainings import WriteConfig, folder_of, train


@pytest.mark.parametrize(
    ("wanted", "zero_stage", "recorded", "bf16_speedup", "expected"),
    [
        ("auto", 2, None, 8.0, "bf16"),
        ("auto", 0, None, 8.0, "bf16_autocast"),  # without ZeRO nothing keeps fp32 masters
        ("auto", 2, None, 1.0, "bf16"),
        ("auto", 2, None, 0.01, "fp32"),
        ("auto", 2, "fp32", 8.0, "fp32"),  # began on a slow processor, goes on on a fast one
        ("auto", 2, "bf16", 0.01, "bf16"),
        ("auto", 2, "bf16_autocast", 8.0, "bf16_autocast"),
        ("bf16", 2, None, 0.01, "bf16"),
        ("fp32", 2, None, 8.0, "fp32"),
    ],
)
def test_training_takes(wanted: Any, zero_stage: int, recorded: Any, bf16_speedup: float, expected: str) -> None:
    choice = choose_training_precision(wanted, zero_stage=zero_stage, recorded=recorded, bf16_speedup=bf16_speedup)
    assert choice.precision == expected
    if expected != "fp32" and bf16_speedup < 1:
        assert choice.message is not None
        assert "WARNING" in choice.message
        assert "100 times as long" in choice.message
    if wanted == "auto":
        assert choice.message is not None
        assert choice.message.startswith(f"precision {expected}")


@pytest.mark.parametrize(
    ("wanted", "recorded", "bf16_speedup", "expected", "warns"),
    [
        ("auto", None, 8.0, "bf16", False),
        ("auto", None, 0.01, "fp32", False),
        ("auto", "fp32", 8.0, "fp32", False),
        ("auto", "bf16", 0.01, "bf16", True),
        ("bf16", "fp32", 0.01, "bf16", True),
        ("fp32", "bf16", 8.0, "fp32", False),
    ],
)
def test_an_evaluator_takes(wanted: Any, recorded: Any, bf16_speedup: float, expected: str, warns: bool) -> None:
    precision, message = choose_evaluation_precision(wanted, recorded=recorded, bf16_speedup=bf16_speedup)
    assert precision == expected
    assert ("WARNING" in message) == warns


def test_the_measured_speedup_agrees_with_the_processor() -> None:
    """A processor without bf16 instructions is far from a tie, and so is one with them."""
    speedup = measure_bf16_speedup(torch.device("cpu"))
    flags = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        assert speedup > 1
    elif "avx512f" not in flags and "x86" in Path("/proc/version").read_text() + flags:
        assert speedup < 0.5


def test_a_library_that_may_not_use_the_instructions_is_slow() -> None:
    """The time of a product here counts, not what the processor could do."""
    code = "import torch; from pipeline.distributed.precision import measure_bf16_speedup as m; print(m(torch.device('cpu')))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 0.5


@pytest.mark.slow
def test_a_resumed_run_keeps_its_own(write_config: WriteConfig) -> None:
    """It is chosen once, printed, recorded as chosen, and the same again however fast the next machine is."""
    config = write_config("auto", trainer={"precision": "auto", "duration": "4 steps", "devices": 1})
    output = train(config, "trainer.max_steps=2")
    folder = folder_of(config)
    chosen = recorded_precision(read_last_launch(folder))
    speedup = measure_bf16_speedup(torch.device("cpu"))
    if not 0.7 < speedup < 1.4:  # else chance decides
        assert chosen == ("bf16" if speedup > 1 else "fp32")
    assert f"precision {chosen} (trainer.precision=auto)" in output
    assert f"precision {chosen}, which this run began with" in train(config)
    other = run_command(
        "train", str(config), f"trainer.precision={'fp32' if chosen == 'bf16' else 'bf16'}", "trainer.duration=6 steps"
    )
    assert other.returncode == 2
    assert f"trainer.precision (was {chosen}" in other.stdout


def test_a_configuration_that_cannot_be_read_says_no_precision(tmp_path: Path) -> None:
    from pipeline.run.checkpoint import RunFolder

    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_last_launch(RunFolder(tmp_path))
