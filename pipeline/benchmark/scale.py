"""Measure what planning costs for a corpus and a cluster far larger than this machine (`benchmark scale`). No image is read."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES, ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.scan import ShardEntry
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.data.streams.train import Division, share_of

IMAGE_BYTES = 110_000  # size of a median ImageNet photo
STEPS = 64
FAR = 10**9


def measure_scale(*, num_shards: int, samples_per_shard: int, num_ranks: int, num_workers: int, global_batch_size: int) -> str:
    """Write an index of such a corpus, plan one worker of such a cluster in a fresh process, and return a table."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        save_index(assemble_index(folder, [_entry(number, samples_per_shard) for number in range(num_shards)]))
        written_s = time.perf_counter() - begin
        index_mib = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        settings = {
            "folder": folder,
            "num_ranks": num_ranks,
            "num_workers": num_workers,
            "global_batch_size": global_batch_size,
        }
        answer = subprocess.run(
            [sys.executable, "-m", "pipeline.benchmark.scale", json.dumps(settings)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    worker = json.loads(answer.stdout)
    share = -(-global_batch_size // (num_ranks * num_workers))
    rows = {
        "samples, shards, blocks": f"{num_shards * samples_per_shard:,}, {num_shards:,}, {worker['blocks']:,}",
        "ranks x workers, global batch": f"{num_ranks:,} x {num_workers}, {global_batch_size:,}: {share} images a worker "
        "and step",
        "index file": f"{index_mib:.0f} MiB, mapped, shared by all processes of a machine; written in {written_s:.1f} s",
        "a worker's start: map the index, make the order, find its first samples": f"{worker['start_s']:.2f} s",
        f"the same at position {FAR:.0e}": f"{worker['far_s']:.2f} s",
        "a worker's memory for it (private)": f"{worker['mib']:.1f} MiB",
        "finding a sample": f"{worker['locate_us']:.1f} us",
        "blocks a worker reads a step": f"{worker['reads_per_step']:.3f} ({share / DEFAULT_BLOCK_SAMPLES:.3f} at least)",
        "all ranks together, at 1 step/s": f"{worker['reads_per_step'] * num_ranks * num_workers:,.0f} requests/s, "
        f"{worker['reads_per_step'] * num_ranks * num_workers * DEFAULT_BLOCK_SAMPLES * IMAGE_BYTES / 1e9:.1f} GB/s",
        "shards a worker has open": f"{worker['open_shards']}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _entry(number: int, samples: int) -> ShardEntry:
    counts = np.full(-(-samples // DEFAULT_BLOCK_SAMPLES), DEFAULT_BLOCK_SAMPLES, np.uint16)
    counts[-1] = samples - DEFAULT_BLOCK_SAMPLES * (len(counts) - 1)
    sizes = counts.astype(np.int64) * IMAGE_BYTES
    return ShardEntry(
        name=f"shard-{number:06d}.tar",
        num_bytes=int(sizes.sum()),
        block_offset=np.cumsum(sizes) - sizes,
        block_bytes=sizes,
        block_samples=counts,
        skipped_block=np.zeros(0, np.int64),
        skipped_slot=np.zeros(0, np.uint16),
        num_skipped=0,
        block_content=np.arange(len(counts), dtype=np.uint64),
        images_of={0: int(counts.sum())},
        num_unlabelled=0,
        num_several=0,
    )


def plan_worker(*, folder: str, num_ranks: int, num_workers: int, global_batch_size: int) -> dict[str, float]:
    """Return what one worker process of the last rank does before and while it reads."""
    np.argsort(np.arange(10))  # what numpy loads at first use does not count as the order's cost
    sent = pickle.dumps(load_index(folder))  # the process that starts the workers has checked it
    before, begin = psutil.Process().memory_full_info().uss, time.perf_counter()
    index: ShardIndex = pickle.loads(sent)
    order = Mixture((Corpus(index),)).make_order(seed=0, num_streams=global_batch_size)
    division = Division(global_batch_size=global_batch_size, rank=num_ranks - 1, world_size=num_ranks, accumulation_steps=1)
    slots = share_of(division.micro_batch_size, part=num_workers - 1, num_parts=num_workers)
    order.locate(division.positions(step=0, micro_step=0)[slots])
    start_s = time.perf_counter() - begin
    first_far_step, begin = FAR // global_batch_size, time.perf_counter()
    steps = [division.positions(step=first_far_step + step, micro_step=0)[slots] for step in range(STEPS)]
    order.locate(steps[0])
    far_s, begin = time.perf_counter() - begin, time.perf_counter()
    blocks = [order.locate(positions).block for positions in steps]
    locate_s = time.perf_counter() - begin
    new = sum(len(np.setdiff1d(now, before)) for before, now in itertools.pairwise(blocks))
    return {
        "blocks": index.num_blocks,
        "start_s": start_s,
        "far_s": far_s,
        "locate_us": 1e6 * locate_s / sum(map(len, steps)),
        "mib": (psutil.Process().memory_full_info().uss - before) / 2**20,
        "reads_per_step": new / (STEPS - 1),
        "open_shards": len({index.byte_range(int(block)).shard for block in blocks[-1]}),
    }


if __name__ == "__main__":
    print(json.dumps(plan_worker(**json.loads(sys.argv[1]))))
