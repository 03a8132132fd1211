"""Command line arguments that several tools have, and checks of their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_tools.failures import MAX_FAILURES
from data_tools.parallel import DEFAULT_MEMORY_BYTES, LocalWorkers, Workers
from data_tools.shares import Share
from pipeline.console.words import size
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES, MAX_BLOCK_SAMPLES
from pipeline.errors import DataError
from pipeline.launch.cores import usable_cores

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def fraction(text: str) -> float:
    """Parse a number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def num_bytes(text: str) -> int:
    """Parse a size: 1GB is 10**9 bytes, 1GiB is 2**30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500MB, 1GB or 1.5GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def add_memory(command: argparse._ActionsContainer) -> None:
    """Add `--memory`: what a worker may use where the work is divided by it."""
    command.add_argument(
        "--memory",
        type=num_bytes,
        default=DEFAULT_MEMORY_BYTES,
        metavar="SIZE",
        help=f"that a worker may use in `make --passes 2` and in `dedup --within` of a large corpus: 2GB, 16GiB, ... "
        f"(default: {size(DEFAULT_MEMORY_BYTES)})",
    )


def _block_samples(text: str) -> int:
    value = positive(text)
    if value > MAX_BLOCK_SAMPLES:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_BLOCK_SAMPLES}")
    return value


def add_block_samples(command: argparse.ArgumentParser) -> None:
    """Add `--block-samples`: how the shards are cut into blocks."""
    command.add_argument(
        "--block-samples",
        type=_block_samples,
        default=DEFAULT_BLOCK_SAMPLES,
        help="samples in one range read (default: %(default)s)",
    )


def _share(text: str) -> Share:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()) or int(number) >= int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 0/4, 1/4, 2/4 or 3/4")
    return Share(int(number), int(count))


@contextmanager
def open_workers(arguments: argparse.Namespace, *, folders: Sequence[str]) -> Iterator[Workers]:
    """Give what the options ask for: processes of this machine, or a cluster's workers.

    Args:
        folders: that all workers have to see.

    Raises:
        DataError: the cluster cannot do the work.
    """
    if arguments.cluster is None:
        yield LocalWorkers(arguments.workers, max_failures=arguments.max_failures, share=arguments.share)
        return
    if arguments.share is not None:
        raise DataError("--share has no meaning with --cluster, which divides the work by itself")
    if arguments.cluster == "slurm":
        from data_tools.slurm_workers import SlurmShape, open_slurm

        shape = SlurmShape(arguments.nodes, arguments.cores, arguments.job_memory, arguments.time)
        with open_slurm(
            shape,
            work=Path(arguments.cluster_folder),
            folders=folders,
            wait_s=arguments.wait,
            max_failures=arguments.max_failures,
            interface=arguments.interface,
        ) as workers:
            yield workers
        return
    from data_tools.cluster import open_cluster

    with open_cluster(
        arguments.cluster, folders=folders, wait_s=arguments.wait, max_failures=arguments.max_failures
    ) as workers:
        yield workers


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add `--workers` and `--cluster`: who works."""
    command.add_argument(
        "--workers",
        type=positive,
        default=usable_cores(),
        help="processes (default: all cores that this process may use, %(default)s)",
    )
    command.add_argument(
        "--max-failures",
        type=natural,
        default=MAX_FAILURES,
        metavar="N",
        help="a shard that fails is named, and the others go on, until more than N have failed (default: %(default)s)",
    )
    command.add_argument(
        "--share",
        type=_share,
        metavar="I/N",
        help="do one of N shares of the shards (I from 0), and end; the others are done by the same command elsewhere, on the "
        "same file system. The command without --share then does the rest (make, verify, stats, dedup; slurm/shares.sh)",
    )
    group = command.add_argument_group("work on a cluster (pip install '.[cluster]')")
    group.add_argument(
        "--cluster",
        metavar="WHERE",
        help="slurm: submit workers as jobs, which Slurm requeues and which are cancelled in the end (slurm/workers.sh, "
        "slurm/site.env). Or the workers of a Dask scheduler that runs: tcp://HOST:8786, or the file that `dask scheduler "
        "--scheduler-file FILE` writes. Workers need this software and the same file system",
    )
    group.add_argument(
        "--wait", type=positive, default=600, metavar="SECONDS", help="for the first worker (default: %(default)s)"
    )
    group.add_argument("--nodes", type=positive, default=4, metavar="N", help="worker jobs (default: %(default)s)")
    group.add_argument(
        "--cores", type=positive, default=16, metavar="N", help="of a job, a worker for each (default: %(default)s)"
    )
    group.add_argument("--job-memory", metavar="SIZE", help="of a job, as sbatch takes it: 64G (default: the site's)")
    group.add_argument("--time", metavar="TIME", help="of a job, as sbatch takes it; it is requeued then (default: 24:00:00)")
    group.add_argument("--interface", metavar="NAME", help="network interface of all: ib0 (default: Dask's choice)")
    group.add_argument(
        "--cluster-folder",
        default=".",
        metavar="FOLDER",
        help="that all nodes see: credentials and logs of the workers go there (default: the current one)",
    )
