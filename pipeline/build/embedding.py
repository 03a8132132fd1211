"""Wire `embed`: weights, shards and this rank's device in, files of features out."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from pipeline.build.pretrained import open_pretrained
from pipeline.console.words import duration
from pipeline.data.shards.index import ShardIndex, check_shards, load_index
from pipeline.distributed.precision import EvaluationPrecision, choose_evaluation_precision, measure_bf16_speedup
from pipeline.distributed.world import World, device_of
from pipeline.errors import ConfigError, EvaluationError
from pipeline.evaluation.embedding import (
    DTYPES,
    Output,
    Progress,
    Store,
    Wanted,
    check_conditions,
    embed_shards,
    look_at_files,
    measure_outputs,
    path_of,
    share_of_rank,
)
from pipeline.evaluation.embedding_files import DESCRIPTION, FileFormat, check_parquet
from pipeline.evaluation.reading import Reading
from pipeline.exchange.pretrained import Pretrained
from pipeline.files import Draft, remove_drafts
from pipeline.json_text import parse_json
from pipeline.run.claims import link_or_create
from pipeline.run.folder import WeightsKind
from pipeline.run.weights import digest_tensors

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Request:
    """Says what `embed` is asked for; see its options."""

    weights: Path
    step: int | None
    kind: WeightsKind
    shards: str
    index: str | None
    out: Path
    outputs: tuple[Output, ...]
    store: Store
    format: FileFormat
    precision: Literal["auto"] | EvaluationPrecision
    short_side: int | None
    batch_size: int
    num_workers: int
    cpu_threads: int


def embed(request: Request) -> None:
    """Compute the features of this rank's shards that have no file yet.

    Raises:
        PipelineError: weights or shards cannot be read, or OUT holds features of something else.
    """
    if request.format == "parquet":
        check_parquet()
        if request.store == "bf16":
            raise ConfigError("Parquet has no bf16; take --store fp16 or fp32, or --format safetensors")
    world = World.from_environment()
    device = device_of(world)
    if device.type == "cpu":
        torch.set_num_threads(request.cpu_threads)
    pretrained = _open_weights(request)
    index = load_index(request.shards, request.index)
    check_shards(index)
    model = pretrained.build().to(device)
    image = torch.zeros(1, 3, *pretrained.config.height_and_width, dtype=torch.uint8, device=device)
    num_values = measure_outputs(model, image, wanted=request.outputs)
    _make_folder(request.out)
    wanted, precision = _settle(request, pretrained, index, device=device, is_first=world.is_first)
    mine = share_of_rank(index.shard_samples.tolist(), rank=world.rank, num_ranks=world.size)
    progress = look_at_files(index, mine, out=request.out, wanted=wanted)
    _tell_start(index, progress, world=world, image_bytes=num_values * DTYPES[request.store].itemsize)
    start = time.perf_counter()
    if progress.todo:
        embed_shards(
            model,
            index,
            out=request.out,
            wanted=wanted,
            transform=pretrained.preprocessing.transform(pretrained.config),
            reading=Reading(
                device=device,
                precision=precision,
                batch_size=request.batch_size,
                num_workers=request.num_workers,
                program="embed",
                workers_setting="--workers",
            ),
            progress=progress,
        )
    _tell_end(request, index, progress, world=world, elapsed_s=time.perf_counter() - start)


def _open_weights(request: Request) -> Pretrained:
    found = open_pretrained(request.weights, step=request.step, kind=request.kind)
    if request.short_side is None:
        return found
    smallest = min(found.config.height_and_width)
    if request.short_side < smallest:
        raise ConfigError(f"--short-side {request.short_side} is less than the {smallest} px of the model's images")
    return replace(found, preprocessing=replace(found.preprocessing, short_side=request.short_side))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror or error}); OUT is a folder for the files") from error


# ------------------------------------------------------------------------------------- what all files have in common


def _settle(
    request: Request, model: Pretrained, index: ShardIndex, *, device: torch.device, is_first: bool
) -> tuple[Wanted, EvaluationPrecision]:
    """Return what this launch computes. The first process that comes writes it to OUT, all others compare.

    Raises:
        ConfigError: OUT holds features of something else.
    """
    path = request.out / f"{DESCRIPTION}.json"
    known = _read_conditions(path)
    speedup = measure_bf16_speedup(device)
    precision, message = _choose_precision(request, known, speedup)
    conditions = _conditions(request, model, index, precision)
    if known is None and not _create(path, conditions):  # another rank was faster
        known = _read_conditions(path)
        precision, message = _choose_precision(request, known, speedup)
        conditions = _conditions(request, model, index, precision)
    if known is not None:
        check_conditions(known, conditions, where=request.out)
    if is_first:
        print(f"[embed] {message}", flush=True)
    about = {"step": model.step, "images_seen": model.images_seen}
    return Wanted(request.outputs, request.store, request.format, conditions, about), precision


def _choose_precision(request: Request, known: dict[str, Any] | None, speedup: float) -> tuple[EvaluationPrecision, str]:
    recorded = None if known is None else known.get("precision")
    return choose_evaluation_precision(
        request.precision,
        recorded=recorded if recorded in get_args(EvaluationPrecision) else None,
        bf16_speedup=speedup,
        auto="--precision auto",
    )


def _conditions(request: Request, model: Pretrained, index: ShardIndex, precision: EvaluationPrecision) -> dict[str, Any]:
    """Return all that the features depend on, as JSON has it."""
    config = model.config
    found = {
        "version": FORMAT_VERSION,
        "weights": digest_tensors(model.filled()),
        "model": {"family": config.family, **config.to_dict()},
        "data": index.fingerprint,
        "image_size": list(config.height_and_width),
        "short_side": model.preprocessing.pixels(config),
        "resize": model.preprocessing.resize,
        "precision": precision,
        "store": request.store,
        "outputs": sorted(request.outputs),
        "format": request.format,
    }
    return parse_json(json.dumps(found))  # tuples are lists there


def _read_conditions(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); remove {path.parent} to compute its features again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a description of features; name another OUT")
    return found


def _create(path: Path, conditions: dict[str, Any]) -> bool:
    """Write the description of OUT, whole. Return whether there was none."""
    try:
        with Draft(path) as draft:
            draft.file.write(json.dumps(conditions, indent=1).encode())
            draft.file.flush()
            os.fsync(draft.file.fileno())
            return link_or_create(draft.path, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise EvaluationError(f"{path} cannot be written ({reason})") from error


# ---------------------------------------------------------------------------------------------------------- messages


def _tell_start(index: ShardIndex, progress: Progress, *, world: World, image_bytes: int) -> None:
    samples = index.shard_samples[np.array(progress.todo, np.int64)]
    largest = f"; the largest file has {image_bytes * int(samples.max()) / 1e6:.3g} MB" if progress.todo else ""
    there = f"; {progress.num_found} more are there already" if progress.num_found else ""
    print(
        f"[embed] {_rank(world)}{len(progress.todo)} of {len(index.shard_names)} shards to compute, {int(samples.sum())} of "
        f"{index.num_samples} images{largest}{there}",
        flush=True,
    )


def _tell_end(request: Request, index: ShardIndex, progress: Progress, *, world: World, elapsed_s: float) -> None:
    rate = f" ({progress.num_images / elapsed_s:.3g} images/s)" if progress.num_images else ""
    print(
        f"[embed] {_rank(world)}{progress.num_files} files written, {progress.num_images} images in {duration(elapsed_s)}"
        f"{rate}; {progress.num_unreadable} unreadable images in all {progress.num_files + progress.num_found} files",
        flush=True,
    )
    missing = sum(not path_of(request.out, name, request.format).exists() for name in index.shard_names)
    if missing:
        print(f"[embed] {_rank(world)}{missing} of {len(index.shard_names)} files are other ranks'", flush=True)
    else:
        remove_drafts(request.out)  # what killed processes left: nobody writes any more
        print(f"[embed] {_rank(world)}{request.out} is complete: {len(index.shard_names)} files", flush=True)


def _rank(world: World) -> str:
    return f"rank {world.rank} of {world.size}: " if world.size > 1 else ""
