"""Define the settings of the pretraining corpus, and of what happens to each image."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.data.images.augment import Augment, NoAugment
from pipeline.data.images.crop import Resize
from pipeline.data.images.crops import Crop, Inception
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.erasing import RandomErasing
from pipeline.section import FREE, TOLD, Section


class ShardsSection(Section):
    """Names shards: a path alone, or `{url: ..., index: ...}` where their index is kept elsewhere."""

    path: str = Field(validation_alias=AliasChoices("path", "url"), description="folder or URL of indexed shards")
    index: str | None = Field(default=None, description="folder or file of their index, where it does not lie next to them")

    @model_validator(mode="before")
    @classmethod
    def _take_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _give_path_alone(self, handler: SerializerFunctionWrapHandler) -> Any:
        values = handler(self)
        if self.index is None:
            values.pop("index", None)  # it is missing where defaults are left out
        return values["path"] if list(values) == ["path"] else values


class CorpusSection(ShardsSection):
    """Names one corpus of a mixture."""

    weight: float = Field(default=1.0, gt=0, description="share of the images; the weights' sum does not matter")
    first_class: int = Field(default=0, ge=0, description="added to its labels, where corpora have classes of their own")


def _list_one_corpus(value: Any) -> Any:
    """Read `{url: ..., index: ...}` as a mixture of one."""
    return [value] if isinstance(value, dict) else value


class DataSection(Section):
    """Configures the pretraining corpus and what happens to each image."""

    train: Annotated[str | tuple[CorpusSection, ...], BeforeValidator(_list_one_corpus)] = Field(
        description="folder or URL of indexed shards; {url, index} where their index is kept elsewhere; a mixture: a list "
        "of {path, "
        "weight, first_class, index}; or tars without an index (`pipe:COMMAND`, `URL-{000..999}.tar`, `-`), in approximate "
        "order",
        json_schema_extra=TOLD,
    )
    accept: str | None = Field(
        default=None,
        description="fingerprint of other shards that a resumed run may go on with; the refusal names it",
        json_schema_extra=FREE,
    )
    num_workers: int = Field(
        default=4, ge=0, description="decoding processes a rank; 0 decodes in the training process", json_schema_extra=FREE
    )
    prefetch: int = Field(default=2, ge=1, description="micro-batches a worker prepares ahead", json_schema_extra=FREE)
    read_ahead: int = Field(
        default=8,
        ge=0,
        description="micro-batches whose shard blocks are asked for before they are needed",
        json_schema_extra=FREE,
    )
    read_timeout_s: float = Field(
        default=60.0, gt=0, description="of one request to a store behind a URL", json_schema_extra=FREE
    )
    read_patience_s: float = Field(
        default=600.0,
        ge=0,
        description="how long a read may fail, tried again and again, before the run stops",
        json_schema_extra=FREE,
    )
    cache_dir: str | None = Field(
        default=None, description="local folder that keeps blocks read from a URL; none: memory alone", json_schema_extra=FREE
    )
    cache_gib: float = Field(default=100.0, gt=0, description="most that cache_dir may hold, in GiB", json_schema_extra=FREE)
    num_streams: int | None = Field(
        default=None,
        ge=1,
        description="C of the order; a multiple or a divisor of the global batch size, which it is if not given",
    )
    repeats: int = Field(
        default=1,
        ge=1,
        description="appearances of each image in an epoch, near each other and each with a crop and augmentation of its own",
    )
    crop: Crop = Inception()
    min_area: float = Field(default=0.05, gt=0, le=1, description="smallest crop, as a part of the image")
    max_area: float = Field(default=1.0, gt=0, le=1, description="largest crop")
    min_ratio: float = Field(default=0.75, gt=0, description="narrowest crop, width / height")
    max_ratio: float = Field(default=4 / 3, gt=0, description="widest crop")
    flip: bool = Field(default=True, description="mirror half of the images")
    augment: Augment = NoAugment()
    random_erasing: RandomErasing = RandomErasing()  # type: ignore[call-arg]
    resize: Resize = Field(
        default="bilinear", description="the authors' resize has no antialiasing; bicubic, of DeiT III, decodes whole images"
    )
    decoder: Literal["auto", "region", "whole"] = Field(
        default="auto",
        description="decode of a JPEG only what a crop needs, or all of it; auto: region where it is built",
        json_schema_extra=FREE,
    )
    shrink_margin: float | None = Field(
        default=None,
        ge=1,
        description="decode a JPEG at 1/2, 1/4 or 1/8 where that leaves this many times the pixels needed; none: never",
    )
    unreadable_budget: float = Field(
        default=1e-4,
        ge=0,
        lt=1,
        description="part of the images seen that may be unreadable (ten always may) before the run stops",
        json_schema_extra=TOLD,
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_area > self.max_area or self.min_ratio > self.max_ratio:
            raise ValueError("min_area and min_ratio must not exceed max_area and max_ratio")
        if self.shrink_margin is not None and (self.resize != "bilinear_antialias" or self.decoder != "region"):
            raise ValueError("shrink_margin needs resize=bilinear_antialias and decoder=region: no other gives the same pixels")
        return self

    @property
    def crop_bounds(self) -> CropBounds:
        """Return the bounds of a crop that is a rectangle of the image."""
        return CropBounds(min_area=self.min_area, max_area=self.max_area, min_ratio=self.min_ratio, max_ratio=self.max_ratio)
