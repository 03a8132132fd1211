"""Make the batch that contenders of `benchmark train` use again and again."""

from __future__ import annotations

import torch

from pipeline.config.resolve import ResolvedRun
from pipeline.data.streams.loader import Batch
from pipeline.image_size import height_and_width


def make_batch(run: ResolvedRun, *, device: torch.device) -> Batch:
    """Return a rank's batch of random pixels and labels. The images are on the device."""
    count, size = run.micro_batch_size, height_and_width(run.model.image_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, run.model.num_classes, (count,), generator=generator)
    return Batch(
        images=images.to(device),
        loss_weight=1.0,
        labels=labels.to(device),
        label_ends=torch.arange(1, count + 1).to(device),
        sample_ids=torch.arange(count),
        positions=torch.arange(count),
        unreadable=[],
        retries=[],
        wait_s=0.0,
        digest=1,
        when_copied=[],
    )
