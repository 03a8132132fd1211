"""Measure how far a Vision Transformer's attention reaches: the paper's appendix D.7, figure 11, as one number a checkpoint."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.data.shards.index import ShardIndex
from pipeline.errors import EvaluationError
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import ModelProtocol, Setting, Subject
from pipeline.evaluation.reading import read_batches
from pipeline.functional.attention_maps import mean_attention_distance
from pipeline.models.vit.encoder import EncoderBackbone

IMAGES_AT_ONCE = 8  # the attention weights of all layers are held


class AttentionDistance(ModelProtocol):
    """Measures the mean distance between a patch and what it attends to, over all heads and blocks (paper, appendix D.7)."""

    protocol: Literal["attention_distance"] = "attention_distance"
    images: int = Field(default=128, ge=1, description="test images, of blocks drawn by a fixed seed (the paper takes 128)")

    def settings(self) -> list[Setting]:
        return [Setting("attention distance")]

    def measure_model(self, subject: Subject, setting: Setting) -> Measured:
        """Measure a setting: as a part of the image's longer side, by block in `by_block`.

        Raises:
            EvaluationError: the model has no attention between patches, or no image can be read.
        """
        del setting
        model = subject.weights.model
        if not isinstance(model, EncoderBackbone):
            family = subject.weights.header.model.family
            raise EvaluationError(f"attention distance is of Vision Transformers and hybrids; this is of family {family}")
        total: Tensor | None = None
        seen = 0
        for images in self._read(subject):
            grid, patch_size = model.config.grid, images.shape[-2] / model.config.grid[0]
            layers = model.attention_weights(images)
            distances = torch.stack(
                [mean_attention_distance(layer, grid=grid, patch_size=patch_size).mean() for layer in layers]
            )
            total = distances * len(images) if total is None else total + distances * len(images)
            seen += len(images)
        if total is None:
            raise EvaluationError("none of its test images can be read")
        parts = total / seen / max(model.config.height_and_width)
        by_block = [round(part, 5) for part in parts.tolist()]
        return Measured(float(parts.mean()), {"images": seen, "by_block": by_block}, "score")

    def _read(self, subject: Subject) -> list[Tensor]:
        """Return the images, some at once."""
        found: list[Tensor] = []
        missing = self.images
        batches = read_batches(
            subject.test,
            transform=subject.transform,
            labels="none",
            reading=subject.reading,
            description=f"{subject.dataset} attention, step {subject.weights.header.step}",
            blocks=some_blocks(subject.test, images=self.images),
        )
        for batch in batches:
            found += batch.images[:missing].split(IMAGES_AT_ONCE)
            missing = max(0, missing - len(batch.images))
        return [images for images in found if len(images)]


def some_blocks(index: ShardIndex, *, images: int) -> NDArray[np.int64]:
    """Return blocks of a split that have that many images, or all of them: drawn by a fixed seed, ascending."""
    order = np.random.default_rng(0).permutation(len(index.block_samples))
    enough = int(np.searchsorted(np.cumsum(index.block_samples[order].astype(np.int64)), images)) + 1
    return np.sort(order[:enough]).astype(np.int64)
