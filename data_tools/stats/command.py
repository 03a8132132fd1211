"""Write a page on what a corpus holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.arguments import natural, open_workers

EPILOG = (
    "Reads the images' headers alone, without the samples that the folder's index leaves out. Writes stats.json, and "
    "stats.html: one page with everything inside. FOLDER is\n"
    "a folder or URL of WebDataset tars, indexed or not, or one .tar. Run it again after a crash: it resumes.\n\n"
    "examples:\n  python -m data_tools stats /data/imagenet          # then open /data/imagenet/stats.html\n"
    "  python -m data_tools stats s3://bucket/imagenet --out imagenet-stats"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", help="folder or URL of .tar files, or one .tar")
    command.add_argument(
        "--out", metavar="FOLDER", help="where the page goes (default: next to the shards; for a URL, the current folder)"
    )
    command.add_argument("--index", metavar="PLACE", help="index of the shards, where it does not lie next to them")
    command.add_argument("--seed", type=natural, default=0, help="of the samples on the contact sheet (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from data_tools.earlier import check_report
    from data_tools.folder_lock import lock_folder
    from data_tools.parallel import write_json
    from data_tools.shard_names import lines
    from data_tools.shards import describe_hidden, list_shards
    from data_tools.stats.measure import describe, measure_folder, tabulate
    from data_tools.stats.page import write_page
    from pipeline.data.shards.kept import find_index_of

    shards = list_shards(arguments.folder)
    out = Path(arguments.out) if arguments.out else shards.output_folder
    page = out / f"{shards.output_prefix}stats.html"
    with (
        open_workers(arguments, folders=[shards.folder, str(out)]) as workers,
        lock_folder(out, name=workers.lock_name(f".{page.name}.lock"), advice="name another folder with --out"),
    ):
        check_report(page.with_suffix(".json"), folder=shards.folder, advice="name another folder with --out")
        index = find_index_of(shards.folder, arguments.index)
        measured = measure_folder(shards, work=out / ".stats", workers=workers, seed=arguments.seed, index=index)
        report = describe(measured)
        write_json(page.with_suffix(".json"), report)
        write_page(measured, report, page)
    print(
        f"{describe_hidden(shards.hidden)}{lines(shards.remarks)}{tabulate(report)}\n\nfigures: "
        f"{page.with_suffix('.json')}\npage:    {page}"
    )
