"""What the trainer is handed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from pipeline.data.streams.datamodule import StreamDataModule
from tests.helpers.streams import BATCH, keep, make_stream


def test_the_loader_starts_at_the_runs_own_step_each_time(corpus: Path) -> None:
    """Lightning may ask for another loader, or iterate one twice."""
    data = StreamDataModule(make_stream(corpus, start_step=3), num_workers=0, prefetch=2)
    loader = data.train_dataloader()
    for again in (loader, loader, data.train_dataloader()):
        positions = [keep(batch)["positions"].tolist() for batch in islice(again, 2)]
        assert positions == [list(range(start * BATCH, (start + 1) * BATCH)) for start in (3, 4)]


def test_images_and_labels_go_to_the_device_and_nothing_else(corpus: Path) -> None:
    data = StreamDataModule(make_stream(corpus), num_workers=0, prefetch=2)
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.keys() == batch.keys()
    for name, value in moved.items():
        if name in ("images", "labels", "label_ends"):
            assert (value.device.type, value.shape, value.dtype) == ("meta", batch[name].shape, batch[name].dtype)  # type: ignore[literal-required]
        else:
            assert value is batch[name]  # type: ignore[literal-required]
    assert batch["images"].device.type == "cpu"
