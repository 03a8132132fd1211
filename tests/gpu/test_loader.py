"""Batches reach the device whole: nothing is written into their memory while a late copy still reads it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from pipeline.data.streams.datamodule import StreamDataModule
from pipeline.data.streams.loader import BatchLoader
from tests.helpers.streams import TRANSFORM, make_stream

pytestmark = pytest.mark.gpu
BATCHES = 24
SLEEP_CYCLES = 60_000_000  # a few hundredths of a second: longer than the workers take for a batch


@pytest.fixture(scope="module")
def expected(corpus: Path) -> list[torch.Tensor]:
    """Load the same batches in this process, and copy them at once."""
    loader = BatchLoader(make_stream(corpus, transform=TRANSFORM), num_workers=0, prefetch=1, pin_memory=False)
    return [batch["images"].clone() for batch in itertools.islice(loader, BATCHES)]


def load(corpus: Path, device: torch.device, *, waits: bool) -> list[torch.Tensor]:
    """Copy batches to the device behind work that keeps its stream busy. Return them when all copies have ended."""
    data = StreamDataModule(make_stream(corpus, transform=TRANSFORM), num_workers=2, prefetch=2)
    moved = []
    for batch in itertools.islice(data.train_dataloader(), BATCHES):
        if device.type == "cuda":
            torch.cuda._sleep(SLEEP_CYCLES)
        moved.append(data.transfer_batch_to_device(batch, device, 0)["images"])
        if device.type != "cuda":  # there nothing is copied: `valid until the third one after it`
            moved[-1] = moved[-1].clone()
        if not waits:
            batch["when_copied"].clear()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return [images.cpu() for images in moved]


def test_a_slow_consumer_sees_the_right_pixels(corpus: Path, device: torch.device, expected: list[torch.Tensor]) -> None:
    found = load(corpus, device, waits=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_without_waiting_it_would_not(corpus: Path, device: torch.device, expected: list[torch.Tensor]) -> None:
    """The race is real: the test above fails where nobody waits for copies."""
    if device.type != "cuda":
        pytest.skip("nothing is copied later on a CPU")
    found = load(corpus, device, waits=False)
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
