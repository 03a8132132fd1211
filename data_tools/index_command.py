"""Index the .tar files of a folder or URL."""

from __future__ import annotations

import argparse

from data_tools.arguments import add_block_samples, open_workers
from data_tools.parallel import Workers

EPILOG = (
    "Writes FOLDER/index.safetensors; FOLDER may be a URL. Run it again whenever the shards change.\n\n"
    "examples:\n  python -m data_tools index /data/imagenet\n"
    "  python -m data_tools index s3://bucket/imagenet --skip imagenet-bad.tsv --skip imagenet-copies.tsv\n"
    "  python -m data_tools index hf://datasets/timm/imagenet-1k-wds --source-split train --out indexes/imagenet-1k\n"
    "    # then train with data.train='{url: hf://datasets/timm/imagenet-1k-wds, index: indexes/imagenet-1k}'"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_block_samples(command)
    command.add_argument("folder", help="folder or URL of .tar files")
    command.add_argument(
        "--source-split", metavar="NAME", help="the tars to take, where their names tell several splits: train, validation, ..."
    )
    command.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="FILE",
        help="samples to leave out: a skip list of `verify` or `dedup`; may be repeated",
    )
    command.add_argument(
        "--out",
        metavar="PLACE",
        help="folder or .safetensors file where the index goes, where nothing can be written next to the shards: a "
        "read-only folder, a "
        "public store, a web server (default: FOLDER)",
    )


def run(arguments: argparse.Namespace) -> None:
    with open_workers(arguments, folders=[arguments.folder, *([arguments.out] if arguments.out else [])]) as workers:
        work(arguments, workers)


def work(arguments: argparse.Namespace, workers: Workers) -> None:
    """Do the same with workers that exist."""
    from data_tools.index import describe, describe_use, index_folder, lock_index_folder

    with lock_index_folder(arguments.folder, arguments.out):
        made = index_folder(
            arguments.folder,
            block_samples=arguments.block_samples,
            workers=workers,
            skip_lists=arguments.skip,
            split=arguments.source_split,
            out=arguments.out,
        )
    print(describe(made))
    if arguments.out:
        print(describe_use(arguments.folder, arguments.out))
