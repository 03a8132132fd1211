"""Write a forecast as a table for people, and as JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from pipeline.console.words import duration
from pipeline.image_size import describe_size
from pipeline.json_text import to_finite
from pipeline.plan.failures import Simulation
from pipeline.plan.forecast import Forecast
from pipeline.plan.stages import StageMemory

GIB = 2**30
WORTH_A_WORD = 0.02  # part of a step
NEVER_ENDS = 0.999  # lost part of the time from which no date is given


def to_json(forecast: Forecast, simulation: Simulation | None) -> str:
    """Return every number, in units of one: bytes, seconds, FLOPs."""
    values: dict[str, Any] = dataclasses.asdict(forecast)
    if simulation is not None:
        values["simulation"] = {"best_interval_s": simulation.best_interval_s, **mean_losses(simulation)}
    return json.dumps(to_finite(values), indent=2)


def mean_losses(simulation: Simulation) -> dict[str, list[float]]:
    """Return the mean lost part by interval."""
    return {"intervals_s": simulation.intervals_s.tolist(), "mean_lost": simulation.lost.mean(axis=0).tolist()}


def to_text(forecast: Forecast, simulation: Simulation | None) -> str:
    """Return the whole forecast, a section after another."""
    sections = [
        _heading(forecast),
        _memory_section(forecast),
        _section("Compute", _compute_rows(forecast)),
        _section("Data", _data_rows(forecast)),
        _section("Checkpoints and failures", _checkpoint_rows(forecast)),
    ]
    if simulation is not None:
        sections.append(_section("Simulated: 30 days of it", _simulation_rows(forecast, simulation)))
    return "\n\n".join(sections)


def _heading(forecast: Forecast) -> str:
    cluster = forecast.cluster
    gpus = _count(forecast.num_gpus, "GPU")
    return (
        f"{forecast.name}: {forecast.model_name} at {describe_size(forecast.model.image_size)}, "
        f"{forecast.num_parameters / 1e6:.1f} M parameters, on {_count(cluster.num_nodes, 'node')} of {cluster.gpus_per_node} "
        f"{forecast.gpu_name} ({gpus})"
    )


def _memory_section(forecast: Forecast) -> str:
    header = [
        "ZeRO",
        "precision",
        "weights",
        "masters",
        "gradients",
        "moments",
        "activations",
        "buffers",
        "sum",
        "fits",
        "fits at most",
    ]
    rows = [header, *(_memory_row(memory) for memory in forecast.memory)]
    micro = f"{_count(forecast.micro_batch_size, 'image')} at once" + (
        f", {forecast.accumulation_steps} times a step" if forecast.accumulation_steps > 1 else ""
    )
    chosen = next(memory for memory in forecast.memory if memory.chosen)
    return "\n".join(
        [
            f"Memory of a GPU, GiB: {micro}; {forecast.memory_bytes / GIB:.0f} GiB may be used "
            f"({forecast.cluster.headroom:.0%} kept back)",
            columns(rows),
            _memory_advice(forecast, chosen),
        ]
    )


def _memory_row(memory: StageMemory) -> list[str]:
    state = memory.state
    parts = [state.parameters, state.masters, state.gradients, state.moments, memory.activations, state.buffers, memory.total]
    most = _count(memory.largest_micro_batch, "image") if memory.largest_micro_batch else "nothing"
    return [
        f"{memory.stage}{' *' if memory.chosen else ''}",
        memory.precision,
        *(f"{part / GIB:.2f}" for part in parts),
        "yes" if memory.fits else "NO",
        most,
    ]


def _memory_advice(forecast: Forecast, chosen: StageMemory) -> str:
    if chosen.fits:
        return f"* the configuration's: it fits, with {(forecast.memory_bytes - chosen.total) / GIB:.1f} GiB to spare"
    again = ""
    if chosen.fitting_checkpointing is not None:
        again = (
            f"trainer.activation_checkpointing={chosen.fitting_checkpointing}, with which the batch fits and "
            f"{chosen.recomputed:.0%} is computed again"
        )
    if chosen.usable_micro_batch:
        return (
            f"* the configuration's: it does not fit; set trainer.micro_batch_size={chosen.usable_micro_batch}, which cuts a "
            f"GPU's share of a batch into the fewest parts that do{f', or {again}' if again else ''}"
        )
    if again:
        return f"* the configuration's: it does not fit; set {again}"
    if chosen.largest_micro_batch:
        return (
            f"* the configuration's: one image fits, but {forecast.num_gpus} GPUs do not divide a batch of "
            f"{forecast.global_batch_size}: their shares are not as many parts of one; take as many GPUs as divide it, another "
            "ZeRO stage or a larger GPU"
        )
    return "* the configuration's: not even one image fits; another ZeRO stage, a larger GPU or more of them"


def _compute_rows(forecast: Forecast) -> list[tuple[str, str]]:
    compute, cluster = forecast.compute, forecast.cluster
    repeated = f", each {forecast.corpus.repeats} times" if forecast.corpus.repeats > 1 else ""
    epochs = "" if compute.epochs is None else f", {compute.epochs:.4g} epochs of {forecast.corpus.num_samples:,}{repeated}"
    rows = [
        ("steps", f"{compute.steps:,} of {forecast.global_batch_size:,} images"),
        ("images", f"{compute.images:,}{epochs}"),
        (
            "operations",
            f"{compute.flops / 1e18:,.4g} exaFLOP, {compute.flops_per_image / 1e9:,.4g} GFLOP an image{_again(forecast)}",
        ),
        ("speed", f"{compute.images_per_s:,.0f} images/s, {duration(compute.step_s)} a step, at {_utilisation(forecast)}"),
        ("time", f"{duration(compute.seconds)} of steps; {_with_losses(forecast)}"),
        ("GPU hours", f"{compute.gpu_hours:,.0f}"),
    ]
    if forecast.network.traffic_bytes:
        rows.append(("network", _network(forecast)))
    if compute.cost is not None:
        lost = forecast.checkpoints.lost
        with_lost = f"; {compute.cost / (1 - lost):,.0f} with failures" if lost < NEVER_ENDS else ""
        rows.append(("cost", f"{compute.cost:,.0f} at {cluster.price:g} a GPU hour{with_lost}"))
    return rows


def _again(forecast: Forecast) -> str:
    compute = forecast.compute
    if not compute.recomputed_flops_per_image:
        return ""
    return f", and {compute.recomputed_flops_per_image / compute.flops_per_image:.0%} more for activation checkpointing"


def _utilisation(forecast: Forecast) -> str:
    compute = forecast.compute
    mfu = forecast.cluster.mfu * compute.computing_s / compute.step_s
    if not compute.recomputed_flops_per_image:
        return f"{mfu:.0%} MFU"
    counted = compute.flops_per_image / (compute.flops_per_image + compute.recomputed_flops_per_image)
    return f"{mfu * counted:.0%} MFU ({mfu:.0%} with what is computed again)"


def _network(forecast: Forecast) -> str:
    network, cluster, computing = forecast.network, forecast.cluster, forecast.compute.computing_s
    longer = network.waiting_s / computing
    most = cluster.mfu / (1 + longer)
    verdict = f"the step takes {longer:.0%} longer"
    if longer > 1:
        verdict = f"LONGER than computing: {most:.0%} MFU; use fewer nodes or a larger batch"
    advice = ""
    if network.stage_2_waiting_s is not None and longer > WORTH_A_WORD:
        other = network.stage_2_waiting_s / computing
        if other < 0.7 * longer:
            advice = f"; trainer.zero_stage=2 reduces next to the backward pass: {other:.0%}"
    source = "" if cluster.network_measured_on is None else f" (measured on {cluster.network_measured_on} machines)"
    return (
        f"{network.traffic_bytes / 1e9:.2f} GB from each node a step, {duration(network.seconds)} at "
        f"{cluster.network_gb_per_s:.4g} GB/s{source}: {verdict}{advice}"
    )


def _with_losses(forecast: Forecast) -> str:
    lost = forecast.checkpoints.lost
    if lost >= NEVER_ENDS:
        return "with failures it never ends (below)"
    return f"{duration(forecast.compute.seconds / (1 - lost))} with failures (below)"


def _data_rows(forecast: Forecast) -> list[tuple[str, str]]:
    reading, corpus, cluster = forecast.reading, forecast.corpus, forecast.cluster
    each = reading.bytes_per_s / cluster.num_nodes
    why = [("no index", corpus.unread)] if corpus.unread else []
    return [
        ("images", f"{corpus.image_bytes / 1e3:,.3g} kB, {corpus.block_samples:.3g} a block, {corpus.source}"),
        *why,
        ("store", f"{_rate(reading.bytes_per_s)} and {reading.requests_per_s:,.0f} requests/s; {_rate(each)} a node"),
        ("decoding", f"{math.ceil(reading.cores_per_node)} cores a node at {cluster.images_per_s_per_core:g} images/s each"),
    ]


def _checkpoint_rows(forecast: Forecast) -> list[tuple[str, str]]:
    checkpoints = forecast.checkpoints
    costs, node_mtbf_hours = checkpoints.interruptions, forecast.cluster.node_mtbf_hours
    return [
        (
            "size",
            f"{checkpoints.checkpoint_bytes / 1e9:.2f} GB, of which {checkpoints.weights_bytes / 1e9:.2f} GB are the fp32 "
            "weights, which are kept",
        ),
        ("disk", f"{checkpoints.kept_bytes / 1e9:,.0f} GB kept at the end"),
        (
            "failures",
            f"one in {duration(costs.mtbf_s)} ({node_mtbf_hours:,.0f} hours a node), {checkpoints.expected_failures:.3g} "
            "in the run",
        ),
        ("assumed", f"{duration(costs.save_s)} to save, {duration(costs.restart_s)} from a failure to the next step"),
        (
            "as configured",
            f"every {checkpoints.interval_steps:,} steps, {duration(checkpoints.interval_s)}: {_percent(checkpoints.lost)} "
            "lost",
        ),
        ("Young", f"every {duration(checkpoints.young_s)}"),
        ("Daly", f"every {_interval(forecast, checkpoints.daly_s)}: {_percent(checkpoints.lost_at_daly)} lost"),
    ]


def _simulation_rows(forecast: Forecast, simulation: Simulation) -> list[tuple[str, str]]:
    checkpoints = forecast.checkpoints
    mean = simulation.lost.mean(axis=0)
    return [
        (
            "best interval",
            f"{_interval(forecast, simulation.best_interval_s)}: {_percent(float(mean.min()))} lost on average of "
            f"{len(simulation.lost)} runs",
        ),
        (
            "formulas",
            f"Young {duration(checkpoints.young_s)}, Daly {duration(checkpoints.daly_s)}: "
            f"{_percent(checkpoints.lost_at_daly)} lost",
        ),
    ]


def _interval(forecast: Forecast, seconds: float) -> str:
    steps = max(1, round(seconds / forecast.compute.step_s))
    return f"{duration(seconds)}, {steps:,} steps{', longer than the run' if steps > forecast.compute.steps else ''}"


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:<14} {value}" for name, value in rows)])


def columns(rows: list[list[str]]) -> str:
    """Align rows of words in columns; the first two columns to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _percent(part: float) -> str:
    return f"{part:.1%}" if part >= 0.001 else f"{part:.3%}"


def _rate(bytes_per_s: float) -> str:
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:,.0f} {unit}" if bytes_per_s >= 100 * size else f"{bytes_per_s / size:.3g} {unit}"
    return f"{bytes_per_s / 1e3:.3g} kB/s"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"
