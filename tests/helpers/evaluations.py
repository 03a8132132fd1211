"""A small model whose weights are evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.checkpoint import RunFolder
from pipeline.run.folder import WeightsKind
from pipeline.run.weights import save_weights
from tests.conftest import Outcome

Call = Callable[..., Outcome]

MODEL = ViTConfig(
    image_size=16, patch_size=8, width=32, depth=1, mlp_dim=64, num_heads=2, num_classes=4, representation_size=32, dropout=0.1
)
RESULTS_PER_STEP = 2 * 2 + 1  # shots x seeds, and the linear probe


def watch_command(folder: RunFolder, *overrides: str) -> list[str]:
    """Return the command of an evaluator that watches a run."""
    program = [sys.executable, "-u", "-m", "pipeline", "evaluate", str(folder.root)]
    return [*program, "--watch", "--poll-seconds", "0.2", *overrides]


def add_weights(folder: RunFolder, step: int, *, seed: int = 0, kind: WeightsKind = "raw") -> None:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(step + seed))
    save_weights(folder.weights_of(step, kind), model.state_dict(), model=MODEL, step=step, images_seen=8 * step, kind=kind)
