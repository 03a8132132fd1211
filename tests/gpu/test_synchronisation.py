"""Torch's own debug mode names whatever waits for the device in a step: DeepSpeed's checks of a step, and nothing of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, environment
from tests.gpu.conftest import ON_CPU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ON_CPU, reason="a CPU has nothing to wait for")]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", [0, 1])
def test_only_the_check_of_a_step_waits(stage: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.waiting_steps", str(stage)],
        cwd=REPOSITORY,
        env=environment(CUDA_VISIBLE_DEVICES="0"),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stdout.splitlines() if line.startswith("WAIT pipeline/")]
    meant = [line for line in ours if "pipeline/optim/guard.py" in line]  # whether the gradients are finite, at stage 0
    assert ours == meant, done.stdout
    assert (len(meant) > 0) == (stage == 0)
