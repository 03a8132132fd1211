"""Measure loss, accuracy, gradient norm, throughput, data wait and MFU, averaged over the steps between two log lines.

Between two lines nothing is read from the device or sent to it, and the ranks do not speak with one another: a GPU that is
waited for at each step idles while the next step's first kernels are launched.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from pipeline.data.streams.train import DIGEST_MODULUS
from pipeline.run.checkpoint import METRICS_STATE
from pipeline.run.loss_history import LossHistory
from pipeline.train.callbacks.steps import StepCallback
from pipeline.train.callbacks.stragglers import RankTimes


class TrainingMetrics(StepCallback):
    """Makes a line of metrics every `log_every` steps and at the end, and gives it to all loggers, keyed by step.

    Attributes:
        line: line of the step which has just ended, the same on every rank except the rank's own measures (speed, memory);
            None where that step has none. For callbacks that go after this one.

    Args:
        metrics: of the objective's predictions and targets, by their names in a line.
        global_batch_size: images a step.
        epochs_per_image: part of a pass over a corpus that one image of the run is, by name of the metric.
        log_every: steps between two lines.
        flops_per_image: training operations, for MFU and exaFLOPs.
        peak_flops: peak of all ranks together, per second; None where it is unknown, and no MFU is logged.
        rank_times: gives the slowest rank at each line.
    """

    def __init__(
        self,
        *,
        metrics: dict[str, Metric],
        global_batch_size: int,
        epochs_per_image: dict[str, float],
        log_every: int,
        flops_per_image: float,
        peak_flops: float | None,
        rank_times: RankTimes,
    ) -> None:
        self.global_batch_size = global_batch_size
        self.epochs_per_image = epochs_per_image
        self.log_every = log_every
        self.flops_per_image = flops_per_image
        self.peak_flops = peak_flops
        self.rank_times = rank_times
        self.line: dict[str, Any] | None = None
        self._loss: LossHistory | None = None  # the same on every rank
        # Over all ranks since the run's start, the same on every rank: digest of everything seen, unreadable images,
        # requests to a store made again.
        self._totals = [0, 0, 0]
        self._pending = [0, 0, 0]  # this rank's, not yet among them
        self._since_line = Averages()
        self._of_outputs = MetricCollection(dict(metrics))
        self._device = torch.device("cpu")  # the training's, from its start
        self._interval_start: float | None = None  # set by the first batch of this launch
        self._interval_step = 0

    @property
    def state_key(self) -> str:
        return METRICS_STATE

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. This is a collective: all ranks take their part of a checkpoint."""
        self._add_up()
        return {"totals": list(self._totals), "loss": None if self._loss is None else self._loss.to_values()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._totals = list(state_dict["totals"])
        self._loss = LossHistory.described_by(state_dict.get("loss"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        self._of_outputs.to(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # This is not in on_train_start: the first step includes the wait for its batch, but not writing the weights of step 0.
        if self._interval_start is None:
            self._interval_start = time.perf_counter() - float(batch["wait_s"])
            self._interval_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._since_line.add(loss=outputs["micro_loss"], wait_s=batch["wait_s"])
        counts = (batch["digest"], len(batch["unreadable"]), len(batch["retries"]))
        self._pending = [sum(pair) for pair in zip(self._pending, counts, strict=True)]
        self._of_outputs.update(outputs["predictions"], outputs["targets"])
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self.line = None
        if step % self.log_every == 0 or step == trainer.max_steps:
            self.line = self._make_line(trainer, step)
            for logger in trainer.loggers:
                logger.log_metrics(self.line, step=step)
            self._since_line = Averages()
            self._of_outputs.reset()
            self._interval_start, self._interval_step = time.perf_counter(), step

    def _make_line(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """Average over ranks since the last line. All ranks come here: it has collectives."""
        strategy: Any = trainer.strategy
        assert self._interval_start is not None
        elapsed_s = time.perf_counter() - self._interval_start
        steps = step - self._interval_step
        loss, wait_s = self._since_line.over_all_ranks(self._device)
        self._loss = self._loss.after(loss) if self._loss is not None else LossHistory.begin(loss)
        micro_batches = steps * trainer.accumulate_grad_batches
        self._add_up()
        digest, unreadable, retries = self._totals
        images_per_s = steps * self.global_batch_size / elapsed_s
        images_seen = step * self.global_batch_size
        return {
            "step": step,
            "images_seen": images_seen,
            **{name: images_seen * epochs for name, epochs in self.epochs_per_image.items()},
            "exaflops": images_seen * self.flops_per_image / 1e18,
            "train/loss": loss,
            **{name: float(value) for name, value in self._of_outputs.compute().items()},
            "train/learning_rate": strategy.learning_rate,
            "train/gradient_norm": strategy.gradient_norm(),
            "train/skipped_steps": strategy.skipped_steps,
            "speed/images_per_s": images_per_s,
            "speed/step_time_s": elapsed_s / steps,
            "speed/data_wait_fraction": min(1.0, wait_s * micro_batches / elapsed_s),
            **({} if self.peak_flops is None else {"speed/mfu": images_per_s * self.flops_per_image / self.peak_flops}),
            "speed/peak_memory_gib": _peak_memory_gib(),
            **self.rank_times.gather(trainer, steps=steps, step_time_s=elapsed_s / steps),
            "data/unreadable": unreadable,
            "data/retries": retries,
            "data/digest": digest,
        }

    def _add_up(self) -> None:
        """Add what all ranks have counted since the last time to the totals. This is a collective."""
        counts = torch.tensor([self._pending[0] % DIGEST_MODULUS, *self._pending[1:]], device=self._device)
        dist.all_reduce(counts)
        self._totals = [sum(pair) for pair in zip(self._totals, counts.tolist(), strict=True)]
        self._totals[0] %= DIGEST_MODULUS
        self._pending = [0, 0, 0]


class Averages:
    """Averages losses, which stay on their device until they are asked for, and waits for data."""

    def __init__(self) -> None:
        self._losses: Tensor | None = None
        self._wait_s = 0.0
        self._count = 0

    def add(self, *, loss: Tensor, wait_s: float) -> None:
        """Add those of a micro-batch."""
        self._losses = loss.double() if self._losses is None else self._losses + loss
        self._wait_s += wait_s
        self._count += 1

    def over_all_ranks(self, device: torch.device) -> tuple[float, float]:
        """Return the mean loss and wait of all ranks' micro-batches. This is a collective."""
        sums = torch.tensor([0.0, self._wait_s, self._count], dtype=torch.float64, device=device)
        if self._losses is not None:
            sums[0] = self._losses
        dist.all_reduce(sums)
        losses, wait_s, count = sums.tolist()
        return losses / count, wait_s / count


def _peak_memory_gib() -> float:
    """Return this rank's peak: device memory on a GPU, resident memory on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
