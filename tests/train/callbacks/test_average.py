"""The running average of the weights in a real training: what it is, and that checkpoints hold and publish it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.optim.adamw import AdamW
from pipeline.optim.average import AverageSection
from pipeline.run.checkpoint import AVERAGE_FILE, RunFolder
from pipeline.run.folder import WeightsName
from pipeline.run.weights import read_weights_header
from tests.helpers.one_rank import LEARNING_RATE, fit, make_module
from tests.train.callbacks.test_checkpointing import make_batches, make_checkpointing

pytestmark = pytest.mark.usefixtures("rank")
DECAY = 0.75
BAD = 3  # a step that is refused


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    return run


def average_after(steps: int) -> dict[str, Tensor]:
    """By the formula, over torch's own AdamW, in double precision."""
    model = make_module().model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    average = {name: p.detach().double() for name, p in model.named_parameters()}
    for step, batch in enumerate(make_batches(steps), start=1):
        if step == BAD:
            continue
        F.cross_entropy(model(batch["images"]), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        average = {name: DECAY * average[name] + (1 - DECAY) * p.detach().double() for name, p in model.named_parameters()}
    return average


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_each_checkpoint_publishes_the_average(zero_stage: int, folder: RunFolder) -> None:
    section = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0, average=AverageSection(decay=DECAY))
    checkpointing = make_checkpointing(folder)
    fit([checkpointing], make_batches(6, bad=[BAD]), folder=folder.root, max_steps=6, zero_stage=zero_stage, section=section)
    names = [WeightsName(0), *(WeightsName(step, kind) for step in (2, 4, 6) for kind in ("raw", "average"))]
    assert folder.weight_names() == names
    for step in (2, 4, 6):
        path = folder.weights_of(step, "average")
        held = safetensors.torch.load_file(path)
        expected = average_after(step)
        assert held.keys() == expected.keys()
        for name, tensor in held.items():  # fp32, of values around 1: a few roundings of 6e-8
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-6, rtol=0)
        checkpoint = folder.checkpoint_of(step)
        assert path.samefile(checkpoint / AVERAGE_FILE)
        assert AVERAGE_FILE in json.loads((checkpoint / "manifest.json").read_text())
        header, raw = read_weights_header(path), read_weights_header(folder.weights_of(step))
        assert (header.kind, raw.kind) == ("average", "raw")
        assert (header.step, header.images_seen) == (raw.step, raw.images_seen)
        assert header.digest != raw.digest
        assert not [
            key for file in checkpoint.glob("moments-*") for key in safetensors.torch.load_file(file) if "average" in key
        ]


def test_without_an_average_nothing_of_it_is_written(folder: RunFolder) -> None:
    fit([make_checkpointing(folder)], make_batches(2), folder=folder.root, max_steps=2)
    assert folder.weight_names() == [WeightsName(0), WeightsName(2)]
    assert not (folder.checkpoint_of(2) / AVERAGE_FILE).exists()
