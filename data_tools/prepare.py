"""Prepare a corpus in one go: make, verify, dedup, index, with the same workers."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from data_tools.arguments import open_workers
from data_tools.dedup import command as dedup_command
from data_tools.earlier import read_report
from data_tools.make import command as make_command
from data_tools.parallel import Workers
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.skips import read_skips
from pipeline.errors import DataError

EPILOG = (
    "Does what these commands do one after the other, and what is finished is not done again, so the same command resumes\n"
    "after a crash, a preemption or a time limit:\n\n"
    "  make SOURCE FOLDER\n"
    "  verify FOLDER                                   what cannot be used -> skip.tsv\n"
    "  dedup FOLDER --against TEST_SET ... --within    copies -> copies.tsv (only with --against, --within or --split)\n"
    "  index FOLDER --skip skip.tsv --skip copies.tsv\n\n"
    "With --split FRACTION both parts are prepared, and copies of images of FOLDER/val are left out of FOLDER/train.\n"
    "`python -m data_tools make --help` describes what SOURCE may be.\n\n"
    "examples:\n"
    "  python -m data_tools prepare /raw/winter21_whole /data/imagenet21k --against /data/cifar10/test --within\n"
    "  python -m data_tools prepare /raw/photos /data/photos --split 0.01 --cluster slurm --nodes 16 --cores 32\n"
    "  sbatch slurm/prepare.sh /raw/photos /data/photos --split 0.01 --nodes 16 --cores 32       # as a job, requeued"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    make_command.add_arguments(command)
    dedup_command.add_search_arguments(command)


def run(arguments: argparse.Namespace) -> None:
    if arguments.share is not None:
        raise DataError("prepare has no shares, for its steps wait for each other: share them one by one (slurm/shares.sh)")
    if is_remote(arguments.folder):
        raise DataError(f"{arguments.folder} is a URL, for which the steps run one by one: make, verify, dedup, index")
    scratch = [arguments.scratch] if arguments.scratch else []
    folders = [arguments.source, arguments.folder, *arguments.against, *scratch]
    with open_workers(arguments, folders=folders) as workers:
        prepare(arguments, workers)


def prepare(arguments: Namespace, workers: Workers) -> None:
    """Run the steps.

    Raises:
        DataError: as the steps'.
    """
    from data_tools import index_command
    from data_tools.verify import command as verify_command

    root = Path(arguments.folder)
    _announce("make", arguments.source, arguments.folder)
    report = make_command.work(arguments, workers)
    parts = [root / name for name in report.samples_of] or [root]
    against = [*arguments.against, *(str(part) for part in parts if part.name == "val" and len(parts) > 1)]
    for part in parts:
        _announce("verify", part)
        values = {"folder": str(part), "skip": [], "skip_list": None, "report": None, "work": None}
        verify_command.work(Namespace(**values), workers)
        check_whole(part / "verify.json")
    main = parts[0]
    if against or arguments.within:
        _announce("dedup", main)
        values = {"corpus": str(main), "against": against, "work": None, "out": None}
        dedup_command.work(Namespace(**{**vars(arguments), **values}), workers)
    for part in parts:
        skips = [str(path) for name in ("skip.tsv", "copies.tsv") if (path := part / name).exists() and read_skips(path)]
        _announce("index", part)
        values = {"folder": str(part), "source_split": None, "skip": skips, "out": None}
        index_command.work(Namespace(**{**vars(arguments), **values}), workers)
    print(f"\nprepared: data.train={main}" + "".join(f" evaluation.validation={part}" for part in parts[1:]))


def check_whole(report: Path) -> None:
    """Refuse to go on with a shard that cannot be read.

    Raises:
        DataError: there is one.
    """
    if broken := (read_report(report) or {}).get("broken_shards"):
        name, reason = next(iter(broken.items()))
        raise DataError(f"{report.parent / name} cannot be read ({reason}); remove it, and the same command writes it again")


def _announce(name: str, *words: object) -> None:
    print(f"\n== {name} {' '.join(map(str, words))}", flush=True)
