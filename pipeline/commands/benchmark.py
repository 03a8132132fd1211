"""Measure loaders, augmentations and planning side by side."""

from __future__ import annotations

import argparse

from pipeline.image_size import ImageSize, image_size
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline benchmark loader /data/imagenet-sample --workers 2\n  python -m pipeline "
    "benchmark scale\n  python -m pipeline benchmark augment /data/imagenet-sample\n\n"
    "loader: every contender runs in a process of its own, in turns, on the same images and cores. `make peers` installs\n"
    "timm, litdata and mosaicml-streaming; those not installed are left out with a message.\n"
    "scale: plans a corpus of 300 M samples for 4,096 ranks; no image is read.\n"
    "augment: every augmentation law, and torchvision's and timm's where they are installed (`make test` does it)."
)


def _image_size(text: str) -> ImageSize:
    height, _, width = text.partition("x")
    return image_size(int(height), int(width or height))


def add_arguments(command: argparse.ArgumentParser) -> None:
    kinds = command.add_subparsers(dest="what", required=True, metavar="loader|scale|augment")
    loader = kinds.add_parser("loader", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    loader.add_argument("folder", help="indexed shards of real photos, at least one shard a worker")
    loader.add_argument("--workers", type=int, default=2, help="worker processes of each loader")
    loader.add_argument("--batch", type=int, default=64, help="images in a batch")
    loader.add_argument("--image-size", type=_image_size, default=224, help="pixels; 224x160: height x width")
    loader.add_argument("--batches", type=int, default=10, help="batches in a round")
    loader.add_argument("--rounds", type=int, default=7, help="rounds; the table shows their median")
    loader.add_argument("--only", nargs="*", default=[], help="contenders whose name has one of these in it")
    scale = kinds.add_parser("scale", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    scale.add_argument("--shards", type=int, default=30_000)
    scale.add_argument("--samples-per-shard", type=int, default=10_000)
    scale.add_argument("--ranks", type=int, default=4096)
    scale.add_argument("--workers", type=int, default=8, help="worker processes a rank")
    scale.add_argument("--batch", type=int, default=32_768, help="global batch size")
    augment = kinds.add_parser("augment", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    augment.add_argument("folder", help="indexed shards of real photos")
    augment.add_argument("--image-size", type=int, default=224, help="pixels")
    augment.add_argument("--rounds", type=int, default=15, help="rounds; the table shows their median")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    if arguments.what == "scale":
        from pipeline.benchmark.scale import measure_scale

        print(
            measure_scale(
                num_shards=arguments.shards,
                samples_per_shard=arguments.samples_per_shard,
                num_ranks=arguments.ranks,
                num_workers=arguments.workers,
                global_batch_size=arguments.batch,
            )
        )
        return 0
    if arguments.what == "augment":
        from pipeline.benchmark.augment import compare_augmentations

        print(compare_augmentations(arguments.folder, image_size=arguments.image_size, num_rounds=arguments.rounds))
        return 0
    from pipeline.benchmark.loader import compare_loaders

    print(
        compare_loaders(
            arguments.folder,
            num_workers=arguments.workers,
            batch_size=arguments.batch,
            image_size=arguments.image_size,
            num_batches=arguments.batches,
            num_rounds=arguments.rounds,
            only=arguments.only,
        )
    )
    return 0
