"""Define the settings of the evaluator."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.data.section import ShardsSection
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.evaluation.protocols import FewShot, Linear, Protocol
from pipeline.section import Relaunch, Section


class EvalDataset(Section):
    """Names one downstream set: shards of its train and test splits."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    train: ShardsSection
    test: ShardsSection


class EvaluationSection(Section):
    """Configures what the evaluator does with each checkpoint's weights."""

    relaunch: ClassVar[Relaunch | None] = "free"

    datasets: tuple[EvalDataset, ...] = ()
    protocols: dict[str, Protocol] = Field(
        default={"few_shot": FewShot(), "linear": Linear()},  # type: ignore[call-arg]
        description="by name: {few_shot: {shots: [1, 5]}, linear: {}}; a protocol that is listed twice names itself: "
        "{more_shots: {protocol: few_shot, shots: [50]}}",
    )
    short_side: int | None = Field(
        default=None, ge=1, description="resize before the centre crop; image size * 256 / 224 if not given"
    )
    precision: Literal["auto"] | EvaluationPrecision = Field(
        default="auto",
        description="of the forward pass (autocast); features and probes are fp32 and fp64. auto: that of the run's earlier "
        "results, else bf16 where the device computes it fast",
    )
    hardware: Literal["allotted", "found"] = Field(
        default="allotted",
        description="allotted: a GPU that was set aside must be used; found: the CPU will do where torch sees none",
    )
    batch_size: int = Field(default=64, ge=1)
    num_workers: int = Field(default=2, ge=0, description="decoding processes; 0 decodes in the evaluator itself")
    cpu_threads: int = Field(default=1, ge=1, description="without a GPU; one leaves the rest to a training next to it")

    @model_validator(mode="after")
    def _nothing_is_named_twice(self) -> Self:
        first: dict[str, str] = {}
        for name in (dataset.name for dataset in self.datasets):
            other = first.setdefault(name.casefold(), name)
            if (count := sum(dataset.name == name for dataset in self.datasets)) > 1:
                raise ValueError(
                    f"datasets: {count} sets are named {name!r}; results are distinguished by name, so give each its own"
                )
            if other != name:
                raise ValueError(f"datasets: the names {other!r} and {name!r} differ in case alone; rename one of the sets")
        if not self.protocols:
            raise ValueError("protocols: none is named; write evaluation.protocols='{few_shot: {}, linear: {}}'")
        return self

    @field_validator("protocols", mode="before")
    @classmethod
    def _name_protocols(cls, value: Any) -> Any:
        """Read a protocol without settings, a list of names, and one left out by null."""
        if isinstance(value, list | tuple):
            repeated = next((name for name in value if value.count(name) > 1), None)
            if repeated is not None:
                once = ",".join(str(name) for name in dict.fromkeys(value))
                raise ValueError(f"{repeated} is there {value.count(repeated)} times; write evaluation.protocols=[{once}]")
            value = {str(name): {} for name in value}
        if not isinstance(value, dict):
            return value
        return {
            name: {"protocol": name, **settings} if isinstance(settings, dict) else settings
            for name, settings in value.items()
            if settings is not None
        }
