"""The settings of the evaluator."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipeline.data.section import ShardsSection
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.section import Relaunch, Section, Seed


class EvalDataset(Section):
    """One downstream set: shards of its train and test splits."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    train: ShardsSection
    test: ShardsSection


class EvaluationSection(Section):
    """What the evaluator does with each checkpoint's weights."""

    relaunch: ClassVar[Relaunch | None] = "free"

    datasets: tuple[EvalDataset, ...] = ()
    protocols: tuple[Literal["few_shot", "linear"], ...] = ("few_shot", "linear")
    shots: tuple[PositiveInt, ...] = Field((1, 5, 10, 25), description="images a class")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), description="draws of the few-shot support set")
    short_side: int | None = Field(None, ge=1, description="resize before the centre crop; image size * 256 / 224 if not given")
    precision: Literal["auto"] | EvaluationPrecision = Field(
        "auto",
        description="of the forward pass (autocast); features and probes are fp32 and fp64. auto: that of the run's earlier "
        "results, else bf16 where the device computes it fast",
    )
    hardware: Literal["allotted", "found"] = Field(
        "allotted", description="allotted: a GPU that was set aside must be used; found: the CPU will do where torch sees none"
    )
    batch_size: int = Field(64, ge=1)
    num_workers: int = Field(2, ge=0, description="decoding processes; 0 decodes in the evaluator itself")
    cpu_threads: int = Field(1, ge=1, description="without a GPU; one leaves the rest to a training beside it")

    @model_validator(mode="after")
    def _nothing_is_named_twice(self) -> Self:
        first: dict[str, str] = {}
        for name in (dataset.name for dataset in self.datasets):
            other = first.setdefault(name.casefold(), name)
            if (count := sum(dataset.name == name for dataset in self.datasets)) > 1:
                raise ValueError(
                    f"datasets: {count} sets are named {name!r}; results are told apart by name, so give each its own"
                )
            if other != name:
                raise ValueError(f"datasets: the names {other!r} and {name!r} differ in case alone; rename one of the sets")
        for key in ("protocols", "shots", "seeds"):
            values = getattr(self, key)
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                once = ",".join(str(value) for value in dict.fromkeys(values))
                raise ValueError(f"{key}: {repeated} is there {values.count(repeated)} times; write evaluation.{key}=[{once}]")
        return self
