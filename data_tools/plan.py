"""Compute on paper what it takes to prepare a corpus: hours of cores and of a cluster, traffic, disk, memory and money."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_tools.arguments import natural, positive
from data_tools.dedup.matching import DEFAULT_DISTANCE
from pipeline.errors import DataError

EPILOG = """\
Costs an image are those measured on one core of an AMD EPYC with AVX2, for photographs of 500 x 375 pixels and 110 kB;
--measure FOLDER measures them here instead, on some images of yours. The cost of --within is that of its join of hashes,
computed. Cores are taken to be busy all the time, and disks and stores to be fast enough: the table says what they have to
carry.

examples:
  python -m data_tools plan 14197122 --within --against 10000 --nodes 4 --cores 32
  python -m data_tools plan 300e6 --within --distance 8 --nodes 64 --cores 32 --core-hour-price 0.04 --store
  python -m data_tools plan 1e9 --image-bytes 60000 --measure /data/sample
"""
SAMPLE_IMAGES = 200
HASH_BYTES = 1405  # kept on disk, an image
LISTING_BYTES = 100  # of memory in the command, an image
CATALOGUE_BYTES = 54  # likewise, in `dedup`
GET_BYTES = 8 << 20  # of one request of a store
MiB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Costs:
    """Holds milliseconds of one core, an image."""

    make: float = 0.5  # with the bytes kept: read at random, and written
    reencode: float = 7.0  # decoded, made smaller, encoded
    verify: float = 1.7  # decoded
    hashing: float = 9.7  # decoded and hashed
    against: float = 0.3  # for 10,000 test images
    index: float = 0.15

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise DataError(f"the cost of {name} is {value} ms an image, which cannot be")


@dataclass(frozen=True)
class Corpus:
    """Says what is to be prepared.

    Attributes:
        num_images: in the source.
        image_bytes: mean size.
        shard_bytes: size of the shards to be written.
        num_test_images: that must not be in it; 0 for none.
        distance: bits of the search inside the corpus; None for no search.
        is_in_store: whether it is read from and written to an object store.
    """

    num_images: int
    image_bytes: int
    shard_bytes: int
    num_test_images: int = 0
    distance: int | None = None
    is_reencoded: bool = False
    is_in_store: bool = False
    memory_bytes: int = 2 * GIB  # of a worker


@dataclass(frozen=True)
class Step:
    """Says what one step takes."""

    name: str
    core_hours: float
    read_bytes: float
    written_bytes: float
    scratch_bytes: float = 0.0  # of a disk that all nodes share, while it works
    worker_bytes: float = 0.25 * GIB
    note: str = ""


def plan_steps(corpus: Corpus, costs: Costs) -> list[Step]:
    """Return the steps of `prepare`, in their order."""
    data = float(corpus.num_images * corpus.image_bytes)

    def hours(milliseconds: float) -> float:
        return corpus.num_images * milliseconds / 3.6e6

    make_ms = costs.make * (2 if corpus.is_in_store else 1) + (costs.reencode if corpus.is_reencoded else 0.0)
    passes = 2 if corpus.is_in_store else 1
    steps = [
        Step(
            name="make",
            core_hours=hours(make_ms),
            read_bytes=passes * data,
            written_bytes=passes * data,
            scratch_bytes=(passes - 1) * data,
            worker_bytes=corpus.memory_bytes if corpus.is_in_store else 0.25 * GIB,
            note="two passes, through scratch" if corpus.is_in_store else "",
        ),
        Step("verify", hours(costs.verify), data, 0.0),
    ]
    if corpus.num_test_images or corpus.distance is not None:
        hashes = float(corpus.num_images * HASH_BYTES)
        steps.append(Step("dedup: hashing", hours(costs.hashing), data, hashes, hashes))
    if corpus.num_test_images:
        milliseconds = costs.against * math.sqrt(corpus.num_test_images / 10_000)
        steps.append(Step("dedup --against", hours(milliseconds), corpus.num_images * HASH_BYTES, 0.0))
    if corpus.distance is not None:
        steps.append(_within(corpus))
    steps.append(Step("index", hours(costs.index), data if corpus.is_in_store else corpus.num_images * 1024.0, 0.0))
    return steps


def _within(corpus: Corpus) -> Step:
    from data_tools.dedup.join import plan_join

    assert corpus.distance is not None
    join = plan_join(corpus.num_images, distance=corpus.distance, memory_bytes=corpus.memory_bytes)
    traffic = float((corpus.distance + 1) * join.scratch_bytes)
    return Step(
        f"dedup --within, {corpus.distance} bits", join.core_s / 3600, traffic, traffic, join.scratch_bytes, join.worker_bytes
    )


@dataclass(frozen=True)
class Machines:
    """Says what works.

    Attributes:
        bandwidth: bytes a second that the shared disk or the store carries for all nodes together; None if it never decides.
    """

    num_nodes: int
    cores_per_node: int
    bandwidth: float | None = None

    @property
    def num_cores(self) -> int:
        return self.num_nodes * self.cores_per_node

    def hours(self, step: Step) -> float:
        """Return how long a step takes: what its cores need, or what its bytes need if that is longer."""
        carried = 0.0 if self.bandwidth is None else (step.read_bytes + step.written_bytes) / self.bandwidth / 3600
        return max(step.core_hours / self.num_cores, carried)


def tabulate(steps: Sequence[Step], machines: Machines) -> str:
    """Return the steps as a table, with their sum."""
    rows = [("", "core-hours", f"hours on {machines.num_cores:,} cores", "read", "written", "scratch", "memory a worker", "")]
    rows += [
        (
            step.name,
            _number(step.core_hours),
            _number(machines.hours(step))
            + (" (disk)" if machines.hours(step) * machines.num_cores > 1.01 * step.core_hours else ""),
            _size(step.read_bytes),
            _size(step.written_bytes),
            _size(step.scratch_bytes),
            f"{step.worker_bytes / GIB:.1f} GiB",
            step.note,
        )
        for step in steps
    ]
    sums = [sum(getattr(step, name) for step in steps) for name in ("core_hours", "read_bytes", "written_bytes")]
    rows.append(("all", _number(sums[0]), _number(sum(map(machines.hours, steps))), _size(sums[1]), _size(sums[2]), "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    first, *others = widths
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))]).rstrip()
        for row in rows
    )


def remarks(corpus: Corpus, steps: Sequence[Step], machines: Machines) -> list[str]:
    """Return what else has to be there."""
    hours, num_cores = sum(map(machines.hours, steps)), machines.num_cores
    fastest = max((step.read_bytes + step.written_bytes) / machines.hours(step) / 3600 for step in steps)
    num_shards = math.ceil(corpus.num_images * corpus.image_bytes / corpus.shard_bytes)
    command_bytes = corpus.num_images * max(LISTING_BYTES, CATALOGUE_BYTES)
    found = [
        f"{num_shards:,} shards of {_size(corpus.shard_bytes)}: a worker has one at a time, and a lost worker costs so much",
        f"the disks or the store carry up to {_size(fastest)}/s, {_size(fastest / machines.num_nodes)}/s a node"
        + ("; --bandwidth says what yours carry, if it is less" if machines.bandwidth is None else ""),
        f"the command itself needs {command_bytes / GIB:.1f} GiB of memory, for the listing",
        f"kept on disk afterwards: {_size(corpus.num_images * corpus.image_bytes)} of shards"
        + (f", {_size(corpus.num_images * HASH_BYTES)} of hashes" if any("hash" in step.name for step in steps) else ""),
    ]
    if corpus.is_in_store:
        gets = sum(step.read_bytes for step in steps) / GET_BYTES
        puts = corpus.num_images * corpus.image_bytes / GET_BYTES
        found.append(f"requests: {_number(gets / 1e6)} M GET and {_number(puts / 1e6)} M PUT, of {GET_BYTES // MiB} MiB each")
    if num_shards < num_cores:
        found.append(
            f"there are more cores than shards: {num_cores - num_shards:,} of them have nothing to do; make shards smaller"
        )
    if hours > 24 * 7:
        found.append(f"{hours / 24:.0f} days: every step resumes, so jobs of any length will do")
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(num_bytes: float) -> str:
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB" if num_bytes else "0"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("images", type=_count, metavar="IMAGES", help="in the source: 14197122, 300e6, ...")
    command.add_argument("--image-bytes", type=_count, metavar="N", help="mean size (default: 110000, or that of --measure)")
    command.add_argument("--shard-bytes", type=_count, default=10**9, metavar="N", help="default: 1e9")
    command.add_argument("--reencode", action="store_true", help="`make --short-side`: decode and encode images again")
    command.add_argument("--against", type=natural, default=0, metavar="N", help="test images that must not be in the corpus")
    command.add_argument("--within", action="store_true", help="look for copies inside the corpus")
    command.add_argument("--distance", type=natural, default=DEFAULT_DISTANCE, help="of --within (default: %(default)s)")
    command.add_argument("--worker-memory", type=positive, default=2, metavar="GIB", help="default: %(default)s")
    command.add_argument("--store", action="store_true", help="source and shards are in an object store")
    command.add_argument(
        "--bandwidth", type=float, metavar="GB", help="a second, of the shared disk or the store, for all nodes together"
    )
    command.add_argument("--core-hour-price", type=float, default=0.0, metavar="PRICE", help="of one core, in any currency")
    command.add_argument("--measure", metavar="FOLDER", help="shards to measure the costs of an image on, here and now")
    command.add_argument("--json", action="store_true", help="every number, for machines")


def run(arguments: argparse.Namespace) -> None:
    costs, image_bytes = Costs(), arguments.image_bytes or 110_000
    if arguments.measure:
        from data_tools.measure_costs import measure_costs

        costs, measured_bytes = measure_costs(arguments.measure, num_images=SAMPLE_IMAGES)
        image_bytes = arguments.image_bytes or measured_bytes
    corpus = Corpus(
        num_images=arguments.images,
        image_bytes=image_bytes,
        shard_bytes=arguments.shard_bytes,
        num_test_images=arguments.against,
        distance=arguments.distance if arguments.within else None,
        is_reencoded=arguments.reencode,
        is_in_store=arguments.store,
        memory_bytes=arguments.worker_memory * GIB,
    )
    steps = plan_steps(corpus, costs)
    machines = Machines(arguments.nodes, arguments.cores, arguments.bandwidth * 1e9 if arguments.bandwidth else None)
    price = arguments.core_hour_price * sum(step.core_hours for step in steps)
    if arguments.json:
        values: dict[str, Any] = {
            "corpus": asdict(corpus),
            "costs_ms": asdict(costs),
            "machines": asdict(machines),
            "price": price,
        }
        print(json.dumps({**values, "steps": [asdict(step) for step in steps]}, indent=2))
        return
    print(f"{corpus.num_images:,} images of {_size(image_bytes)}, on {arguments.nodes} nodes of {arguments.cores} cores")
    print("ms of a core, an image: " + ", ".join(f"{name} {value:.3g}" for name, value in asdict(costs).items()))
    print(f"\n{tabulate(steps, machines)}\n")
    print("\n".join(f"- {line}" for line in remarks(corpus, steps, machines)))
    if price:
        print(f"- cores: {price:,.2f}")


def _count(text: str) -> int:
    value = float(text)
    if not (value >= 1 and value == int(value) and value < 1e13):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 1e13")
    return int(value)
