"""The configuration: frozen pydantic sections. `read_config` reads them.

Only `__main__` and `build` see a whole `RunConfig`; everything else is handed a section or plain values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)  # fmt: skip

from pipeline.credentials import describe_credential
from pipeline.data.images.crop import Resize
from pipeline.distributed.precision import EvaluationPrecision, TrainingPrecision
from pipeline.durations import DurationField
from pipeline.functional.schedules import Decay

MAX_SEED = 2**63 - 1  # of numpy and of torch's generators, which take 64 bits with a sign
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    # Numbers become strings where a string is asked for: a run may be named 42.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class ModelSection(Section):
    """The Vision Transformer."""

    name: str = Field("L/16", description="size (Ti, S, B, L, H) and patch size in pixels")
    image_size: int = Field(224, ge=1, description="side of the square input in pixels; a multiple of the patch size")
    num_classes: int = Field(ge=1, description="classes of the pretraining set")
    representation: Literal["tanh", "none"] = Field("tanh", description="pre-logits layer of the pretraining head")
    dropout: float = Field(0.0, ge=0, lt=1, description="after every dense layer but qkv, and after the positions")
    width: int | None = Field(None, ge=1, description="overrides the size's width (for models of your own)")
    depth: int | None = Field(None, ge=1, description="overrides the size's number of blocks")
    mlp_dim: int | None = Field(None, ge=1, description="overrides the size's MLP width")
    num_heads: int | None = Field(None, ge=1, description="overrides the size's number of heads")


class ShardsSection(Section):
    """Where shards lie: a path alone, or `{url: ..., index: ...}` where their index is kept elsewhere."""

    path: str = Field(validation_alias=AliasChoices("path", "url"), description="folder or URL of indexed shards")
    index: str | None = Field(None, description="folder or file of their index, where it does not lie beside them")

    @model_validator(mode="before")
    @classmethod
    def _take_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _give_path_alone(self, handler: SerializerFunctionWrapHandler) -> Any:
        values = handler(self)
        if self.index is None:
            values.pop("index", None)  # not there where defaults are left out
        return values["path"] if list(values) == ["path"] else values


class CorpusSection(ShardsSection):
    """One corpus of a mixture."""

    weight: float = Field(1.0, gt=0, description="share of the images; the weights' sum does not matter")
    first_class: int = Field(0, ge=0, description="added to its labels, where corpora have classes of their own")


def _list_one_corpus(value: Any) -> Any:
    """`{url: ..., index: ...}` is a mixture of one."""
    return [value] if isinstance(value, dict) else value


class DataSection(Section):
    """The pretraining corpus and what happens to each image."""

    train: Annotated[str | tuple[CorpusSection, ...], BeforeValidator(_list_one_corpus)] = Field(
        description="folder or URL of indexed shards; {url, index} where their index is kept elsewhere; a mixture: a list of {path, "
        "weight, first_class, index}; or tars without an index (`pipe:COMMAND`, `URL-{000..999}.tar`, `-`), in approximate order"
    )
    accept: str | None = Field(
        None, description="fingerprint of other shards that a resumed run may go on with; the refusal names it"
    )
    num_workers: int = Field(4, ge=0, description="decoding processes a rank; 0 decodes in the training process")
    prefetch: int = Field(2, ge=1, description="micro-batches a worker prepares ahead")
    read_ahead: int = Field(8, ge=0, description="micro-batches whose shard blocks are asked for before they are needed")
    read_timeout_s: float = Field(60.0, gt=0, description="of one request to a store behind a URL")
    read_patience_s: float = Field(
        600.0, ge=0, description="how long a read may fail, tried again and again, before the run stops"
    )
    cache_dir: str | None = Field(None, description="local folder that keeps blocks read from a URL; none: memory alone")
    cache_gib: float = Field(100.0, gt=0, description="most that cache_dir may hold, in GiB")
    num_streams: int | None = Field(
        None, ge=1, description="C of the order; a multiple or a divisor of the global batch size, which it is if not given"
    )
    min_area: float = Field(0.05, gt=0, le=1, description="smallest crop, as a part of the image")
    max_area: float = Field(1.0, gt=0, le=1, description="largest crop")
    min_ratio: float = Field(0.75, gt=0, description="narrowest crop, width / height")
    max_ratio: float = Field(4 / 3, gt=0, description="widest crop")
    flip: bool = Field(True, description="mirror half of the images")
    resize: Resize = Field("bilinear", description="the authors' resize has no antialiasing")
    decoder: Literal["auto", "region", "whole"] = Field(
        "auto", description="decode of a JPEG only what a crop needs, or all of it; auto: region where it is built"
    )
    shrink_margin: float | None = Field(
        None,
        ge=1,
        description="decode a JPEG at 1/2, 1/4 or 1/8 where that leaves this many times the pixels needed; none: never",
    )
    unreadable_budget: float = Field(
        1e-4, ge=0, lt=1, description="part of the images seen that may be unreadable (ten always may) before the run stops"
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_area > self.max_area or self.min_ratio > self.max_ratio:
            raise ValueError("min_area and min_ratio must not exceed max_area and max_ratio")
        if self.shrink_margin is not None and (self.resize != "bilinear_antialias" or self.decoder != "region"):
            raise ValueError("shrink_margin needs resize=bilinear_antialias and decoder=region: no other gives the same pixels")
        return self


class LossSection(Section):
    """What is minimised."""

    name: Literal["sigmoid", "softmax"] = Field("sigmoid", description="sigmoid for ImageNet-21k and JFT (overlapping classes)")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSection(Section):
    """Adam with decoupled weight decay (`torch.optim.AdamW`: each step subtracts lr * weight_decay * weight)."""

    learning_rate: float = Field(gt=0, description="peak, after warmup")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="paper, section 4.1")
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(ge=0)
    decayed: Literal["kernels", "all"] = Field(
        "kernels", description="kernels leaves biases, LayerNorms, positions and class token alone"
    )
    clip_norm: float | None = Field(None, gt=0, description="global gradient norm is cut to this")


class ScheduleSection(Section):
    """The learning rate over the run."""

    warmup: DurationField = Field(description="linear, from 0")
    decay: Decay = Field("linear")
    end: float = Field(1e-5, ge=0, description="learning rate at the end")


class TrainerSection(Section):
    """How long, how large, on what."""

    duration: DurationField = Field(description="the whole run; the schedule spans it")
    max_steps: int | None = Field(None, ge=1, description="stop after this step all the same (the schedule is not shortened)")
    global_batch_size: int = Field(ge=1, description="images in one optimizer step over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images a rank computes at once at most; more are accumulated, in parts as equal as can be. All its share if not set",
    )
    devices: PositiveInt | Literal["auto"] = Field(
        "auto", description="ranks on one machine when no launcher gives them: all GPUs, or 1"
    )
    hardware: Literal["allotted", "found"] = Field(
        "allotted", description="allotted: GPUs and nodes that were set aside must be used; found: whatever is found will do"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    precision: Literal["auto"] | TrainingPrecision = Field(
        "auto",
        description="bf16: bf16 weights with fp32 masters; bf16_autocast: fp32 weights, bf16 products; auto: bf16 where every "
        "rank's device computes it fast, else fp32",
    )
    compile: bool = Field(
        False, description="torch.compile the model; best where the ranks divide the batch: another size compiles anew"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device, for MFU; looked up or measured on a GPU, and no MFU on a CPU, if not given"
    )
    max_skipped_steps: int = Field(5, ge=1, description="non-finite steps in a row before the run stops")
    hang_timeout_s: float | None = Field(
        900.0,
        gt=0,
        description="no step ends for so long (the first: twice): every rank says where it waits and exits; none: never",
    )
    collective_timeout_s: float = Field(
        1200.0, gt=0, description="how long ranks wait for one another; the last resort behind hang_timeout_s"
    )


class CheckpointSection(Section):
    """When to save, what to keep."""

    every: DurationField = Field(description="interval between checkpoints")
    keep_last: int = Field(3, ge=1, description="newest checkpoints kept")
    keep_every: DurationField | None = Field(None, description="checkpoints at multiples of this are kept for good")
    max_failed_saves: int = Field(3, ge=1, description="saves in a row that may fail, for want of space for example")


class EvalDataset(Section):
    """One downstream set: shards of its train and test splits."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    train: ShardsSection
    test: ShardsSection


