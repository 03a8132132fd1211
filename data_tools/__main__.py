"""The commands: `python -m data_tools COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.data.index import DEFAULT_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES
from pipeline.errors import DataError, PipelineError


def make(arguments: argparse.Namespace) -> None:
    from data_tools.make import make_shards

    report = make_shards(
        arguments.source, arguments.folder, samples_per_shard=arguments.samples_per_shard, block_samples=arguments.block_samples,
        seed=None if arguments.keep_order else arguments.seed, num_workers=arguments.workers,
        classes=read_classes(arguments.classes) if arguments.classes else None,
    )  # fmt: skip
    print(
        f"{arguments.folder}: {report.num_samples} samples in {report.num_shards} shards "
        f"({report.num_written} written now, {report.num_passed_over} files passed over without an image)"
    )


def read_classes(path: str) -> list[str]:
    """Class names, one a line.

    Raises:
        DataError: no such file.
    """
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {path}: {error}") from error


def index(arguments: argparse.Namespace) -> None:
    from data_tools.index import index_folder

    made = index_folder(
        arguments.folder, block_samples=arguments.block_samples, num_workers=arguments.workers, skip_lists=arguments.skip
    )  # fmt: skip
    print(
        f"{arguments.folder}: {made.num_samples} samples in {len(made.shard_names)} shards, {made.num_blocks} blocks, fingerprint {made.fingerprint}"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_tools", description="Make and index corpora of WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cores = os.cpu_count() or 1

    def add(name: str, function: object, help: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(function=function)
        command.add_argument(
            "--block-samples",
            type=_block_samples,
            default=DEFAULT_BLOCK_SAMPLES,
            help="samples in one range read (default: %(default)s)",
        )
        command.add_argument("--workers", type=_positive, default=cores, help="processes (default: all cores, %(default)s)")
        return command

    command = add(
        "make", make, "pack images into shuffled shards, and index them",
        "SOURCE is a folder of class folders (classes are numbered in sorted order, see classes.txt), a tar,\n"
        "or a folder of WebDataset tars. Image bytes are kept as they are. Run it again after a crash: it goes on.\n\n"
        "examples:\n  python -m data_tools make /raw/imagenet/train /data/imagenet\n"
        "  python -m data_tools make old-shards/ new-shards/ --samples-per-shard 5000 --seed 7",
    )  # fmt: skip
    command.add_argument("source")
    command.add_argument("folder", help="where the shards go")
    command.add_argument("--samples-per-shard", type=_positive, default=10_000, help="default: %(default)s")
    command.add_argument("--seed", type=_natural, default=0, help="of the shuffle over all samples (default: %(default)s)")
    command.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one a line in the order of their ids: give the train split's classes.txt for its test split",
    )
    command.add_argument("--keep-order", action="store_true", help="do not shuffle")
    command = add(
        "index", index, "index the .tar files of a folder or URL, whoever wrote them",
        "Writes FOLDER/index.safetensors; FOLDER may be a URL. Run it again whenever the shards change.\n\n"
        "examples:\n  python -m data_tools index /data/imagenet\n"
        "  python -m data_tools index s3://bucket/imagenet --skip imagenet-bad.tsv --skip imagenet-copies.tsv",
    )  # fmt: skip
    command.add_argument("folder", help="folder or URL of .tar files")
    command.add_argument(
        "--skip", action="append", default=[], metavar="FILE", help="samples to leave out: a skip list of `verify` or `dedup`; may be repeated"
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _block_samples(text: str) -> int:
    value = _positive(text)
    if value > MAX_BLOCK_SAMPLES:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_BLOCK_SAMPLES}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except PipelineError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # below a progress bar that may be open
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
