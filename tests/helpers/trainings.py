"""Run real trainings in processes of their own, and check what tests ask of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines, read_metrics
from tests.conftest import REPOSITORY, environment, run_command

WriteConfig = Callable[..., Path]
STEPS = 12


def folder_of(config: Path) -> RunFolder:
    return RunFolder(config.parent / "runs" / config.stem)


def train(config: Path, *overrides: str) -> str:
    result = run_command("train", str(config), *overrides)
    assert result.returncode == 0, result.stdout
    return result.stdout


def run_ranks(module: str, *arguments: str, num_ranks: int = 2, timeout_s: float = 900) -> str:
    """Run a module of the tests as ranks of one launch. Return what they printed."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.forked_ranks", str(num_ranks), module, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def train_together(
    configs: list[Path], listing: Path, *, num_ranks: int = 2, module: str = "tests.helpers.rank_scenarios"
) -> None:
    """Train several configurations one after another in one launch."""
    listing.write_text(json.dumps([str(path) for path in configs]))
    run_ranks(module, str(listing), num_ranks=num_ranks)


@contextmanager
def training(config: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """Run a training in the background, with its output in a file. Every process of it is gone at the end."""
    log = config.with_suffix(".log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", str(config), *overrides],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], *, poll_s: float = 0.01, timeout_s: float = 200
) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the training ended early"
        assert time.monotonic() < end, "timed out"
        time.sleep(poll_s)


def reached(folder: RunFolder, step: int) -> bool:
    return any(row["step"] >= step for row in read_json_lines(folder.metrics))


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return process ids of the ranks, from the kernel's list of the launcher's children."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if "pipeline" in Path(f"/proc/{pid}/cmdline").read_text()]


def tree_of(pid: int) -> list[int]:
    """Return a process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in tree_of(int(child)))]


def assert_same_run(folder: RunFolder, reference: RunFolder) -> None:
    """Assert that every weight bit for bit, every loss, and the digest of everything both runs saw are equal."""
    ours, theirs = (safetensors.torch.load_file(f.weights_of(STEPS)) for f in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    ours_rows, theirs_rows = read_metrics(folder.metrics), read_metrics(reference.metrics)
    assert [row["step"] for row in ours_rows] == list(range(1, STEPS + 1))
    for key in ("train/loss", "train/gradient_norm", "data/digest", "images_seen"):
        assert [row[key] for row in ours_rows] == [row[key] for row in theirs_rows], key
