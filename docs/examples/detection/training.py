"""Take training steps whose randomness is a function of the seed and the step, and keep what they resume from."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detection.models import Detector
from torch import Tensor

from pipeline.errors import CheckpointError, TrainingError
from pipeline.files import write_whole

CLIP_NORM, WEIGHT_DECAY = 0.1, 1e-4  # DETR's (arXiv 2005.12872, section A.4)
WARMUP_STEPS = 100
LAST_PART = 0.2  # of the steps, which have a tenth of the learning rate


class Trainer:
    """Trains a detector with AdamW. Its backbone has a learning rate of its own; one of 0 freezes it."""

    def __init__(self, detector: Detector, *, rate: float, backbone_rate: float, steps: int, seed: int, device: str) -> None:
        self.model: Any = detector.model.to(device)
        self._steps, self._seed, self._device = steps, seed, device
        backbone, others = [], []
        for name, parameter in self.model.named_parameters():
            (backbone if name in detector.taken else others).append(parameter)
        for parameter in backbone:
            parameter.requires_grad_(backbone_rate > 0)
        groups = [{"params": others, "peak": rate}, {"params": backbone, "peak": backbone_rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=WEIGHT_DECAY)

    def step(self, number: int, items: list[tuple[Tensor, dict[str, Tensor]]]) -> float:
        """Train on a batch, and return its loss. Steps are numbered from 1.

        Raises:
            TrainingError: the loss is not finite.
        """
        torch.manual_seed(self._seed * 1_000_003 + number)  # dropout repeats itself after a resume
        factor = min(1.0, number / WARMUP_STEPS) * (0.1 if number > (1 - LAST_PART) * self._steps else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        pixels = torch.stack([pixels for pixels, _ in items]).to(self._device)
        labels = [{key: value.to(self._device) for key, value in target.items()} for _, target in items]
        loss = self.model.train()(pixel_values=pixels, labels=labels).loss
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of step {number} is {loss.item()}; start in another folder with a smaller --lr")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss.item()


@dataclass(frozen=True)
class Progress:
    """Holds the folder of a training: `checkpoint.pt`, and `results.json` for people.

    Attributes:
        settings: that fix the training, in words.
    """

    folder: Path
    settings: dict[str, str]

    def save(self, trainer: Trainer, results: list[dict[str, Any]]) -> None:
        """Write both files, each whole or not at all. The last result is of the step that is saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": self.settings,
            "results": results,
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(self.folder / "checkpoint.pt", buffer.getvalue())
        write_whole(self.folder / "results.json", json.dumps(results, indent=1) + "\n")

    def load(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Fill model and optimizer where there is a checkpoint, and return the results so far.

        Raises:
            CheckpointError: it is damaged, or of another training.
        """
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return []
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content["settings"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise CheckpointError(f"{path} is damaged: {error}; remove it to begin again") from error
        for name in sorted(self.settings):
            if found.get(name) != self.settings[name]:
                option = name.replace("_", "-")
                raise CheckpointError(
                    f"{path} was written with {option} {found.get(name)}, not {self.settings[name]}; "
                    "give what it was written with, or another --out"
                )
        trainer.model.load_state_dict(content["model"])
        trainer.optimizer.load_state_dict(content["optimizer"])
        return content["results"]
