"""Define the settings of the evaluator."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.data.section import ShardsSection
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.evaluation.protocols import FewShot, Linear, Protocol
from pipeline.evaluation.work import Order
from pipeline.section import Relaunch, Section


class EvalDataset(Section):
    """Names one downstream set: shards of its train and test splits."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    train: ShardsSection
    test: ShardsSection


class HeldOutSection(Section):
    """Names held-out images of the pretraining corpus: a path alone, or with settings."""

    name: str = Field(default="val", pattern=r"^[A-Za-z0-9_.-]+$")
    shards: ShardsSection
    class_map: str | None = Field(
        default=None,
        description="how their classes become the model's: `numbers` takes them as they are; a file has a line "
        "SET'S CLASS <tab> MODEL'S CLASS for each (names, or numbers). Else by the names in both classes.txt if these differ",
    )

    labels: Literal["as_trained", "any_of"] = Field(
        default="as_trained",
        description="any_of: an image may have several labels, and a prediction is right if it is one of them (ImageNet-ReaL); "
        "images without a label do not count",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_path_alone(cls, value: Any) -> Any:
        return {"shards": value} if isinstance(value, str) else value


class SegmentationSection(EvalDataset):
    """Names a set whose images have masks of classes: shards of its train and test splits."""


class ReferenceSection(Section):
    """Says what others have reached with this recipe, to be shown next to the run's own results."""

    percent: float | None = Field(default=None, ge=0, le=100, description="of an accuracy")
    loss: float | None = None
    by: str = Field(default="authors", description="who has measured it")
    at: str = Field(default="the end", description="when in training")
    source: str | None = Field(default=None, description="where it is written")

    @property
    def value(self) -> float:
        """Return the value, an accuracy as a part of 1."""
        if self.percent is not None:
            return self.percent / 100
        assert self.loss is not None
        return self.loss

    @property
    def author(self) -> str:
        """Return who has measured it, and when in training."""
        return f"{self.by} at {self.at}" if self.at else self.by

    def describe(self) -> str:
        """Return the value and where it is from, in words."""
        value = f"{self.loss:g}" if self.percent is None else f"{self.percent:g} %"
        return f"{value} ({self.author}{f'; {self.source}' if self.source else ''})"

    @model_validator(mode="after")
    def _has_one_value(self) -> Self:
        if (self.percent is None) == (self.loss is None):
            raise ValueError("a reference has either percent or loss")
        return self


def _list_one(value: Any) -> Any:
    """Read a path, or one set, as a list of one."""
    return [value] if isinstance(value, str | dict) else value


def _as_list(value: Any) -> Any:
    """Return a list of sets, of which one may be given alone."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _below(root: str, value: Any, keys: tuple[str, ...]) -> Any:
    """Join the relative paths of a set with a folder or URL. What is no set is left to the schema."""
    if isinstance(value, str):
        return _join(root, value)
    if not isinstance(value, dict):
        return value
    inner = {
        key: {
            **below,
            **{name: _join(root, below[name]) for name in ("path", "url", "index") if isinstance(below.get(name), str)},
        }
        if isinstance(below, dict)
        else _join(root, below)
        for key, below in value.items()
        if key in keys and isinstance(below, dict | str)
    }
    return {**value, **inner}


def _join(root: str, path: str) -> str:
    return path if path.startswith(("/", "~")) or "://" in path else f"{root.rstrip('/')}/{path}"


class EvaluationSection(Section):
    """Configures what the evaluator does with each checkpoint's weights."""

    relaunch: ClassVar[Relaunch | None] = "free"

    datasets: tuple[EvalDataset, ...] = ()
    root: str | None = Field(
        default=None, description="folder or URL at which relative paths of sets begin: suites name their sets below it"
    )
    absent: Literal["refuse", "leave_out"] = Field(
        default="refuse", description="sets that are not there: an error, or said and left out"
    )
    groups: dict[str, tuple[str, ...]] = Field(
        default={}, description="names of sets whose mean is shown: {natural: [caltech101, cifar100]}"
    )
    validation: Annotated[tuple[HeldOutSection, ...], BeforeValidator(_list_one)] = Field(
        default=(),
        description="held-out images of the pretraining corpus: a path, or a list of {name, shards, class_map}. The "
        "objective's loss and accuracy are measured on them, without mixing, smoothing or augmentation",
    )
    segmentation: Annotated[tuple[SegmentationSection, ...], BeforeValidator(_list_one)] = Field(
        default=(),
        description="sets whose images have masks (KEY.seg.png): a linear classifier of patches is fitted to train, and its "
        "mIoU measured on test",
    )
    references: dict[str, ReferenceSection] = Field(
        default={}, description='what others have reached, by measure: {"val top-1": {percent: 49.9, by: authors, at: the end}}'
    )
    protocols: dict[str, Protocol] = Field(
        default={"few_shot": FewShot(), "linear": Linear()},  # type: ignore[call-arg]
        description="by name: {few_shot: {shots: [1, 5]}, linear: {}}; a protocol that is listed twice names itself: "
        "{more_shots: {protocol: few_shot, shots: [50]}}",
    )
    short_side: int | None = Field(
        default=None, ge=1, description="resize before the centre crop; image size * 256 / 224 if not given"
    )
    resize: Literal["short_side", "square"] = Field(
        default="short_side",
        description="short_side: the image keeps its ratio; square: both sides become `short_side`, as in big_vision's "
        "few-shot evaluation, which published few-shot values are from",
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
    replicas: int = Field(
        default=1,
        ge=1,
        description="processes that share the images of each set, each with its own GPU (and its own decoding processes); "
        "results are the same for any number",
    )
    order: Order = Field(default="oldest", description="which checkpoints are measured first")
    cache_gib: float = Field(
        default=4.0,
        ge=0,
        description="features of downstream sets that are kept, so that a new protocol or shot count costs no forward pass; "
        "those that were not read for longest are removed; 0 keeps none",
    )
    cache_folder: str | None = Field(
        default=None, description="where they are kept, which runs may share; if not given, `features` in the run folder"
    )
    cpu_threads: int = Field(default=1, ge=1, description="without a GPU; one leaves the rest to a training next to it")

    @model_validator(mode="before")
    @classmethod
    def _begin_at_root(cls, values: Any) -> Any:
        """Join relative paths with `root`, which is then done with: a configuration that is written has whole paths."""
        if not isinstance(values, dict) or not isinstance(root := values.get("root"), str):
            return values
        joined = {key: value for key, value in values.items() if key != "root"}
        for kind, keys in (("datasets", ("train", "test")), ("segmentation", ("train", "test")), ("validation", ("shards",))):
            if kind in values:
                joined[kind] = [_below(root, dataset, keys) for dataset in _as_list(values[kind])]
        return joined

    @model_validator(mode="after")
    def _groups_are_of_sets(self) -> Self:
        names = {dataset.name for dataset in (*self.datasets, *self.segmentation, *self.validation)}
        for group, members in self.groups.items():
            if unknown := [name for name in members if name not in names]:
                raise ValueError(f"groups: {group} names {unknown[0]!r}, which is none of the sets")
        return self

    @model_validator(mode="after")
    def _nothing_is_named_twice(self) -> Self:
        first: dict[str, str] = {}
        names = [named.name for named in (*self.datasets, *self.validation, *self.segmentation)]
        for name in names:
            other = first.setdefault(name.casefold(), name)
            if (count := names.count(name)) > 1:
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
