"""The commands: `python -m data_tools COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import os
import sys

from data_tools import make_arguments
from pipeline.data.index import DEFAULT_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES
from pipeline.errors import PipelineError


def make(arguments: argparse.Namespace) -> None:
    from data_tools.make import make_shards

    options = make_arguments.read_options(arguments)
    report = make_shards(arguments.source, arguments.folder, options=options, num_workers=arguments.workers)
    print(make_arguments.describe(report, arguments.folder))


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

    make_arguments.add_arguments(add("make", make, make_arguments.SUMMARY, make_arguments.EPILOG))
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
