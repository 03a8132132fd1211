"""Loss, accuracy, gradient norm, throughput, data wait and MFU, averaged over the steps between two log lines."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MeanMetric, Metric, MetricCollection

from pipeline.console.lines import log_line
from pipeline.console.progress import Progress, progress
from pipeline.data.streams.train import DIGEST_MODULUS
from pipeline.errors import TrainingError
from pipeline.run.checkpoint import METRICS_STATE
from pipeline.run.loss_history import LossHistory
from pipeline.train.callbacks.heartbeat import Heartbeat
from pipeline.train.callbacks.steps import is_step_end
from pipeline.train.callbacks.stragglers import RankTimes

UNREADABLE_GRACE = 10  # unreadable images that never stop a run, however short


class TrainingMetrics(Callback):
    """Logs every `log_every` steps, on all loggers, keyed by step; draws the progress bar; enforces the data budget.

    Args:
        metrics: of logits and labels, by their names in a line.
        global_batch_size: images a step.
        epochs_per_image: by name of the metric, what one image of the run is of a pass over a corpus.
        total_steps: where the progress bar ends.
        log_every: steps between two lines.
        flops_per_image: training operations, for MFU and exaFLOPs.
        peak_flops: of all ranks together, per second; None where nobody knows, and no MFU is logged.
        unreadable_budget: part of the images seen that may be unreadable.
        rank_times: asked for the slowest rank at each line.
        heartbeat: shown each line, on rank 0.
    """

    def __init__(
        self,
        *,
        metrics: dict[str, Metric],
        global_batch_size: int,
        epochs_per_image: dict[str, float],
        total_steps: int,
        log_every: int,
        flops_per_image: float,
        peak_flops: float | None,
        unreadable_budget: float,
        rank_times: RankTimes,
        heartbeat: Heartbeat,
    ) -> None:
        self.global_batch_size = global_batch_size
        self.epochs_per_image = epochs_per_image
        self.total_steps = total_steps
        self.log_every = log_every
        self.flops_per_image = flops_per_image
        self.peak_flops = peak_flops
        self.unreadable_budget = unreadable_budget
        self.rank_times = rank_times
        self.heartbeat = heartbeat
        self._loss: LossHistory | None = None  # the same on every rank
        # Over all ranks since the run's start, the same on every rank: digest of everything seen, unreadable images,
        # requests to a store made again.
        self._totals = torch.zeros(3, dtype=torch.int64)
        self._step_totals = torch.zeros(3, dtype=torch.int64)
        self._metrics = MetricCollection({"loss": MeanMetric(nan_strategy="disable"), "wait_s": MeanMetric()})
        self._of_outputs = MetricCollection(dict(metrics))
        self._bar: Progress | None = None
        self._interval_start: float | None = None  # set by the first batch of this launch
        self._interval_step = 0

    @property
    def state_key(self) -> str:
        return METRICS_STATE

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self._totals.tolist(), "loss": None if self._loss is None else self._loss.to_values()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._totals = torch.tensor(state_dict["totals"], dtype=torch.int64)
        self._loss = LossHistory.described_by(state_dict.get("loss"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._totals, self._step_totals = self._totals.to(pl_module.device), self._step_totals.to(pl_module.device)
        self._metrics.to(pl_module.device)
        self._of_outputs.to(pl_module.device)
        if trainer.is_global_zero:
            self._bar = progress(total=self.total_steps, initial=trainer.global_step, unit="step", description="train")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not in on_train_start: writing the weights of step 0 is not part of the first step, waiting for its batch is.
        if self._interval_start is None:
            self._interval_start = time.perf_counter() - float(batch["wait_s"])
            self._interval_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._metrics["loss"].update(outputs["micro_loss"])
        self._metrics["wait_s"].update(batch["wait_s"])
        counts = [batch["digest"], len(batch["unreadable"]), len(batch["retries"])]
        self._step_totals += torch.tensor(counts, device=self._step_totals.device)
        self._of_outputs.update(outputs["logits"], batch["labels"])
        for item in batch["unreadable"]:
            log_line(
                f"[data] unreadable image {item.key!r} in {item.shard} at position {item.position} replaced: {item.reason}"
            )
        for reason, times in Counter(batch["retries"]).items():
            log_line(f"[data] {reason.shard}: a read failed {times} times and was made again: {reason.reason}")
        if is_step_end(trainer, batch_idx):
            step = trainer.global_step
            dist.all_reduce(self._step_totals)
            self._totals += self._step_totals
            self._totals[0] %= DIGEST_MODULUS
            self._step_totals.zero_()
            if self._bar is not None:
                self._bar.update()
            if step % self.log_every == 0 or step == trainer.max_steps:
                self._log(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def _log(self, trainer: Trainer, step: int) -> None:
        """Average over ranks (collectives: all ranks come here) and send to the loggers (rank 0)."""
        strategy: Any = trainer.strategy
        assert self._interval_start is not None
        elapsed_s = time.perf_counter() - self._interval_start
        steps = step - self._interval_step
        means = {name: float(value) for name, value in self._metrics.compute().items()}
        self._loss = self._loss.after(means["loss"]) if self._loss is not None else LossHistory.begin(means["loss"])
        micro_batches = steps * trainer.accumulate_grad_batches
        digest, unreadable, retries = self._totals.tolist()
        images_per_s = steps * self.global_batch_size / elapsed_s
        images_seen = step * self.global_batch_size
        values = {
            "step": step,
            "images_seen": images_seen,
            **{name: images_seen * epochs for name, epochs in self.epochs_per_image.items()},
            "exaflops": images_seen * self.flops_per_image / 1e18,
            "train/loss": means["loss"],
            **{name: float(value) for name, value in self._of_outputs.compute().items()},
            "train/learning_rate": strategy.engine.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": strategy.gradient_norm(),
            "train/skipped_steps": strategy.skipped_steps,
            "speed/images_per_s": images_per_s,
            "speed/step_time_s": elapsed_s / steps,
            "speed/data_wait_fraction": min(1.0, means["wait_s"] * micro_batches / elapsed_s),
            **({} if self.peak_flops is None else {"speed/mfu": images_per_s * self.flops_per_image / self.peak_flops}),
            "speed/peak_memory_gib": _peak_memory_gib(),
            **self.rank_times.gather(trainer, steps=steps, step_time_s=elapsed_s / steps),
            "data/unreadable": unreadable,
            "data/retries": retries,
            "data/digest": digest,
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        if trainer.is_global_zero:
            self.heartbeat.observe(values)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {means['loss']:.4g}, {images_per_s:.4g} images/s", refresh=True)
        self._metrics.reset()
        self._of_outputs.reset()
        self._interval_start, self._interval_step = time.perf_counter(), step
        self._enforce_budget(unreadable, images_seen)

    def _enforce_budget(self, unreadable: int, images_seen: int) -> None:
        allowed = max(UNREADABLE_GRACE, self.unreadable_budget * images_seen)
        if unreadable > allowed:
            error = TrainingError(
                f"{unreadable} of {images_seen} images could not be read, more than data.unreadable_budget="
                f"{self.unreadable_budget} allows; the log above names them. Repair the shards, or raise the budget"
            )
            raise error.everywhere()


def _peak_memory_gib() -> float:
    """Of this rank: device memory on a GPU, resident memory on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
