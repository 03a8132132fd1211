"""Run DeepSpeed ZeRO under Lightning, on GPU and on CPU with the same code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from pipeline.distributed.precision import TrainingPrecision
from pipeline.optim.average import AVERAGE
from pipeline.optim.guard import GuardedOptimizer
from pipeline.run.checkpoint import AVERAGE_FILE, MODEL_FILE, MOMENTS_FILES, read_meta
from pipeline.run.weights import TensorFiles
from pipeline.train import zero_state
from pipeline.train.section import REDUCE_BUCKET_SIZE


def deepspeed_config(
    *,
    zero_stage: int,
    precision: TrainingPrecision,
    micro_batch_size: int,
    clip_norm: float | None,
    reduce_bucket_size: int = REDUCE_BUCKET_SIZE,
    overlap_comm: Literal["auto"] | bool = "auto",
) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Gradients are accumulated and reduced in fp32 whatever the precision."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_clipping": (clip_norm or 0.0) if zero_stage > 0 else 0.0,  # at stage 0 the optimizer clips
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # DeepSpeed lists its own optimizers; torch's AdamW is tested here
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if zero_stage > 0:
        config["zero_optimization"] = {
            "stage": zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": torch.cuda.is_available() if overlap_comm == "auto" else overlap_comm,
            "reduce_bucket_size": reduce_bucket_size,
            "allgather_bucket_size": 100_000_000,
        }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif precision == "bf16_autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


class EnginePrecision(DeepSpeedPrecision):
    """Adapts Lightning's DeepSpeed precision so that it does not divide the loss twice under gradient accumulation.

    Lightning divides the loss by the number of micro-batches, and DeepSpeed's `backward` does so again. Adam hides that; a
    clipped or logged gradient norm does not.
    """

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


class ZeroStrategy(DeepSpeedStrategy):
    """Extends `DeepSpeedStrategy`: it also runs on CPU ranks (gloo), joins an existing process group, and guards steps."""

    def __init__(self, *, config: dict[str, Any], precision: TrainingPrecision, clip_norm: float | None) -> None:
        self._clip_norm = clip_norm
        self.learning_rate = 0.0  # of the coming step, before a group's own scale
        super().__init__(
            config=config,
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend="nccl" if torch.cuda.is_available() else "gloo",
            precision_plugin=EnginePrecision("bf16-mixed" if precision == "bf16" else "32-true"),
        )

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return device if device.index is not None else torch.device(device.type, 0)  # DeepSpeed wants a number

    def setup_environment(self) -> None:
        # This skips DeepSpeedStrategy's own method, which only adds a refusal of everything but CUDA.
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        # Do as the base class does, without its check of CUDA device indices.
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        optimizer = self.engine.optimizer
        if isinstance(optimizer, GuardedOptimizer):
            optimizer.guard_steps(clip_norm=self._clip_norm)
        elif hasattr(optimizer, "check_grad_overflow"):
            optimizer.check_grad_overflow = True  # off by default with fp32 weights
        zero_state.prepare_optimizer_state(self.engine)

    @property
    def engine(self) -> Any:
        """Return the DeepSpeed engine."""
        return self.deepspeed_engine

    @property
    def skipped_steps(self) -> int:
        """Return the optimizer steps refused because a gradient was not finite; the same number on every rank."""
        return int(self.engine.skipped_steps)

    def gradient_norm(self) -> float:
        """Return the global L2 norm of the last step's gradients before clipping; infinite if the step was refused."""
        optimizer = self.engine.optimizer
        norm = optimizer.gradient_norm if isinstance(optimizer, GuardedOptimizer) else self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def set_learning_rate(self, value: float) -> None:
        """For the coming step, in every parameter group."""
        optimizer = zero_state.inner_optimizer(self.engine)
        optimizer.set_learning_rate(value)
        optimizer.num_updates = zero_state.num_updates(self.engine)
        self.learning_rate = value

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Resume a training from a checkpoint, whatever number of ranks and ZeRO stage wrote it.

        The module holds the checkpoint's weights already (`build.training.make_training`): DeepSpeed has rounded them to bf16.

        Returns:
            What Lightning restores its loops and callbacks from: it follows from the step, and is not stored.
        """
        folder = Path(checkpoint_path)
        meta = read_meta(folder)
        zero_state.restore(
            self.engine,
            masters=TensorFiles([folder / MODEL_FILE]).read,
            moments=_moments_reader(folder),
            num_updates=meta.num_updates,
        )
        self.engine.global_steps, self.engine.skipped_steps = meta.step, meta.skipped_steps
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        loops = loop_progress(
            trainer.fit_loop.state_dict(), step=meta.step, micro_batches=meta.step * trainer.accumulate_grad_batches
        )
        return {
            "pytorch-lightning_version": lightning.__version__,
            "epoch": 0,
            "global_step": meta.step,
            "state_dict": {},
            "loops": {"fit_loop": loops},
            "callbacks": meta.callbacks,
            "lr_schedulers": [],
        }


def _moments_reader(folder: Path) -> Callable[[str], Tensor]:
    """Return the function that reads a tensor of the optimizer's state, by its key, from a checkpoint."""
    moments = TensorFiles(sorted(folder.glob(MOMENTS_FILES)))
    average = TensorFiles([path for path in (folder / AVERAGE_FILE,) if path.exists()])

    def read(key: str) -> Tensor:
        state, _, name = key.partition("/")
        return average.read(name) if state == AVERAGE else moments.read(key)

    return read


def loop_progress(template: dict[str, Any], *, step: int, micro_batches: int) -> dict[str, Any]:
    """Return the progress of Lightning's fit loop at the end of the last micro-batch of a step, as it would save it itself."""
    batches = {"ready": micro_batches, "started": micro_batches, "processed": micro_batches, "completed": micro_batches - 1}
    steps = {"ready": step, "completed": step}
    gradients = {**steps, "started": step}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    return {
        **template,
        "epoch_loop.state_dict": {"_batches_that_stepped": step - 1},
        "epoch_loop.batch_progress": {"total": dict(batches), "current": dict(batches), "is_last_batch": False},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": {"total": dict(steps), "current": dict(steps)},
                "zero_grad": {"total": dict(gradients), "current": dict(gradients)},
            }
        },
        "epoch_progress": {"total": dict(epoch), "current": dict(epoch)},
    }
