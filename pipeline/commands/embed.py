"""Write features of shards: what the classifier would read of each image."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline embed runs/l16_in21k /data/cifar10/train features/cifar10\n"
    "  torchrun --nproc-per-node 8 -m pipeline embed google/L_16.npz /data/in21k features/in21k --store fp16\n"
    "  python -m pipeline embed weights.safetensors s3://bucket/shards features/x --features pooled patches\n\n"
    "One file for each shard, whole or absent: the same command goes on after a kill, with any number of ranks, and computes\n"
    "no file again. Each shard belongs to one rank, the largest first to whoever has the fewest images. Files are the same\n"
    "for every number of ranks. An OUT of other weights, shards, preprocessing or precision is refused. Labels are not\n"
    "needed; where there are some they are kept. docs/evaluation.md describes the files."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="RUN_OR_WEIGHTS", help="folder of a run, or anything that `import` reads")
    command.add_argument("shards", metavar="SHARDS", help="folder or URL of indexed shards")
    command.add_argument("out", metavar="OUT", help="folder to write")
    command.add_argument("--step", type=int, help="of a run (default: the newest weights)")
    command.add_argument("--average", action="store_true", help="of a run, the averaged weights")
    command.add_argument(
        "--index", metavar="PLACE", help="folder or file of the index, where it does not lie next to the shards"
    )
    command.add_argument(
        "--features",
        nargs="+",
        choices=["features", "pooled", "patches"],
        default=["features"],
        help="features: what the classifier reads (default); pooled: class token or pooled patches, before pre-logits; "
        "patches: a vector for each patch",
    )
    command.add_argument(
        "--store", choices=["fp32", "fp16", "bf16"], default="fp32", help="number format of the files (default: fp32)"
    )
    command.add_argument(
        "--format",
        choices=["safetensors", "parquet"],
        default="safetensors",
        help="of the files (default: safetensors); parquet needs pyarrow",
    )
    command.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="of the forward pass; auto: that of the files in OUT, else bf16 where the device computes it fast (default)",
    )
    command.add_argument(
        "--short-side", type=int, metavar="PIXELS", help="resize before the centre crop (default: the model's own)"
    )
    command.add_argument("--batch-size", type=int, default=64, help="images of one forward pass, at most a block (default: 64)")
    command.add_argument("--workers", type=int, default=2, help="decoding processes of a rank (default: 2)")
    command.add_argument("--cpu-threads", type=int, default=1, help="of a rank without a GPU (default: 1)")
    command.add_argument(
        "--hardware",
        choices=["allotted", "found"],
        default="allotted",
        help="allotted: a GPU that was set aside must be used (default); found: the CPU will do where torch sees none",
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.errors import ConfigError

    for name, least in (("short_side", 1), ("batch_size", 1), ("workers", 0), ("cpu_threads", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: at least {least}")
    with collector_paused():
        from pipeline.build.embedding import Request, embed
        from pipeline.exchange.places import place_of
        from pipeline.launch.allotment import Torch, check_visible

    if arguments.hardware == "allotted":
        check_visible(os.environ, Torch.look(), setting="--hardware found")
    embed(
        Request(
            weights=place_of(arguments.weights),
            step=arguments.step,
            kind="average" if arguments.average else "raw",
            shards=arguments.shards,
            index=arguments.index,
            out=Path(arguments.out),
            outputs=tuple(dict.fromkeys(arguments.features)),
            store=arguments.store,
            format=arguments.format,
            precision=arguments.precision,
            short_side=arguments.short_side,
            batch_size=arguments.batch_size,
            num_workers=arguments.workers,
            cpu_threads=arguments.cpu_threads,
        )
    )
    return 0
