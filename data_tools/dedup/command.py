"""Find copies of test images in a corpus, and copies inside it."""

from __future__ import annotations

import argparse
from typing import get_args

from data_tools.arguments import add_memory, natural, open_workers
from data_tools.dedup.matching import DEFAULT_DISTANCE, MAX_DISTANCE, Method
from data_tools.parallel import Workers
from pipeline.errors import DataError

LEAST_MEMORY = 2**30
EPILOG = (
    "Finds images of CORPUS that are near-copies of an image of a TEST_SET (rescaled, recompressed, mirrored, cropped by a\n"
    "tenth), and with --within those that are copies of each other; of these the largest stays. Writes a skip list for\n"
    "`index --skip` (copies.tsv), a report (dedup.json), and pictures of the pairs, the doubtful ones first\n"
    "(dedup-against.jpg, dedup-within.jpg). Images are hashed once; run it again after a crash: it resumes.\n"
    "docs/data-tools.md says what it finds and misses.\n\n"
    "examples:\n  python -m data_tools dedup /data/imagenet21k --against /data/cifar10/test --against /data/flowers/test\n"
    "  python -m data_tools dedup /data/imagenet21k --against /data/cifar10/test --within --out /data/findings\n"
    "  python -m data_tools index /data/imagenet21k --skip /data/findings/copies.tsv\n"
    "  python -m data_tools dedup s3://bucket/corpus --against /data/cifar10/test --work /scratch/hashes"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("corpus", metavar="CORPUS", help="folder or URL of .tar files, or one .tar")
    add_search_arguments(command)
    add_memory(command)
    command.add_argument("--work", metavar="FOLDER", help="keeps the hashes of all sets (default: .dedup in each set's folder)")
    command.add_argument("--out", metavar="FOLDER", help="where findings go (default: CORPUS; for a URL, the current folder)")


def add_search_arguments(command: argparse.ArgumentParser) -> None:
    """Add what is looked for."""
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TEST_SET",
        help="a set whose images must not be in the corpus: folder or URL of .tar files, or one .tar; may be repeated",
    )
    command.add_argument(
        "--within", action="store_true", help="look for copies inside the corpus too; the largest of each group stays"
    )
    command.add_argument(
        "--distance",
        type=_distance,
        default=DEFAULT_DISTANCE,
        help="differing bits of 144 that still make a copy (default: %(default)s)",
    )
    command.add_argument(
        "--method",
        choices=get_args(Method),
        default="cheapest",
        help="how --within searches; what it finds is the same (default: the cheaper one by estimate)",
    )


def run(arguments: argparse.Namespace) -> None:
    places = [place for place in (arguments.work, arguments.out) if place]
    with open_workers(arguments, folders=[arguments.corpus, *arguments.against, *places]) as workers:
        work(arguments, workers)


def work(arguments: argparse.Namespace, workers: Workers) -> None:
    """Do the same with workers that exist."""
    from data_tools.dedup.find import find_copies
    from data_tools.dedup.report import default_outputs, next_step, tabulate, write_findings
    from data_tools.earlier import check_search
    from data_tools.folder_lock import lock_folder

    if arguments.within and arguments.memory < LEAST_MEMORY:
        raise DataError(f"--memory of {arguments.memory / 2**30:.2g} GiB is too little for --within: at least 1GiB")
    outputs = default_outputs(arguments.corpus, out=arguments.out)
    inside = "searched" if arguments.within else "left alone"
    with lock_folder(
        outputs.report.parent, name=workers.lock_name(f".{outputs.report.name}.lock"), advice="name a folder with --out"
    ):
        check_search(outputs.report, corpus=arguments.corpus, against=arguments.against, inside=inside)
        found = find_copies(
            arguments.corpus,
            against=arguments.against,
            inside=inside,
            distance=arguments.distance,
            work=arguments.work,
            method=arguments.method,
            memory_bytes=arguments.memory,
            workers=workers,
        )
        write_findings(found, outputs)
    print(f"{tabulate(found)}\n\n{next_step(found, outputs)}")


def _distance(text: str) -> int:
    value = natural(text)
    if value > MAX_DISTANCE:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_DISTANCE}: unrelated images match in numbers")
    return value
