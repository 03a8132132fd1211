"""Write down for people what preparing a corpus takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_tools.plan.steps import HASH_BYTES, Corpus, Machines, Step
from pipeline.console.words import size

LISTING_BYTES = 100  # of memory in the command, an image
GET_BYTES = 8 << 20  # of one request of a store
MiB, GIB = 1 << 20, 1 << 30


def tabulate(steps: Sequence[Step], machines: Machines) -> str:
    """Return the steps as a table, with their sum."""
    rows = [("", "core-hours", f"hours on {machines.num_cores:,} cores", "read", "written", "scratch", "memory a worker", "")]
    rows += [
        (
            step.name,
            _number(step.core_hours),
            _number(machines.hours(step))
            + (" (disk)" if machines.hours(step) * machines.num_cores > 1.01 * step.core_hours else ""),
            size(step.read_bytes),
            size(step.written_bytes),
            size(step.scratch_bytes),
            f"{step.worker_bytes / GIB:.1f} GiB",
            step.note,
        )
        for step in steps
    ]
    sums = [sum(getattr(step, name) for step in steps) for name in ("core_hours", "read_bytes", "written_bytes")]
    rows.append(("all", _number(sums[0]), _number(sum(map(machines.hours, steps))), size(sums[1]), size(sums[2]), "", "", ""))
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
    command_bytes = corpus.num_images * LISTING_BYTES
    found = [
        f"{num_shards:,} shards of {size(corpus.shard_bytes)}: a worker has one at a time, and a lost worker costs so much",
        f"the disks or the store carry up to {size(fastest)}/s, {size(fastest / machines.num_nodes)}/s a node"
        + ("; --bandwidth says what yours carry, if it is less" if machines.bandwidth is None else ""),
        f"the command itself needs {command_bytes / GIB:.1f} GiB of memory, for the listing",
        f"kept on disk afterwards: {size(corpus.num_images * corpus.image_bytes)} of shards"
        + (f", {size(corpus.num_images * HASH_BYTES)} of hashes" if any("hash" in step.name for step in steps) else ""),
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
