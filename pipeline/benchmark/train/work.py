"""Define what contenders of `benchmark train` train: a configuration, and how each of them runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.image_size import ImageSize, height_and_width

Loop = Literal["lightning", "bare", "timm", "transformers", "product", "search", "layers"]

ENDLESS = "1000000 steps"
LOG_EVERY = 10  # steps between two lines of metrics: more often than in any recipe, so that their cost is in the figures


@dataclass(frozen=True)
class Work:
    """Says what one contender does.

    Attributes:
        config: the whole configuration, as `RunConfig` dumps it.
        loop: what runs it.
        real_data: the loader reads `data.train`; else one batch of random pixels is used again and again.
        ranks: processes that do it together.
    """

    config: dict[str, Any]
    loop: Loop
    real_data: bool = False
    ranks: int = 1


def standard_config(model: str, *, image_size: ImageSize, num_classes: int) -> RunConfig:
    """Return the training that a model is measured in: softmax, AdamW, clipping, ZeRO-1, no dropout."""
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "model": {
                "name": model,
                "image_size": list(height_and_width(image_size)),
                "num_classes": num_classes,
                "representation": "none",
            },
            "data": {"train": "synthetic.tar", "num_workers": 0},
            "objective": {"name": "softmax"},
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 1.0},
            "schedule": {"warmup": "10 steps"},
            "trainer": {"duration": ENDLESS, "global_batch_size": 1, "devices": 1, "zero_stage": 1},
            "checkpoint": {"every": ENDLESS},
            "tracking": {"mode": "disabled", "log_every": LOG_EVERY},
        }
    )


def read_training(path: str, overrides: list[str]) -> RunConfig:
    """Return a configuration of a user's own, made endless, without evaluation, tracking or initial weights.

    Raises:
        ConfigError: what is wrong with it.
    """
    endless = ["trainer.duration=" + ENDLESS, "schedule.warmup=10 steps", "checkpoint.every=" + ENDLESS]
    quiet = ["tracking.mode=disabled", f"tracking.log_every={LOG_EVERY}", "init_from=null", "trainer.max_steps=null"]
    bare = ["evaluation.datasets=[]", "evaluation.validation=[]", "evaluation.segmentation=[]", "checkpoint.keep_every=null"]
    return load_config(path, [*overrides, *endless, *quiet, *bare])


def with_settings(config: RunConfig, *, folder: str, data: str, batch_size: int, num_workers: int, **trainer: Any) -> RunConfig:
    """Return the configuration for one contender.

    Args:
        batch_size: images of a step, on all ranks together.
        folder: for the run folder.
        data: what the loader reads, or would read.
        trainer: settings of that section.
    """
    values = config.model_dump(mode="json")
    values["output_dir"] = folder
    values["data"] |= {"train": data, "num_workers": num_workers}
    batch = {"global_batch_size": batch_size, "micro_batch_size": None, "devices": 1, "max_steps": None}
    values["trainer"] |= {**batch, **trainer}
    return RunConfig.model_validate(values)
