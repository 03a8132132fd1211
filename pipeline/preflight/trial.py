"""Train a tiny model on all ranks, end, resume, and compare with the same training without an end."""

from __future__ import annotations

import contextlib
import io
import math
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from pipeline.build.resume import agree_on_start
from pipeline.build.training import make_training
from pipeline.config.resolve import resolve_run
from pipeline.config.run import RunConfig
from pipeline.data.shards.index import assemble_index, save_index
from pipeline.data.shards.scan import scan_shard
from pipeline.distributed.precision import TrainingPrecision, choose_training_precision, measure_bf16_speedup
from pipeline.distributed.world import World, broadcast, device_of, minimum
from pipeline.errors import PipelineError
from pipeline.launch.signals import StopRequest
from pipeline.preflight.measure import Measure
from pipeline.run.folder import RunFolder
from pipeline.run.lock import RunLock

STEPS, HALF = 4, 2
IMAGES, SIDE, CLASSES = 64, 16, 4
SHARD = "shard-000000.tar"
ZERO_STAGE = 2
# Of the distance that the steps after the resume go. Noise of 0.4 % on outputs of layers, as bf16 rounds, gave 13 %; a resume
# without the optimizer's moments gave 56 %. The largest difference of one weight does not tell them apart: 1.4e-3 and 1.6e-3.
MOST_SHARE = 0.25


def write_corpus(folder: Path) -> None:
    """Write a shard of random images, and its index."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    with tarfile.open(folder / SHARD, "w") as tar:
        for number in range(IMAGES):
            picture = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(picture, "PNG")
            for suffix, data in (("png", picture.getvalue()), ("cls", str(number % CLASSES).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path = folder / SHARD
    with path.open("rb") as file:
        entry = scan_shard(file, name=SHARD, num_bytes=path.stat().st_size, block_samples=4)
    save_index(assemble_index(str(folder), [entry]))


def make_config(folder: Path, *, name: str, world_size: int, max_steps: int | None, precision: TrainingPrecision) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "output_dir": str(folder),
            "model": {
                "name": "Ti/8", "image_size": SIDE, "num_classes": CLASSES, "width": 64, "depth": 2, "num_heads": 2,
            },
            "data": {"train": str(folder / "data"), "num_workers": 0},
            "objective": {"name": "softmax"},
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 1.0},
            "schedule": {"warmup": "1 steps"},
            "trainer": {
                "duration": f"{STEPS} steps", "max_steps": max_steps, "global_batch_size": 2 * world_size,
                "zero_stage": ZERO_STAGE, "precision": precision, "hardware": "found", "hang_timeout_s": None,
            },
            "checkpoint": {"every": f"{HALF} steps"},
            "tracking": {"mode": "disabled", "log_every": 1},
        }
    )  # fmt: skip


def try_training(folder: Path, world: World) -> Iterator[Measure]:
    """Yield whether a training with ZeRO-2 saves and resumes on all ranks. The first rank alone has the results.

    Args:
        folder: shared by all ranks.
    """
    said = io.StringIO()
    begin = time.perf_counter()
    try:
        if world.is_first:
            write_corpus(folder / "data")
        dist.barrier()
        precision = _precision(world)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for name, max_steps in (("resumed", HALF), ("resumed", None), ("whole", None)):
                config = make_config(folder, name=name, world_size=world.size, max_steps=max_steps, precision=precision)
                _train(config, world)
    except PipelineError as error:
        yield Measure("tiny training", "failed", advice=str(error), severity="problem")
        return
    except Exception as error:  # a library's: its traceback would end the check without a table
        last = said.getvalue().splitlines()[-1:]
        yield Measure(
            "tiny training", "failed", advice=f"{type(error).__name__}: {error} {' '.join(last)}".strip(), severity="problem"
        )
        return
    if not world.is_first:
        return
    seconds = time.perf_counter() - begin
    yield Measure("tiny training, three launches", seconds, "s")
    whole = RunFolder(folder / "whole")
    share = distance(RunFolder(folder / "resumed").weights_of(STEPS), whole.weights_of(STEPS)) / distance(
        whole.weights_of(HALF), whole.weights_of(STEPS)
    )
    yield Measure(
        "resumed differs by",
        100 * share,
        f"% of {STEPS - HALF} steps in {precision}",
        advice=None
        if share <= MOST_SHARE
        else "a resumed training is not the same training: report this with the versions above",
        severity="problem",
    )


def _precision(world: World) -> TrainingPrecision:
    """Return the precision of all launches: chosen by each, it could change where bf16 is about as fast as fp32."""
    device = device_of(world)
    speedup = minimum(measure_bf16_speedup(device), device=device)
    return choose_training_precision("auto", zero_stage=ZERO_STAGE, recorded=None, bf16_speedup=speedup).precision


def _train(config: RunConfig, world: World) -> None:
    run = resolve_run(config, world_size=world.size)
    device = device_of(world)
    lock = RunLock(config.run_dir)
    try:
        start = agree_on_start(run, world, device=device, lock=lock)
        make_training(run.with_precision(start.precision), world=world, stop=StopRequest(), start=start).run()
        broadcast(None, device=device)  # no rank begins the next launch before the first has published this one
    finally:
        lock.release()


def distance(first: Path, second: Path) -> float:
    """Return the Euclidean distance between the weights of two files."""
    ours, theirs = load_file(first), load_file(second)
    return math.sqrt(sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours))
