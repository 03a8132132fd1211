"""Predict masked patches: the paper's self-supervised objective (arXiv 2010.11929, section 4.6 and appendix B.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.functional.patches import NUM_COLOURS, corrupt_patches, mean_colours, split_patches
from pipeline.keyed_random import Purpose, derive_key, keyed_uniforms
from pipeline.models.base import Backbone, ModelConfig, PatchLayout
from pipeline.objectives.base import LabelKind, Objective, ObjectiveOutput, ObjectiveSection, Probabilities

if TYPE_CHECKING:
    from torchmetrics import Metric

Target = Literal["mean_colour", "small_patch", "pixels"]
SMALL_SIDE = 4  # pixels of the downsized patch
MASK_STD = 0.02  # as the positions
HEAD_STD = 0.02
MAX_PARTS = 1.0 + 1e-9


class MaskedPatches(ObjectiveSection):
    """Configures masked patch prediction. Labels are not read.

    Half of the patch embeddings are corrupted, and each corrupted patch's mean colour is predicted.
    """

    name: Literal["masked_patches"] = "masked_patches"
    corrupted: float = Field(default=0.5, gt=0, le=1, description="part of an image's patches that are corrupted")
    masked: float = Field(default=0.8, ge=0, le=1, description="part of those that become the mask token")
    swapped: float = Field(
        default=0.1, ge=0, le=1, description="part of those that become another patch's embedding; the rest is kept"
    )
    target: Target = Field(
        default="mean_colour",
        description="predicted of a patch: its mean colour in 9 bits; 4 x 4 such colours; or all its pixels (squared error)",
    )

    labels: ClassVar[LabelKind] = "none"
    probabilities: ClassVar[Probabilities | None] = None
    has_parameters: ClassVar[bool] = True

    def check(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> None:
        if model.patches is None:
            raise ConfigError(
                f"objective.name=masked_patches corrupts patch embeddings, and model.family={model.family} has none; use vit "
                "or hybrid"
            )
        if self.masked + self.swapped > MAX_PARTS:
            raise ConfigError(
                f"objective.masked={self.masked:g} and objective.swapped={self.swapped:g} are parts of the corrupted patches; "
                f"their sum must be at most 1"
            )
        height, width = _patch_size(model)
        if self.target == "small_patch" and (height % SMALL_SIDE or width % SMALL_SIDE):
            raise ConfigError(
                f"objective.target=small_patch needs patches whose sides {SMALL_SIDE} divides, not {height} x {width} pixels; "
                f"use mean_colour"
            )

    def build(self, model: ModelConfig, *, seed: int, class_names: Sequence[str] | None) -> Objective:
        return MaskedPatchPrediction(self, model, seed=seed)

    def metrics(self, model: ModelConfig) -> dict[str, Metric]:
        if self.target == "pixels":
            return {}
        from pipeline.objectives.accuracy import top_k

        return {"train/patch_accuracy": top_k(NUM_COLOURS, k=1)}

    def held_out_metrics(self, model: ModelConfig) -> dict[str, Metric]:
        if self.target == "pixels":
            return {}
        from pipeline.objectives.accuracy import top_k

        return {"patch accuracy": top_k(NUM_COLOURS, k=1)}


@dataclass(frozen=True)
class PatchDraws:
    """Says what happens to the patches of images, (B, P) each."""

    corrupted: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    source: NDArray[np.int64]  # patch whose embedding is taken


def draw_patches(section: MaskedPatches, positions: NDArray[np.int64], *, num_patches: int, seed: int) -> PatchDraws:
    """Return the draws of images by their positions in the run's order, the same for every number of ranks and workers.

    Exactly the nearest whole number to `corrupted` times P patches of each image are corrupted; what becomes of each is drawn
    for itself.
    """
    numbers = keyed_uniforms(derive_key(seed, Purpose.MASKING), positions, first=0, count=3 * num_patches)
    ranks, kinds, others = np.split(numbers, 3, axis=1)  # (B, P) each
    order = ranks.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    corrupted = order < max(1, round(section.corrupted * num_patches))
    own = np.arange(num_patches)
    other = (own + 1 + (others * (num_patches - 1)).astype(np.int64)) % num_patches  # any but itself
    is_swapped = (kinds >= section.masked) & (kinds < section.masked + section.swapped)
    return PatchDraws(
        corrupted=corrupted,
        masked=corrupted & (kinds < section.masked),
        source=np.where(corrupted & is_swapped, other, own),
    )


class MaskedPatchPrediction(Objective):
    """Predicts what was corrupted from the outputs of the corrupted patches. Its mask token and its dense head are trained."""

    def __init__(self, section: MaskedPatches, model: ModelConfig, *, seed: int) -> None:
        super().__init__()
        assert model.patches is not None
        self.section = section
        self.seed = seed
        self.layout: PatchLayout = model.patches
        height, width = _patch_size(model)
        outputs = {"mean_colour": NUM_COLOURS, "small_patch": SMALL_SIDE**2 * NUM_COLOURS, "pixels": 3 * height * width}
        self.mask_token = nn.Parameter(torch.zeros(self.layout.width))
        self.head = nn.Linear(self.layout.width, outputs[section.target])

    def init_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(derive_key(seed, Purpose.OBJECTIVE) >> 1)
        with torch.no_grad():
            nn.init.normal_(self.mask_token, std=MASK_STD, generator=generator)
            nn.init.normal_(self.head.weight, std=HEAD_STD, generator=generator)
            nn.init.zeros_(self.head.bias)

    def forward(self, model: Backbone, batch: Mapping[str, Any]) -> ObjectiveOutput:
        images: Tensor = batch["images"]
        draws = draw_patches(
            self.section, batch["positions"].numpy(), num_patches=self.layout.rows * self.layout.columns, seed=self.seed
        )
        # The corrupted patches by their numbers: a mask's would be asked from the device.
        corrupted, masked, source = (
            torch.from_numpy(values).to(images.device, non_blocking=True)
            for values in (np.flatnonzero(draws.corrupted), draws.masked, draws.source)
        )
        corrupt: Callable[[Tensor], Tensor] = lambda patches: corrupt_patches(  # noqa: E731
            patches, mask_token=self.mask_token, masked=masked, source=source
        )
        output = model(images, corrupt=corrupt)
        predictions = self.head(output.patches.flatten(0, 1)[corrupted])  # (M, outputs)
        targets = self._targets(images).flatten(0, 1)[corrupted]
        # The classifier takes no part, but has gradients of zero: every ZeRO stage then treats it alike.
        loss = _loss(self.section.target, predictions.float(), targets) + 0.0 * output.logits.float().sum()
        return ObjectiveOutput(loss, *_compared(self.section.target, predictions.detach(), targets))

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Return the targets of all patches: colours (B, P), colours (B, P, 16), or values in [-1, 1] (B, P, 3 h w)."""
        patches = split_patches(images, rows=self.layout.rows, columns=self.layout.columns).float()  # (B, P, 3, h, w)
        if self.section.target == "mean_colour":
            return mean_colours(patches)
        if self.section.target == "small_patch":
            parts = split_patches(patches.flatten(0, 1), rows=SMALL_SIDE, columns=SMALL_SIDE)  # (B P, 16, 3, h/4, w/4)
            return mean_colours(parts).unflatten(0, patches.shape[:2])
        return patches.flatten(2) / 127.5 - 1.0


def _loss(target: Target, predictions: Tensor, targets: Tensor) -> Tensor:
    if target == "pixels":
        return F.mse_loss(predictions, targets)
    return F.cross_entropy(predictions.view(-1, NUM_COLOURS), targets.flatten())


def _compared(target: Target, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return (predictions, targets) if target == "pixels" else (predictions.view(-1, NUM_COLOURS), targets.flatten())


def _patch_size(model: ModelConfig) -> tuple[int, int]:
    assert model.patches is not None
    height, width = model.height_and_width
    return height // model.patches.rows, width // model.patches.columns
