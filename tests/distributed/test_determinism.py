"""Deterministic kernels are asked for where they can be had."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, environment

SCRIPT = """
import os, torch
from pipeline.distributed.determinism import use_deterministic_kernels
use_deterministic_kernels()
print(os.environ["CUBLAS_WORKSPACE_CONFIG"], torch.are_deterministic_algorithms_enabled())
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """Choose kernels in a process of its own: the choice is for the whole process."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=REPOSITORY,
        env=environment(**variables),
        text=True,
        capture_output=True,
        timeout=100,
    )


@pytest.mark.parametrize(("given", "kept"), [({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")])
def test_a_workspace_is_set_or_kept(given: dict[str, str], kept: str) -> None:
    assert run(**given).stdout.split() == [kept, "True"]


def test_one_that_is_not_reproducible_is_refused() -> None:
    """espnet 6630: torch raises at the first product, minutes later."""
    done = run(CUBLAS_WORKSPACE_CONFIG=":0:0")
    assert done.returncode == 1
    assert "CUBLAS_WORKSPACE_CONFIG=:0:0 in the environment" in done.stderr
