"""Hold the settings of a grid of fine-tunings, and of how one of its points is chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.data.section import ShardsSection
from pipeline.section import Section

MOST_POINTS = 1000


def _list_one(value: Any) -> Any:
    """Read one value as a list of one."""
    return value if isinstance(value, list | tuple | dict) else [value]


class FinetuneSection(Section):
    """Configures `finetune`: the paper's Table 4 chooses among four learning rates by a part of the training images."""

    grid: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_list_one)]] = Field(
        default={"optimizer.learning_rate": (0.001, 0.003, 0.01, 0.03)},
        description="settings and their values; every combination is a point: {optimizer.learning_rate: [0.003, 0.01]}",
    )
    dev: float = Field(
        default=0.1, gt=0, lt=1, description="part of the training images that points are compared on; of each class alike"
    )
    dev_shards: ShardsSection | None = Field(
        default=None, description="images that points are compared on, instead of a part of the training images"
    )
    dev_seed: int = Field(default=0, ge=0, description="which images are the part")
    choose_by: Literal["top-1", "top-5", "loss", "mAP", "hit@1"] = Field(
        default="top-1", description="measure of the dev images by which a point is chosen"
    )
    seeds: int = Field(default=1, ge=1, description="final trainings, from the seeds 0, 1, ...; their spread is shown")

    @model_validator(mode="after")
    def _has_points(self) -> Self:
        count = 1
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key} has no values")
            if len({repr(value) for value in values}) < len(values):
                raise ValueError(f"grid: {key} has a value twice")
            count *= len(values)
        if count > MOST_POINTS:
            raise ValueError(f"grid: {count} points; at most {MOST_POINTS} are tried")
        return self
