"""Compute on paper what it takes to prepare a corpus: hours of cores and of a cluster, traffic, disk, memory and money."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from data_tools.arguments import natural, positive
from data_tools.dedup.matching import DEFAULT_DISTANCE

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
GIB = 1 << 30


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
    from data_tools.plan.steps import Corpus, Costs, Machines, plan_steps
    from data_tools.plan.text import remarks, tabulate
    from pipeline.console.words import size

    costs, image_bytes = Costs(), arguments.image_bytes or 110_000
    if arguments.measure:
        from data_tools.plan.measure import measure_costs

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
    print(f"{corpus.num_images:,} images of {size(image_bytes)}, on {arguments.nodes} nodes of {arguments.cores} cores")
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
