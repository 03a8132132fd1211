"""Train some steps with torch's debug mode, and print where the device is waited for. Argument: the ZeRO stage.

A line is `WAIT FILE:LINE`, of the innermost frame of this project, or of DeepSpeed's or Lightning's where there is none.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from pipeline.benchmark.train import lightning_loop
from pipeline.benchmark.train.synthetic import make_batch
from pipeline.benchmark.train.work import standard_config, with_settings
from pipeline.config.resolve import resolve_run
from pipeline.distributed.world import World
from pipeline.train.callbacks.steps import StepCallback

FIRST, LAST = 3, 8  # steps; lines of metrics are at multiples of ten


class Watched(StepCallback):
    """Turns the debug mode on for some steps, and then ends the process."""

    def __init__(self, _turn: Any) -> None:
        pass

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        if step == FIRST:
            torch.cuda.set_sync_debug_mode("warn")
        elif step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            raise SystemExit(0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pass


def tell(message: Warning | str, *_: Any, **__: Any) -> None:
    if "synchron" not in str(message):
        return
    frames = [frame for frame in traceback.extract_stack() if "/tests/" not in frame.filename]
    known = [frame for frame in frames if "/pipeline/" in frame.filename or "deepspeed" in frame.filename]
    inner = known[-1] if known else frames[-2]
    name = inner.filename
    name = name[name.index("/pipeline/") + 1 :] if "/pipeline/" in name and "site-packages" not in name else name
    print(f"WAIT {name}:{inner.lineno}", flush=True)


def main(stage: int) -> None:
    warnings.simplefilter("always")
    warnings.showwarning = tell
    config = standard_config("S/16", image_size=224, num_classes=1000)
    with tempfile.TemporaryDirectory() as folder:
        own = with_settings(config, folder=folder, data="synthetic.tar", batch_size=16, num_workers=0, zero_stage=stage)
        run = resolve_run(own, world_size=1).with_precision("bf16_autocast" if stage == 0 else "bf16")
        lightning_loop.TakeTurns = Watched  # type: ignore[misc,assignment]
        assert make_batch(run, device=torch.device("cpu"))["images"].shape[0] == 16
        lightning_loop.run_lightning(run, world=World.alone(), real_data=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
