"""Prepare a corpus in one go: make, verify, dedup, index, with the same workers."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
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
    "FOLDER may be the URL of a store: shards and indexes go there, and reports, skip lists and hashes to --findings.\n"
    "`python -m data_tools make --help` describes what SOURCE may be.\n\n"
    "examples:\n"
    "  python -m data_tools prepare /raw/winter21_whole /data/imagenet21k --against /data/cifar10/test --within\n"
    "  python -m data_tools prepare /raw/photos /data/photos --split 0.01 --cluster slurm --nodes 16 --cores 32\n"
    "  python -m data_tools prepare s3://bucket/raw s3://bucket/corpus --within --findings /scratch/corpus --scratch /scratch\n"
    "  sbatch slurm/prepare.sh /raw/photos /data/photos --split 0.01 --nodes 16 --cores 32       # as a job, requeued"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    make_command.add_arguments(command)
    dedup_command.add_search_arguments(command)
    command.add_argument(
        "--findings",
        metavar="PLACE",
        help="local folder for reports, skip lists and hashes, which all workers see (default: FOLDER; for a URL, "
        "NAME-findings in the current folder)",
    )


@dataclass(frozen=True)
class Part:
    """Names a folder or URL of shards, and the local folder where what is found of them goes.

    Attributes:
        is_apart: whether the findings are not next to the shards: the test sets' hashes are then not next to theirs either.
    """

    shards: str
    findings: Path
    is_apart: bool

    @property
    def skip_list(self) -> Path:
        return self.findings / "skip.tsv"

    @property
    def copies(self) -> Path:
        return self.findings / "copies.tsv"

    @property
    def report(self) -> Path:
        return self.findings / "verify.json"

    def work(self, step: str) -> str:
        """Return where a step keeps what it knows of each shard."""
        return str(self.findings / f".{step}")


def list_parts(folder: str, names: Sequence[str], findings: str | None) -> list[Part]:
    """Return the parts of a set that was made: its splits, or the whole."""
    root = findings_folder(folder, findings)
    is_apart = is_remote(folder) or findings is not None
    base = folder.rstrip("/") if is_remote(folder) else str(Path(folder))
    return [Part(f"{base}/{name}" if name else base, root / name, is_apart) for name in names or [""]]


def findings_folder(folder: str, findings: str | None) -> Path:
    """Return where findings go.

    Raises:
        DataError: a URL or a file.
    """
    if findings is None and not is_remote(folder):
        return Path(folder)
    if findings is not None and is_remote(findings):
        raise DataError(f"--findings {findings} is a URL; reports, skip lists and hashes need a folder on a disk")
    place = Path(findings or f"{folder.rstrip('/').rpartition('/')[2]}-findings")
    if place.exists() and not place.is_dir():
        raise DataError(f"{place} is a file; name a folder for the findings with --findings")
    return place


def run(arguments: argparse.Namespace) -> None:
    if arguments.share is not None:
        raise DataError("prepare has no shares, for its steps wait for each other: share them one by one (slurm/shares.sh)")
    scratch = [arguments.scratch] if arguments.scratch else []
    findings = findings_folder(arguments.folder, arguments.findings)
    folders = [arguments.source, arguments.folder, *arguments.against, *scratch, str(findings)]
    with open_workers(arguments, folders=folders) as workers:
        prepare(arguments, workers)


def prepare(arguments: Namespace, workers: Workers) -> None:
    """Run the steps.

    Raises:
        DataError: as the steps'.
    """
    from data_tools import index_command
    from data_tools.verify import command as verify_command

    _announce("make", arguments.source, arguments.folder)
    report = make_command.work(arguments, workers)
    parts = list_parts(arguments.folder, list(report.samples_of), arguments.findings)
    main = parts[0]
    held_out = [part.shards for part in parts[1:]]
    for part in parts:
        _announce("verify", part.shards)
        places = {"skip_list": str(part.skip_list), "report": str(part.report), "work": part.work("verify")}
        verify_command.work(Namespace(folder=part.shards, skip=[], **places), workers)
        check_whole(part)
    if arguments.against or held_out or arguments.within:
        _announce("dedup", main.shards)
        places = {"work": main.work("dedup") if main.is_apart else None, "out": str(main.findings)}
        values = {"corpus": main.shards, "against": [*arguments.against, *held_out], **places}
        dedup_command.work(Namespace(**{**vars(arguments), **values}), workers)
    for part in parts:
        skips = [str(path) for path in (part.skip_list, part.copies) if path.exists() and read_skips(path)]
        _announce("index", part.shards)
        values = {"folder": part.shards, "source_split": None, "skip": skips, "out": None}
        index_command.work(Namespace(**{**vars(arguments), **values}), workers)
    print(f"\nprepared: data.train={main.shards}" + "".join(f" evaluation.validation={shards}" for shards in held_out))


def check_whole(part: Part) -> None:
    """Refuse to go on with a shard that cannot be read.

    Raises:
        DataError: there is one.
    """
    if broken := (read_report(part.report) or {}).get("broken_shards"):
        name, reason = next(iter(broken.items()))
        raise DataError(f"{part.shards}/{name} cannot be read ({reason}); remove it, and the same command writes it again")


def _announce(name: str, *words: object) -> None:
    print(f"\n== {name} {' '.join(map(str, words))}", flush=True)
