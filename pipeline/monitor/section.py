"""Define the settings of Weights & Biases and of the metrics file."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.section import Relaunch, Section


class TrackingSection(Section):
    """Configures Weights & Biases and the local mirror."""

    relaunch: ClassVar[Relaunch | None] = "free"

    project: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[^/\\#?%:]+$",
        description="if not given: WANDB_PROJECT, or W&B's settings file, or vit-pretraining",
    )
    entity: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[^/\\#?%:]+$",
        description="if not given: WANDB_ENTITY, or W&B's settings file, or the key's own",
    )
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto",
        description="auto: as WANDB_MODE or W&B's settings file says, else online where a key is found, else offline. "
        "Of this and the environment the quieter counts",
    )
    tensorboard: bool = Field(
        default=False, description="write the same numbers as TensorBoard's event files to RUN_DIR/tensorboard too"
    )
    log_every: int = Field(default=50, ge=1, description="steps between two lines of metrics")
