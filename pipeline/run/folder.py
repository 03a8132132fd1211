"""Define the names in a run folder: the run's own names, and which names are a user's. This module imports nothing heavy.

The run's own checkpoints and weights are named `step_00001000`, with eight digits or more. Nothing follows but `.average`,
in the name of the weights' running average. Every other name is passed over: a user's copy (`step_00001000.bak`), a file
system's `lost+found`, and what a launch has set aside (`broken-step_00001000`, `ruined-...`, `superseded-...`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_STEP = re.compile(r"step_(\d{8,})")
WEIGHTS_SUFFIX = ".safetensors"

WeightsKind = Literal["raw", "average"]
"""The weights that are trained, or their running average (`optimizer.average`)."""


@dataclass(frozen=True)
class WeightsName:
    """Names weights of a run: their step and kind."""

    step: int
    kind: WeightsKind = "raw"

    @property
    def stem(self) -> str:
        """Return the name of their files, without a suffix."""
        return step_name(self.step) + ("" if self.kind == "raw" else f".{self.kind}")

    def __str__(self) -> str:
        return f"step {self.step}" + ("" if self.kind == "raw" else f" ({self.kind})")


@dataclass(frozen=True)
class RunFolder:
    """Holds the paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations.jsonl"

    @property
    def complete(self) -> Path:
        """Return the file that exists once the run has reached its last step."""
        return self.root / "complete.json"

    @property
    def heartbeat(self) -> Path:
        return self.root / "heartbeat.json"

    @property
    def claims(self) -> Path:
        """Return the folder with one file for each checkpoint and set that an evaluator works on."""
        return self.root / "claims"

    @property
    def features(self) -> Path:
        """Return the folder of features that an evaluator keeps."""
        return self.root / "features"

    @property
    def lock(self) -> Path:
        """Return the file that says which training owns the folder."""
        return self.root / "lock.json"

    @property
    def data(self) -> Path:
        """Return the file that says what the run was trained on."""
        return self.root / "data.json"

    @property
    def initial(self) -> Path:
        """Return the file that says which weights the run began with, and what of them was taken."""
        return self.root / "initial.json"

    @property
    def classes(self) -> Path:
        """Return the file with the names of the model's classes, one a line by number, where the corpus tells them."""
        return self.root / "classes.txt"

    @property
    def alerts(self) -> Path:
        return self.root / "alerts.jsonl"

    @property
    def stragglers(self) -> Path:
        """Return the file with each rank's own time in a step."""
        return self.root / "stragglers.json"

    @property
    def hangs(self) -> Path:
        """Return the file that says where every thread of a rank was when no step ended."""
        return self.root / "hangs"

    @property
    def output_log(self) -> Path:
        """Return the file for the program's output once nobody reads it any more."""
        return self.root / "output.log"

    @property
    def picture(self) -> Path:
        return self.root / "report.png"

    @property
    def page(self) -> Path:
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """Return the folder of what `figures` draws, with one folder for each weights file."""
        return self.root / "figures"

    @property
    def wandb(self) -> Path:
        """Return the folder of W&B's client."""
        return self.root / "wandb"

    @property
    def tensorboard(self) -> Path:
        """Return the folder of TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        return self.root / "wandb_id"

    @property
    def wandb_record(self) -> Path:
        """Return the file that says which W&B run the folder writes, and where the folder was then."""
        return self.root / "wandb_run.json"

    def checkpoint_of(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def weights_of(self, step: int, kind: WeightsKind = "raw") -> Path:
        return self.weights / f"{WeightsName(step, kind).stem}{WEIGHTS_SUFFIX}"

    def weight_names(self) -> list[WeightsName]:
        """Return all weights by step, the raw ones of a step first.

        Raises:
            OSError: the folder cannot be listed.
        """
        files = (entry.name for entry in _entries(self.weights) if not entry.is_dir())
        names = [found for name in files if (found := weights_named(name, suffix=WEIGHTS_SUFFIX)) is not None]
        return sorted(names, key=lambda weights: (weights.step, weights.kind == "average"))

    def weight_steps(self) -> list[int]:
        """Return the steps that have weights, ascending.

        Raises:
            OSError: the folder cannot be listed.
        """
        return [weights.step for weights in self.weight_names() if weights.kind == "raw"]

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that have a checkpoint folder (not yet verified), ascending. A link whose target is missing counts.

        Raises:
            OSError: the folder cannot be listed.
        """
        folders = (entry.name for entry in _entries(self.checkpoints) if entry.is_dir() or entry.is_symlink())
        return sorted(step for name in folders if (step := step_of(name)) is not None)

    def staging_of(self, step: int) -> Path:
        return self.checkpoints / f".saving-{step_name(step)}"


def step_name(step: int) -> str:
    """Return the name of a step's checkpoint and weights."""
    return f"step_{step:08d}"


def step_of(name: str, *, suffix: str = "") -> int | None:
    """Return the step that one of the run's own names means; None for every other name."""
    if not name.endswith(suffix):
        return None
    stem = name[: len(name) - len(suffix)]
    found = _STEP.fullmatch(stem)
    return int(found.group(1)) if found and stem == step_name(int(found.group(1))) else None


def weights_named(name: str, *, suffix: str) -> WeightsName | None:
    """Return the weights that one of the run's own names means; None for every other name."""
    average = step_of(name, suffix=f".average{suffix}")
    if average is not None:
        return WeightsName(average, "average")
    step = step_of(name, suffix=suffix)
    return None if step is None else WeightsName(step)


def name_of_claim(weights: WeightsName, dataset: str) -> str:
    """Return the name of the file that says who evaluates weights on a set."""
    return f"{weights.stem}@{dataset}.json"


def claimed_by_name(name: str) -> str | None:
    """Return what the name of a claim's file says is being evaluated, in words; None for every other name.

    Earlier versions claimed all sets of some weights at once.
    """
    stem, at, dataset = name.removesuffix(".json").partition("@")
    weights = weights_named(f"{stem}.json", suffix=".json") if name.endswith(".json") else None
    return None if weights is None else f"{dataset} at {weights}" if at else str(weights)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what a folder holds; nothing where there is no folder. A folder that cannot be listed must not count as empty."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
