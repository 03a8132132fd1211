"""Define the whole configuration, and the checks that cross its sections. `pipeline.config.read` reads it from files.

Only the commands, `build` and `plan` see a whole `RunConfig`; everything else is given a section or plain values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from pipeline.config.finetune import FinetuneSection
from pipeline.credentials import describe_credential
from pipeline.data.section import DataSection
from pipeline.evaluation.section import EvaluationSection
from pipeline.exchange.section import InitSection
from pipeline.models import Model
from pipeline.monitor.section import TrackingSection
from pipeline.objectives import Objective, Sigmoid
from pipeline.optim import Optimizer
from pipeline.optim.schedules import Schedule
from pipeline.section import FREE, TOLD, Section, Seed
from pipeline.train.section import CheckpointSection, TrainerSection


class RunConfig(Section):
    """Configures one run."""

    name: str = Field(
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="names the run folder and the W&B run",
        json_schema_extra=TOLD,
    )
    output_dir: str = Field(default="runs", description="where run folders are made", json_schema_extra=TOLD)
    seed: Seed = 0
    model: Model
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="weights that the model begins with: a run folder, a weights file, .npz, a folder of timm or transformers",
    )
    init: InitSection = InitSection()  # type: ignore[call-arg]
    data: DataSection
    objective: Objective = Sigmoid()  # type: ignore[call-arg]
    optimizer: Optimizer
    schedule: Schedule
    trainer: TrainerSection
    checkpoint: CheckpointSection
    evaluation: EvaluationSection = EvaluationSection()  # type: ignore[call-arg]
    tracking: TrackingSection = TrackingSection()  # type: ignore[call-arg]
    finetune: FinetuneSection | None = Field(
        default=None, description="grid of settings that `finetune` chooses from", json_schema_extra=FREE
    )

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def peak_learning_rate(self) -> float:
        """Return the learning rate at this batch size, after the warmup."""
        return self.optimizer.peak_at(self.trainer.global_batch_size)

    @model_validator(mode="after")
    def _stage_fits_precision(self) -> Self:
        if self.trainer.zero_stage == 0 and self.trainer.precision == "bf16":
            raise ValueError(
                "trainer.precision=bf16 keeps its fp32 masters in ZeRO; with trainer.zero_stage=0 use bf16_autocast or fp32"
            )
        return self

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        kernel, trainer = self.trainer.attention, self.trainer
        if trainer.deterministic and kernel in ("efficient", "cudnn"):
            raise ValueError(
                f"trainer.attention={kernel} has a backward pass that adds in any order: with trainer.deterministic=true take "
                "flash or math, or leave it out"
            )
        if kernel in ("flash3", "cudnn") and trainer.precision == "fp32":
            raise ValueError(f"trainer.attention={kernel} computes bf16 alone: leave it out with trainer.precision=fp32")
        return self

    @model_validator(mode="after")
    def _float8_fits(self) -> Self:
        trainer = self.trainer
        if trainer.float8 is None and trainer.float8_layers is not None:
            raise ValueError("trainer.float8_layers says which layers are of float8: set trainer.float8 too, or leave it out")
        if trainer.float8 is not None and trainer.zero_stage == 3 and trainer.activation_checkpointing != 1:
            raise ValueError(
                "trainer.float8 keeps the weights that trainer.zero_stage=3 gathers until the backward pass, unless every "
                "block is computed again: set trainer.activation_checkpointing=1 too, or a lower stage"
            )
        return self

    @model_validator(mode="after")
    def _no_credentials(self) -> Self:
        found = describe_credential(self.model_dump(mode="json"))
        if found is not None:
            raise ValueError(found)
        return self

    @model_validator(mode="after")
    def _timeouts_are_nested(self) -> Self:
        """Check the timeouts: the rank that knows what is wrong must report it before the ranks that wait for it give up."""
        hang_s = self.trainer.hang_timeout_s
        outer = self.trainer.collective_timeout_s if hang_s is None else hang_s
        if self.data.read_patience_s >= outer:
            name = "trainer.collective_timeout_s" if hang_s is None else "trainer.hang_timeout_s"
            raise ValueError(
                f"data.read_patience_s={self.data.read_patience_s:g} must be below {name}={outer:g}: a store that cannot be "
                "reached for a while would pass for a hang"
            )
        if hang_s is not None and hang_s >= self.trainer.collective_timeout_s:
            raise ValueError(
                f"trainer.hang_timeout_s={hang_s:g} must be below trainer.collective_timeout_s="
                f"{self.trainer.collective_timeout_s:g}: ranks that give up first take those that could say why with them"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
