"""Decode every image, and list what to leave out."""

from __future__ import annotations

import argparse

from data_tools.arguments import open_workers
from data_tools.parallel import Workers

EPILOG = (
    "FOLDER is a folder or URL of WebDataset tars, indexed or not, or one .tar. Every image is decoded as training does\n"
    "it. What cannot be used (no image, no usable label, an image that cannot be decoded) goes into a skip list for\n"
    "`index --skip`; what is merely odd is counted. Run it again after a crash: it resumes.\n\n"
    "exit code: 0 if a training on these shards as they are would run; 1 if it would stop (a broken shard, a sample\n"
    "without image or usable label); 2 if `verify` itself could not do its work.\n\n"
    "examples:\n  python -m data_tools verify /data/imagenet\n"
    "  python -m data_tools index /data/imagenet --skip /data/imagenet/skip.tsv      # leave out what it found\n"
    "  python -m data_tools verify /data/imagenet --skip /data/imagenet/skip.tsv     # the rest is well: exit code 0\n"
    "  python -m data_tools verify s3://bucket/imagenet --work /scratch/verify --skip-list bad.tsv --report bad.json"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", help="folder or URL of .tar files, or one .tar")
    command.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="FILE",
        help="samples that are left out already: not looked at, and listed again; may be repeated",
    )
    command.add_argument("--skip-list", metavar="FILE", help="where to list what to leave out (default: FOLDER/skip.tsv)")
    command.add_argument("--report", metavar="FILE", help="where to write the report (default: FOLDER/verify.json)")
    command.add_argument(
        "--work",
        metavar="FOLDER",
        help="keeps what was found in each shard (default: FOLDER/.verify); for a URL, all three are in the current folder",
    )


def run(arguments: argparse.Namespace) -> int:
    folders = [arguments.folder, *(place for place in (arguments.work, arguments.report, arguments.skip_list) if place)]
    with open_workers(arguments, folders=folders) as workers:
        return work(arguments, workers)


def work(arguments: argparse.Namespace, workers: Workers) -> int:
    """Do the same with workers that exist."""
    from data_tools.earlier import check_report, check_skip_list
    from data_tools.folder_lock import lock_folder
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden, list_shards
    from data_tools.verify.check import default_outputs, verify_shards
    from data_tools.verify.findings import next_step, summarise, tabulate

    shards = list_shards(arguments.folder)
    outputs = default_outputs(shards, skip_list=arguments.skip_list, report=arguments.report, work=arguments.work)
    with lock_folder(
        outputs.report.parent,
        name=workers.lock_name(f".{outputs.report.name}.lock"),
        advice="name other paths with --report, --skip-list and --work",
    ):
        is_ours = outputs.report.exists()
        check_report(outputs.report, folder=shards.folder, advice="name other paths with --report, --skip-list and --work")
        check_skip_list(outputs.skip_list, is_ours=is_ours, given=arguments.skip, advice="name another file with --skip-list")
        found = verify_shards(shards, outputs=outputs, workers=workers, skip_lists=arguments.skip)
    print(f"{describe_hidden(shards.hidden)}{lines(shards.remarks)}{summarise(found)}")
    print(tabulate(found) or "nothing wrong with any of them")
    given = f", {found.num_passed_over} of them given" if found.num_passed_over else ""
    print(f"\nreport:    {outputs.report}")
    print(f"skip list: {outputs.skip_list} ({len(found.skips) + found.num_passed_over} samples{given})")
    print(f"next:      {next_step(found, skip_list=outputs.skip_list)}")
    return 1 if found.stops_training else 0