class EvaluationSection(Section):
    """What the evaluator does with each checkpoint's weights."""

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


class TrackingSection(Section):
    """Weights & Biases and the local mirror."""

    project: str | None = Field(
        None,
        max_length=128,
        pattern=r"^[^/\\#?%:]+$",
        description="if not given: WANDB_PROJECT, or W&B's settings file, or vit-pretraining",
    )
    entity: str | None = Field(
        None,
        max_length=128,
        pattern=r"^[^/\\#?%:]+$",
        description="if not given: WANDB_ENTITY, or W&B's settings file, or the key's own",
    )
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        description="auto: as WANDB_MODE or W&B's settings file says, else online where a key is found, else offline. "
        "Of this and the environment the quieter counts",
    )
    log_every: int = Field(50, ge=1, description="steps between two lines of metrics")


class RunConfig(Section):
    """One run."""

    name: str = Field(
        max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the run folder and the W&B run"
    )
    output_dir: str = Field("runs", description="where run folders are made")
    seed: Seed = 0
    model: ModelSection
    data: DataSection
    loss: LossSection = LossSection()  # type: ignore[call-arg]
    optimizer: OptimizerSection
    schedule: ScheduleSection
    trainer: TrainerSection
    checkpoint: CheckpointSection
    evaluation: EvaluationSection = EvaluationSection()  # type: ignore[call-arg]
    tracking: TrackingSection = TrackingSection()  # type: ignore[call-arg]

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @model_validator(mode="after")
    def _stage_fits_precision(self) -> Self:
        if self.trainer.zero_stage == 0 and self.trainer.precision == "bf16":
            raise ValueError(
                "trainer.precision=bf16 keeps its fp32 masters in ZeRO; with trainer.zero_stage=0 use bf16_autocast or fp32"
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
        """The rank that knows what is wrong must speak before those that only wait for it give up."""
        hang_s = self.trainer.hang_timeout_s
        outer = self.trainer.collective_timeout_s if hang_s is None else hang_s
        if self.data.read_patience_s >= outer:
            name = "trainer.collective_timeout_s" if hang_s is None else "trainer.hang_timeout_s"
            raise ValueError(
                f"data.read_patience_s={self.data.read_patience_s:g} must be below {name}={outer:g}: a store that is away for a "
                f"while would pass for a hang"
            )
        if hang_s is not None and hang_s >= self.trainer.collective_timeout_s:
            raise ValueError(
                f"trainer.hang_timeout_s={hang_s:g} must be below trainer.collective_timeout_s="
                f"{self.trainer.collective_timeout_s:g}: ranks that give up first take those that could say why with them"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
