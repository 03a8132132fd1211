"""The commands: `python -m data_tools COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_tools.dedup.matching import DEFAULT_DISTANCE, MAX_DISTANCE
from data_tools.make import command as make_arguments
from pipeline.console.command_line import Parser, use_utf8
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES
from pipeline.errors import PipelineError
from pipeline.launch.cores import usable_cores


def make(arguments: argparse.Namespace) -> None:
    from data_tools.make.pack import make_shards
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden
    from pipeline.data.shards.folder import ShardFolder

    options = make_arguments.read_options(arguments)
    report = make_shards(arguments.source, arguments.folder, options=options, num_workers=arguments.workers)
    hidden = ShardFolder(arguments.source).hidden_tars() if os.path.isdir(arguments.source) else []
    print(f"{describe_hidden(hidden)}{lines(report.remarks)}{make_arguments.describe(report, arguments.folder)}")


def index(arguments: argparse.Namespace) -> None:
    from data_tools.index import describe, describe_use, index_folder, lock_place

    with lock_place(arguments.folder, arguments.out):
        made = index_folder(
            arguments.folder, block_samples=arguments.block_samples, num_workers=arguments.workers, skip_lists=arguments.skip,
            split=arguments.source_split, out=arguments.out,
        )  # fmt: skip
    print(describe(made))
    if arguments.out:
        print(describe_use(arguments.folder, arguments.out))


def verify(arguments: argparse.Namespace) -> int:
    from data_tools.earlier import check_report, check_skip_list
    from data_tools.folder_lock import lock_folder
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden, list_shards
    from data_tools.verify.check import choose_places, verify_shards
    from data_tools.verify.findings import next_step, summarise, tabulate

    shards = list_shards(arguments.folder)
    places = choose_places(shards, skip_list=arguments.skip_list, report=arguments.report, work=arguments.work)
    with lock_folder(
        places.report.parent,
        name=f".{places.report.name}.lock",
        advice="name other places with --report, --skip-list and --work",
    ):
        is_ours = places.report.exists()
        check_report(places.report, folder=shards.folder, advice="name other places with --report, --skip-list and --work")
        check_skip_list(places.skip_list, is_ours=is_ours, given=arguments.skip, advice="name another place with --skip-list")
        found = verify_shards(shards, places=places, num_workers=arguments.workers, skip_lists=arguments.skip)
    print(f"{describe_hidden(shards.hidden)}{lines(shards.remarks)}{summarise(found)}")
    print(tabulate(found) or "nothing wrong with any of them")
    given = f", {found.num_passed_over} of them given" if found.num_passed_over else ""
    print(f"\nreport:    {places.report}")
    print(f"skip list: {places.skip_list} ({len(found.skips) + found.num_passed_over} samples{given})")
    print(f"next:      {next_step(found, skip_list=places.skip_list)}")
    return 1 if found.stops_training else 0


def stats(arguments: argparse.Namespace) -> None:
    from data_tools.earlier import check_report
    from data_tools.folder_lock import lock_folder
    from data_tools.kept_samples import find_index_of
    from data_tools.parallel import write_json
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden, list_shards
    from data_tools.stats.measure import describe, measure_folder, tabulate
    from data_tools.stats.page import write_page

    shards = list_shards(arguments.folder)
    out = Path(arguments.out) if arguments.out else shards.output_folder
    page = out / f"{shards.output_prefix}stats.html"
    with lock_folder(out, name=f".{page.name}.lock", advice="name another folder with --out"):
        check_report(page.with_suffix(".json"), folder=shards.folder, advice="name another folder with --out")
        index = find_index_of(shards.folder, arguments.index)
        measured = measure_folder(shards, work=out / ".stats", num_workers=arguments.workers, seed=arguments.seed, index=index)
        report = describe(measured)
        write_json(page.with_suffix(".json"), report)
        write_page(measured, report, page)
    print(
        f"{describe_hidden(shards.hidden)}{lines(shards.remarks)}{tabulate(report)}\n\nfigures: {page.with_suffix('.json')}\npage:    {page}"
    )


def dedup(arguments: argparse.Namespace) -> None:
    from data_tools.dedup.find import find_copies
    from data_tools.dedup.report import choose_places, next_step, tabulate, write_findings
    from data_tools.earlier import check_search
    from data_tools.folder_lock import lock_folder

    places = choose_places(arguments.corpus, out=arguments.out)
    inside = "searched" if arguments.within else "left alone"
    with lock_folder(places.report.parent, name=f".{places.report.name}.lock", advice="name a folder with --out"):
        check_search(places.report, corpus=arguments.corpus, against=arguments.against, inside=inside)
        found = find_copies(
            arguments.corpus, against=arguments.against, inside=inside, distance=arguments.distance, work=arguments.work,
            num_workers=arguments.workers,
        )  # fmt: skip
        write_findings(found, places)
    print(f"{tabulate(found)}\n\n{next_step(found, places)}")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m data_tools", description="Make and index corpora of WebDataset shards.",
        epilog="example:\n  python -m data_tools make /raw/imagenet/train /data/imagenet", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cores = usable_cores()

    def add(name: str, function: object, help: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(function=function)
        command.add_argument(
            "--workers",
            type=_positive,
            default=cores,
            help="processes (default: all cores that this process may use, %(default)s)",
        )
        return command

    def add_block_samples(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--block-samples",
            type=_block_samples,
            default=DEFAULT_BLOCK_SAMPLES,
            help="samples in one range read (default: %(default)s)",
        )

    command = add("make", make, make_arguments.SUMMARY, make_arguments.EPILOG)
    add_block_samples(command)
    make_arguments.add_arguments(command)
    command = add(
        "index", index, "index the .tar files of a folder or URL, whoever wrote them",
        "Writes FOLDER/index.safetensors; FOLDER may be a URL. Run it again whenever the shards change.\n\n"
        "examples:\n  python -m data_tools index /data/imagenet\n"
        "  python -m data_tools index s3://bucket/imagenet --skip imagenet-bad.tsv --skip imagenet-copies.tsv\n"
        "  python -m data_tools index hf://datasets/timm/imagenet-1k-wds --source-split train --out indexes/imagenet-1k\n"
        "    # then train with data.train='{url: hf://datasets/timm/imagenet-1k-wds, index: indexes/imagenet-1k}'",
    )  # fmt: skip
    add_block_samples(command)
    command.add_argument("folder", help="folder or URL of .tar files")
    command.add_argument(
        "--source-split", metavar="NAME", help="the tars to take, where their names tell several splits: train, validation, ..."
    )
    command.add_argument(
        "--skip", action="append", default=[], metavar="FILE", help="samples to leave out: a skip list of `verify` or `dedup`; may be repeated"
    )  # fmt: skip
    command.add_argument(
        "--out", metavar="PLACE",
        help="folder or .safetensors file where the index goes, where nothing can be written beside the shards: a read-only folder, a "
        "public store, a web server (default: FOLDER)",
    )  # fmt: skip
    command = add(
        "verify", verify, "decode every image, find what is damaged, odd or unlabelled, and list what to leave out",
        "FOLDER is a folder or URL of WebDataset tars, indexed or not, or one .tar. Every image is decoded as training does\n"
        "it. What cannot be used (no image, no usable label, an image that cannot be decoded) goes into a skip list for\n"
        "`index --skip`; what is merely odd is counted. Run it again after a crash: it goes on.\n\n"
        "exit code: 0 if a training on these shards as they are would run; 1 if it would stop (a broken shard, a sample\n"
        "without image or usable label); 2 if `verify` itself could not do its work.\n\n"
        "examples:\n  python -m data_tools verify /data/imagenet\n"
        "  python -m data_tools index /data/imagenet --skip /data/imagenet/skip.tsv      # leave out what it found\n"
        "  python -m data_tools verify /data/imagenet --skip /data/imagenet/skip.tsv     # the rest is well: exit code 0\n"
        "  python -m data_tools verify s3://bucket/imagenet --work /scratch/verify --skip-list bad.tsv --report bad.json",
    )  # fmt: skip
    command.add_argument("folder", help="folder or URL of .tar files, or one .tar")
    command.add_argument(
        "--skip", action="append", default=[], metavar="FILE", help="samples that are left out already: not looked at, and listed again; may be repeated"
    )  # fmt: skip
    command.add_argument("--skip-list", metavar="FILE", help="where to list what to leave out (default: FOLDER/skip.tsv)")
    command.add_argument("--report", metavar="FILE", help="where to write the report (default: FOLDER/verify.json)")
    command.add_argument(
        "--work", metavar="FOLDER", help="keeps what was found in each shard (default: FOLDER/.verify); for a URL, all three are in the current folder"
    )  # fmt: skip
    command = add(
        "stats", stats, "count classes, image sizes, formats and bytes, and draw a page with a contact sheet",
        "Reads the images' headers alone, without the samples that the folder's index leaves out. Writes stats.json, and stats.html: one page with everything inside. FOLDER is\n"
        "a folder or URL of WebDataset tars, indexed or not, or one .tar. Run it again after a crash: it goes on.\n\n"
        "examples:\n  python -m data_tools stats /data/imagenet          # then open /data/imagenet/stats.html\n"
        "  python -m data_tools stats s3://bucket/imagenet --out imagenet-stats",
    )  # fmt: skip
    command.add_argument("folder", help="folder or URL of .tar files, or one .tar")
    command.add_argument(
        "--out", metavar="FOLDER", help="where the page goes (default: beside the shards; for a URL, the current folder)"
    )  # fmt: skip
    command.add_argument("--index", metavar="PLACE", help="index of the shards, where it does not lie beside them")
    command.add_argument("--seed", type=_natural, default=0, help="of the samples on the contact sheet (default: %(default)s)")
    command = add(
        "dedup", dedup, "find copies of test images in a corpus, and copies inside it, and list what to leave out",
        "Finds images of CORPUS that are near-copies of an image of a TEST_SET (rescaled, recompressed, mirrored, cropped by a\n"
        "tenth), and with --within those that are copies of each other; of these the largest stays. Writes a skip list for\n"
        "`index --skip` (copies.tsv), a report (dedup.json), and pictures of the pairs, the doubtful ones first\n"
        "(dedup-against.jpg, dedup-within.jpg). Images are hashed once; run it again after a crash: it goes on.\n"
        "docs/data-tools.md says what it finds and misses.\n\n"
        "examples:\n  python -m data_tools dedup /data/imagenet21k --against /data/cifar10/test --against /data/flowers/test\n"
        "  python -m data_tools dedup /data/imagenet21k --against /data/cifar10/test --within --out /data/findings\n"
        "  python -m data_tools index /data/imagenet21k --skip /data/findings/copies.tsv\n"
        "  python -m data_tools dedup s3://bucket/corpus --against /data/cifar10/test --work /scratch/hashes",
    )  # fmt: skip
    command.add_argument("corpus", metavar="CORPUS", help="folder or URL of .tar files, or one .tar")
    command.add_argument(
        "--against", action="append", default=[], metavar="TEST_SET", help="a set whose images must not be in the corpus: folder or URL of .tar files, or one .tar; may be repeated"
    )  # fmt: skip
    command.add_argument(
        "--within", action="store_true", help="look for copies inside the corpus too; the largest of each group stays"
    )
    command.add_argument(
        "--distance",
        type=_distance,
        default=DEFAULT_DISTANCE,
        help="differing bits of 144 that still make a copy (default: %(default)s)",
    )
    command.add_argument("--work", metavar="FOLDER", help="keeps the hashes of all sets (default: .dedup in each set's folder)")
    command.add_argument("--out", metavar="FOLDER", help="where findings go (default: CORPUS; for a URL, the current folder)")
    return parser


def _distance(text: str) -> int:
    value = _natural(text)
    if value > MAX_DISTANCE:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_DISTANCE}: unrelated images match in numbers")
    return value


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
        code = arguments.function(arguments)
    except PipelineError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # below a progress bar that may be open
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
