"""Compute what a run will need and cost, on paper."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.options import add_config, read_run
from pipeline.errors import ConfigError
from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.plan.cluster import Cluster

NETWORK_GB = 400.0  # eight cards of 400 Gb/s
EPILOG = (
    "examples:\n  python -m pipeline plan configs/l16_in21k.yaml --nodes 4 --samples 14197122 --price 2.50\n"
    "  python -m pipeline plan configs/h14_in21k.yaml trainer.zero_stage=2 --nodes 16 --gpu h200 --samples 14197122 "
    "--simulate lost.png\n\n"
    "Where data.train has an index, the number and size of images are read from it. docs/planning.md has the formulas."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command)
    _add_cluster(command)


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.plan.forecast import make_forecast
        from pipeline.plan.plot import draw_simulation, simulate_failures
        from pipeline.plan.text import to_json, to_text

    cluster = _read_cluster(arguments)
    config = read_run(arguments.config, arguments.overrides)
    forecast = make_forecast(config, cluster=cluster, num_samples=arguments.samples, image_bytes=arguments.image_bytes)
    simulation = simulate_failures(forecast.checkpoints) if arguments.simulate else None
    if simulation is not None:
        draw_simulation(simulation, forecast=forecast, path=Path(arguments.simulate))
    print((to_json if arguments.json else to_text)(forecast, simulation))
    return 0


def _number(text: str) -> float:
    value = float(text.replace("_", ""))
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _whole_number(text: str) -> int:
    """Parse an int that may be written 14.2e6 or 14_197_122."""
    value = _number(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


_number.__name__, _whole_number.__name__ = "number", "whole number"  # argparse says "invalid number value"


def _add_cluster(command: argparse.ArgumentParser) -> None:
    """Add the options that `read_cluster` reads, and those of the corpus and the output."""
    command.add_argument("--nodes", type=_whole_number, required=True, metavar="N", help="machines")
    command.add_argument(
        "--gpu",
        default="h100",
        metavar="NAME",
        help="a data sheet's of pipeline/distributed/hardware.py; a100 has 80 GB (default: h100)",
    )
    for flag, kind, default, text in (
        ("--gpus-per-node", _whole_number, 8, "one rank each"),
        ("--gpu-memory-gib", _number, None, "of one GPU; the data sheet's if not given"),
        ("--headroom", _number, 0.1, "part of the memory left to CUDA, NCCL and fragments"),
        ("--mfu", _number, 0.4, "model FLOP/s utilisation of one node; what it waits for others is added"),
        ("--price", _number, None, "of a GPU hour, in any currency"),
        ("--samples", _whole_number, None, "images in the corpus; the index's if not given"),
        ("--image-bytes", _number, None, "mean size of an image; the index's, else 110000"),
        (
            "--network-gb",
            _number,
            None,
            f"GB/s that a node sends; if not given that of --measured, else {NETWORK_GB:g}, of eight 400 Gb/s cards",
        ),
        ("--images-per-core", _number, 600.0, "images that one core decodes a second"),
        (
            "--node-mtbf-hours",
            _number,
            None,
            "between failures of a node; if not given Llama 3's, 6335: 419 in 54 days on 2,048 nodes",
        ),
        ("--save-seconds", _number, 10.0, "that training waits for a checkpoint (files are written while it goes on)"),
        ("--restart-seconds", _number, 600.0, "from a failure to the next step"),
    ):
        shown = text if default is None else f"{text} (default: {default:g})"
        command.add_argument(flag, type=kind, default=default, metavar="N", help=shown)
    command.add_argument(
        "--measured", type=Path, metavar="FILE", help="of `preflight --json` on several machines: what their network does"
    )
    command.add_argument(
        "--simulate", metavar="FILE", help="play 30 days with failures; draw the time lost against the checkpoint interval"
    )
    command.add_argument("--json", action="store_true", help="every number, in bytes, seconds and FLOPs")


def _read_cluster(arguments: argparse.Namespace) -> Cluster:
    """Return the cluster that the options describe."""
    from pipeline.plan.cluster import Cluster
    from pipeline.plan.failures import LLAMA_3_NODE_MTBF_HOURS
    from pipeline.plan.measured import read_network

    node_mtbf_hours, network_gb, network = arguments.node_mtbf_hours, arguments.network_gb, None
    if arguments.measured is not None:
        if network_gb is not None:
            raise ConfigError("--network-gb and --measured both say what the network does: give one")
        network = read_network(arguments.measured)
        network_gb = network.gb_per_s
    return Cluster(
        gpu=arguments.gpu,
        num_nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu_memory_gib=arguments.gpu_memory_gib,
        headroom=arguments.headroom,
        mfu=arguments.mfu,
        price=arguments.price,
        network_gb_per_s=NETWORK_GB if network_gb is None else network_gb,
        network_measured_on=None if network is None else network.num_machines,
        save_s=arguments.save_seconds,
        restart_s=arguments.restart_seconds,
        node_mtbf_hours=LLAMA_3_NODE_MTBF_HOURS if node_mtbf_hours is None else node_mtbf_hours,
        images_per_s_per_core=arguments.images_per_core,
    )
