"""Configure and draw MixUp and CutMix. A pair is two neighbours in the run's order, and its draws are keyed by its number.

So what is mixed with what, and how, is the same for every number of ranks, workers and restarts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipeline.functional.mixing import blend, paste
from pipeline.keyed_random import Purpose, derive_key, keyed_uniforms
from pipeline.section import Section

MAX_ALPHA = 4.0  # the sampler of the beta distribution takes long beyond
TRIES = 16  # draws of the sampler at a time
FIXED_DRAWS = 4  # draws before the sampler's: whether, which, and the box's centre


class Mixing(Section):
    """Configures the mixing of pairs of images and of their labels. It is off by default."""

    mixup_alpha: float = Field(
        default=0.0, ge=0, le=MAX_ALPHA, description="MixUp: shares are drawn from Beta(alpha, alpha); 0: none"
    )
    cutmix_alpha: float = Field(
        default=0.0, ge=0, le=MAX_ALPHA, description="CutMix: areas are drawn from Beta(alpha, alpha); 0: none"
    )
    cutmix_probability: float = Field(default=0.5, ge=0, le=1, description="part of the pairs with CutMix, where both are on")
    probability: float = Field(default=1.0, ge=0, le=1, description="part of the pairs that are mixed")
    labels: Literal["shares", "whole"] = Field(
        default="shares",
        description="labels of a mixed image count by its shares, or each as a whole (DeiT III's sigmoid loss)",
    )

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True)
class PairDraws:
    """Says how pairs are mixed, a row a pair."""

    blended: NDArray[np.float64]  # (P,) share of an image's own pixels in a blend; 1 where nothing is blended
    boxes: NDArray[np.int64]  # (P, 4) top, left, bottom, right of the neighbour's pixels; empty where there are none
    kept: NDArray[np.float64]  # (P,) share of an image's own labels


def draw_pairs(section: Mixing, pairs: NDArray[np.int64], *, seed: int, height: int, width: int) -> PairDraws:
    """Return the draws of pairs by their numbers: positions divided by two.

    A MixUp share is the larger of lambda and 1 - lambda, so that an image keeps most of itself (big_vision's rule). A CutMix
    box has the area 1 - lambda around a uniform centre and is cut at the borders; the labels' shares are those of the pixels
    (arXiv 1905.04899, section 3.2).
    """
    key = derive_key(seed, Purpose.MIXING)
    mixed, which, row, column = keyed_uniforms(key, pairs, first=0, count=FIXED_DRAWS).T
    is_mixed = mixed < section.probability
    cutmix_part = 0.0 if not section.cutmix_alpha else 1.0 if not section.mixup_alpha else section.cutmix_probability
    has_box = is_mixed & (which < cutmix_part)
    alphas = np.where(which < cutmix_part, section.cutmix_alpha, section.mixup_alpha)
    lam = draw_beta(key, pairs, alphas)
    blended = np.where(is_mixed & ~has_box, np.maximum(lam, 1 - lam), 1.0)
    boxes = np.where(has_box[:, None], _boxes(lam, row, column, height=height, width=width), 0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return PairDraws(blended, boxes, np.where(has_box, 1 - area / (height * width), blended))


def draw_beta(key: int, numbers: NDArray[np.int64], alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a draw from Beta(alpha, alpha) for each number, by Johnk's method (Metrika 8, 1964).

    The method draws two powers of uniforms, and keeps them if their sum is at most one.
    """
    result = np.full(len(numbers), np.nan)
    first = FIXED_DRAWS
    while (open_ := np.flatnonzero(np.isnan(result))).size:
        tries = keyed_uniforms(key, numbers[open_], first=first, count=2 * TRIES).reshape(-1, TRIES, 2)
        logs = np.log(np.maximum(tries, 2.0**-54)) / alphas[open_, None, None]  # logarithms of the powers, which may underflow
        largest = logs.max(axis=2)
        fits = largest + np.log(np.exp(logs - largest[:, :, None]).sum(axis=2)) <= 0
        found, chosen = fits.any(axis=1), fits.argmax(axis=1)
        x, y = logs[np.arange(len(open_)), chosen].T
        with np.errstate(over="ignore"):
            result[open_[found]] = (1 / (1 + np.exp(y - x)))[found]
        first += 2 * TRIES
    return result


def _boxes(
    lam: NDArray[np.float64], row: NDArray[np.float64], column: NDArray[np.float64], *, height: int, width: int
) -> NDArray[np.int64]:
    side = np.sqrt(1 - lam)
    half_height, half_width = (side * height).astype(np.int64) // 2, (side * width).astype(np.int64) // 2
    y, x = (row * height).astype(np.int64), (column * width).astype(np.int64)
    sides = (
        np.clip(y - half_height, 0, height),
        np.clip(x - half_width, 0, width),
        np.clip(y + half_height, 0, height),
        np.clip(x + half_width, 0, width),
    )
    return np.stack(sides, axis=1)


@dataclass(frozen=True)
class Mixer:
    """Mixes the micro-batches of a run.

    Args:
        seed: of the run.
    """

    section: Mixing
    seed: int

    def __call__(self, images: Tensor, targets: Tensor, *, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W) of floats, and targets (B, C) of 0 and 1.

        Args:
            positions: (B,) of the images in the run's order, on CPU; neighbours are there together.
        """
        pairs = positions.numpy()[::2] // 2
        assert len(positions) % 2 == 0
        assert (positions.numpy().reshape(-1, 2) == 2 * pairs[:, None] + [0, 1]).all()
        height, width = images.shape[2:]
        draws = draw_pairs(self.section, pairs, seed=self.seed, height=height, width=width)

        def each(values: NDArray[np.generic]) -> Tensor:  # a row an image
            return torch.from_numpy(np.repeat(values, 2, axis=0)).to(images.device, non_blocking=True)

        mixed = paste(blend(images, each(draws.blended.astype(np.float32))), each(draws.boxes))
        shares = blend(targets, each(draws.kept.astype(np.float32)))
        # DeiT's engine.py: targets.gt(0.0), which a class of either image passes.
        return mixed, shares if self.section.labels == "shares" else (shares > 0).to(shares.dtype)
