"""Define the settings of the training loop and of its checkpoints."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.distributed.precision import TrainingPrecision
from pipeline.durations import DurationField
from pipeline.section import FREE, TOLD, Relaunch, Section
from pipeline.train.attention import AttentionKernel
from pipeline.train.float8 import Float8Recipe

REDUCE_BUCKET_SIZE = 25_000_000  # 100 MB in fp32: long enough for a network's full rate, and a dozen of them in a ViT-L


class TrainerSection(Section):
    """Configures how long, how large and on what to train."""

    duration: DurationField = Field(description="the whole run; the schedule spans it", json_schema_extra=TOLD)
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="stop after this step all the same (the schedule is not shortened)",
        json_schema_extra=FREE,
    )
    global_batch_size: int = Field(ge=1, description="images in one optimizer step over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        default=None,
        description="images a rank computes at once at most; more are accumulated, in parts as equal as can be. All its "
        "share if not set",
        json_schema_extra=TOLD,
    )
    devices: PositiveInt | Literal["auto"] = Field(
        default="auto", description="ranks on one machine when no launcher gives them: all GPUs, or 1", json_schema_extra=FREE
    )
    hardware: Literal["allotted", "found"] = Field(
        default="allotted",
        description="allotted: GPUs and nodes that were set aside must be used; found: whatever is found will do",
        json_schema_extra=FREE,
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage", json_schema_extra=TOLD)
    reduce_bucket_size: PositiveInt = Field(
        default=REDUCE_BUCKET_SIZE,
        description="gradients (numbers, not bytes) that the ranks reduce in one collective; the last bucket of a step is "
        "reduced after the backward pass, the others next to it with overlap_comm",
        json_schema_extra=TOLD,
    )
    overlap_comm: Literal["auto"] | bool = Field(
        default="auto",
        description="reduce gradients while the backward pass goes on (ZeRO-1 in bf16 and stage 0 never do); takes a second "
        "bucket of memory; auto: on GPUs",
        json_schema_extra=TOLD,
    )
    precision: Literal["auto"] | TrainingPrecision = Field(
        default="auto",
        description="bf16: bf16 weights with fp32 masters; bf16_autocast: fp32 weights, bf16 products; auto: bf16 where every "
        "rank's device computes it fast, else fp32",
    )
    compile: bool | Literal["auto", "blocks"] = Field(
        default="auto",
        description="torch.compile the model (true), or each of its repeated blocks by itself, which takes less time to "
        "compile; auto: the blocks on a GPU with a C compiler, where the ranks divide the batch (another size compiles again); "
        "else nothing",
        json_schema_extra=TOLD,
    )
    activation_checkpointing: PositiveInt | None = Field(
        default=None,
        description="n: what every n-th block keeps for the backward pass is computed again there instead (1: every block's); "
        "none: all is kept",
        json_schema_extra=TOLD,
    )
    attention: AttentionKernel | None = Field(
        default=None,
        description="the only kernel that attention may use; flash3 is FlashAttention-3, where it is installed; torch's own "
        "choice if not set",
        json_schema_extra=TOLD,
    )
    float8: Float8Recipe | None = Field(
        default=None,
        description="products of the repeated blocks in float8 (torchao), scaled by tensor, by row, or by row with "
        "the weights' gradients in `precision`; for GPUs from Ada (by row: Hopper) on, with compiled blocks",
        json_schema_extra=TOLD,
    )
    float8_layers: list[str] | None = Field(
        default=None,
        min_length=1,
        description="ends of the names of layers inside a block that float8 is for, such as mlp.up; all whose sizes allow "
        "it if not set. `benchmark train --measure float8` says where it wins",
        json_schema_extra=TOLD,
    )
    deterministic: bool = Field(
        default=False,
        description="kernels whose results do not depend on which thread comes first: the same launch gives the same bits on a "
        "GPU too, more slowly",
        json_schema_extra=TOLD,
    )
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="of one device, for MFU; looked up or measured on a GPU, and no MFU on a CPU, if not given",
        json_schema_extra=FREE,
    )
    max_skipped_steps: int = Field(
        default=5, ge=1, description="non-finite steps in a row before the run stops", json_schema_extra=TOLD
    )
    hang_timeout_s: float | None = Field(
        default=900.0,
        gt=0,
        description="no step ends for so long (the first: twice): every rank says where it waits and exits; none: never",
        json_schema_extra=FREE,
    )
    collective_timeout_s: float = Field(
        default=1200.0,
        gt=0,
        description="how long ranks wait for one another; the last resort behind hang_timeout_s",
        json_schema_extra=FREE,
    )


class CheckpointSection(Section):
    """Configures when to save and what to keep."""

    relaunch: ClassVar[Relaunch | None] = "told"

    every: DurationField = Field(description="interval between checkpoints")
    keep_last: int = Field(default=3, ge=1, description="newest checkpoints kept")
    keep_every: DurationField | None = Field(default=None, description="checkpoints at multiples of this are kept for good")
    max_failed_saves: int = Field(
        default=3, ge=1, description="saves in a row that may fail, for lack of space for example", json_schema_extra=FREE
    )
