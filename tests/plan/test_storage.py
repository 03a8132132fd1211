"""Requests of a real order agree with the formula."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.order import CorpusOrder
from pipeline.plan.memory import ParameterSizes
from pipeline.plan.storage import moments_bytes, reading_rates, weights_bytes
from pipeline.run.checkpoint import RunFolder
from pipeline.run.weights import load_weights


def test_a_checkpoints_size_is_foreseen(reference: RunFolder) -> None:
    """The prediction is right to the byte, except the headers of its files."""
    step = reference.checkpoint_steps()[-1]
    model = load_weights(reference.weights_of(step)).model
    sizes = ParameterSizes((tuple(parameter.numel() for parameter in model.parameters()),))
    files = list(reference.checkpoint_of(step).glob("*.safetensors"))
    headers = [8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files]
    moments = sum(file.stat().st_size for file in files) - sum(headers) - weights_bytes(sizes)
    assert moments == moments_bytes(sizes, optimizer_bytes=8)


@pytest.mark.parametrize("num_streams", [16, 256])
def test_an_epochs_reads_are_foreseen(num_streams: int) -> None:
    """Each stream reads a block when it reaches it and keeps no other."""
    block_samples = np.full(300, 32, np.uint16)
    block_samples[::50] = 7
    order = CorpusOrder(block_samples, seed=1, num_streams=num_streams)
    reads = 0
    for stream in range(num_streams):
        _, blocks, _ = order.locate(np.arange(stream, order.num_samples, num_streams))
        reads += 1 + np.count_nonzero(np.diff(blocks))
    rates = reading_rates(
        images_per_s=order.num_samples,
        image_bytes=1.0,
        block_samples=order.num_samples / order.num_blocks,
        num_samples=order.num_samples,
        num_streams=num_streams,
        images_per_s_per_core=600.0,
        num_nodes=1,
    )
    assert order.num_blocks <= reads <= rates.requests_per_s == pytest.approx(order.num_blocks + 2 * num_streams)
