"""Give Lightning's trainer a data module with an endless loader that starts at the run's own step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from pipeline.data.streams.loader import Batch, BatchLoader, Stream


class StreamDataModule(LightningDataModule):
    """Serves one stream. The stream decides where to start; Lightning never fast-forwards it."""

    def __init__(self, stream: Stream, *, num_workers: int, prefetch: int) -> None:
        super().__init__()
        self._stream = stream
        self._num_workers = num_workers
        self._prefetch = prefetch

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(
            self._stream,
            num_workers=self._num_workers,
            prefetch=self._prefetch,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> dict[str, Any]:
        """Only what the device needs goes there; ids and positions stay for messages."""
        moved = {name: batch[name].to(device, non_blocking=True) for name in ("images", "labels", "label_ends")}
        if device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
            batch["when_copied"].append(copied.synchronize)
        return {**batch, **moved}
