"""The cost of planning is measured on an index that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.benchmark.scale import IMAGE_BYTES, STEPS, _entry, measure_scale, plan_worker
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES, assemble_index, load_index, save_index


@pytest.mark.parametrize("samples", [1, 32, 33, 100])
def test_a_shard_that_is_made_up_holds_its_samples_in_whole_blocks(samples: int) -> None:
    entry = _entry(7, samples)
    assert entry.block_samples.sum() == samples
    assert entry.block_samples[:-1].tolist() == [DEFAULT_BLOCK_SAMPLES] * (len(entry.block_samples) - 1)
    assert 0 < entry.block_samples[-1] <= DEFAULT_BLOCK_SAMPLES
    assert (entry.block_offset[1:] == entry.block_offset[:-1] + entry.block_bytes[:-1]).all()
    assert entry.num_bytes == samples * IMAGE_BYTES == entry.block_offset[-1] + entry.block_bytes[-1]


def test_a_worker_reads_its_share_of_the_blocks(tmp_path: Path) -> None:
    """A step has 64 images, 16 for each of 4 workers: half a block, and more for streams that begin inside blocks."""
    save_index(assemble_index(str(tmp_path), [_entry(number, 320) for number in range(50)]))
    index = load_index(str(tmp_path))
    assert index.num_samples == 16_000
    found = plan_worker(folder=str(tmp_path), num_ranks=2, num_workers=2, global_batch_size=64)
    assert found["blocks"] == 500
    least = 16 / DEFAULT_BLOCK_SAMPLES
    assert least * 0.8 < found["reads_per_step"] < least * 1.3
    assert 1 <= found["open_shards"] <= 16
    assert np.isfinite([found["start_s"], found["far_s"], found["locate_us"], found["mib"]]).all()
    assert STEPS > DEFAULT_BLOCK_SAMPLES  # every stream changes its block


@pytest.mark.slow
def test_the_table_is_of_what_was_asked_for() -> None:
    table = measure_scale(num_shards=40, samples_per_shard=400, num_ranks=2, num_workers=4, global_batch_size=64)
    assert "| samples, shards, blocks | 16,000, 40, 520 |" in table
    assert "| ranks x workers, global batch | 2 x 4, 64: 8 images a worker and step |" in table
