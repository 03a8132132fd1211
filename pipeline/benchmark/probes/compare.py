"""`benchmark eval`: say what a comparison of the probes' solvers will take, run it in a process of its own, and show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.probes.features import Sizes
from pipeline.benchmark.probes.measure import OURS, SEEDS, SHOTS, Result
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation.protocols.linear import PENALTIES
from pipeline.evaluation.protocols.logistic import memory_bytes
from pipeline.files import write_whole

PARTS = ("few_shot", "logistic")
_PASSES = 180  # over the path of penalties, as counted on mixtures of Gaussians of 20 to 100 classes
_BESIDES = 1.8  # all work over the two products of a pass, on one core


def forecast(sizes: Sizes) -> str:
    """Return in a sentence how much memory and CPU time our solvers will take, by the speed of a product now."""
    a, b = torch.randn(1024, 512), torch.randn(512, 256)
    torch.mm(a, b)
    begin = time.process_time()
    for _ in range(10):
        torch.mm(a, b)
    rate = 10 * 2 * a.numel() * b.shape[1] / (time.process_time() - begin)  # fp32 operations a second
    pass_flops = 4 * sizes.images * sizes.width * sizes.classes
    logistic_s = _PASSES * _BESIDES * pass_flops / rate
    largest = min(sizes.images, max(SHOTS) * sizes.classes)
    fits = len(SHOTS) * (2 * sizes.width**2 * sizes.classes * 2 + 2 * sizes.tests * sizes.width * sizes.classes)
    few_shot_s = len(SEEDS) * (2 * 1.25 * largest * sizes.width**2 + fits) / rate
    memory = memory_bytes(images=sizes.images, features=sizes.width, classes=sizes.classes)
    held = 4 * sizes.width * (sizes.images + sizes.tests)
    return (
        f"{sizes.images:,} train and {sizes.tests:,} test images, {sizes.width:,} features, {sizes.classes:,} classes "
        f"({held / 2**30:.2f} GiB): on one core of this machine our few-shot solver should take about {few_shot_s:.3g} s for "
        f"{len(SHOTS)} shots and {len(SEEDS)} seeds, our logistic one about {logistic_s:.3g} s for {len(PENALTIES)} penalties "
        f"and {memory / 2**30:.2f} GiB more"
    )


def compare_probes(
    sizes: Sizes, *, features: tuple[Path, Path] | None, rounds: int, only: Sequence[str], json_path: Path | None
) -> str:
    """Measure in a fresh process with one thread, and return tables.

    Raises:
        PipelineError: the process has ended with an error.
        ConfigError: nothing can be written to `json_path`.
    """
    settings = {
        "sizes": asdict(sizes),
        "features": None if features is None else [str(path) for path in features],
        "rounds": rounds,
        "only": list(only),
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.benchmark.probes.measure", json.dumps(settings)],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        text=True,
    )
    if answer.returncode:
        raise PipelineError(f"the process that measures ended with code {answer.returncode}; what it said is above")
    found: Result = json.loads(answer.stdout)
    if json_path is not None:
        _write_json(json_path, found)
    return make_tables(found)


def _write_json(path: Path, found: Result) -> None:
    try:
        write_whole(path, json.dumps(found, indent=1).encode())
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


def make_tables(found: Result) -> str:
    """Return a table for each probe: CPU seconds, what they are of ours, and what was reached."""
    sizes = Sizes(**found["sizes"])
    parts = [
        f"{sizes.images:,} train and {sizes.tests:,} test images, {sizes.width:,} features, {sizes.classes:,} classes; "
        "CPU seconds of one thread"
    ]
    if "few_shot" in found:
        parts.append(_few_shot_table(found["few_shot"], predictions=len(SHOTS) * len(SEEDS) * sizes.tests))
    if "logistic" in found:
        parts.append(_logistic_table(found["logistic"], tests=sizes.tests))
    if found.get("left_out"):
        parts.append(found["left_out"])
    return "\n\n".join(parts)


def _few_shot_table(rows: list[Result], *, predictions: int) -> str:
    ours = _ours(rows)
    lines = [
        f"| few-shot, {len(SHOTS)} shots, {len(SEEDS)} seeds | seconds | of ours | predictions unlike ours | accuracy |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        different = f"{row['different_predictions']} of {predictions:,}"
        lines.append(
            f"| {row['solver']} | {row['seconds']:.3g} | {row['seconds'] / ours['seconds']:.2f} | {different} | "
            f"{100 * row['accuracy']:.2f} % |"
        )
    return "\n".join(lines)


def _logistic_table(rows: list[Result], *, tests: int) -> str:
    ours = _ours(rows)
    best = [min(values) for values in zip(*(row["objectives"] for row in rows), strict=True)]
    lines = [
        f"| logistic, {len(PENALTIES)} penalties | seconds | of ours | objective above the best, at most | test images more or "
        "fewer than ours, at most |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        excess = max(value / least - 1 for value, least in zip(row["objectives"], best, strict=True))
        moved = max(abs(a - b) for a, b in zip(row["accuracies"], ours["accuracies"], strict=True))
        lines.append(
            f"| {row['solver']} | {row['seconds']:.3g} | {row['seconds'] / ours['seconds']:.2f} | {excess:.1e} | "
            f"{round(moved * tests)} of {tests:,} |"
        )
    return "\n".join(lines)


def _ours(rows: list[Result]) -> dict[str, Any]:
    return next(row for row in rows if row["solver"] == OURS)
