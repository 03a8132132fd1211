"""Write metrics as TensorBoard's event files, for people without W&B: `tensorboard --logdir RUNS`.

RUN_DIR/tensorboard/train       lines of metrics, by step
RUN_DIR/tensorboard/evaluate    results of checkpoints, by step
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from pipeline.errors import ConfigError
from pipeline.monitor.loggers import RowLogger
from pipeline.monitor.section import TrackingSection

HOW_TO_INSTALL = "pip install '.[tensorboard]'"
_NOT_CURVES = ("step", "time")


def check_tensorboard(tracking: TrackingSection) -> None:
    """Refuse a setting whose library is missing.

    Raises:
        ConfigError: with how to install it.
    """
    if tracking.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(f"tracking.tensorboard=true needs the library tensorboardX, which is not installed: {HOW_TO_INSTALL}")


class EventFile:
    """Writes numbers to an event file of its own, which TensorBoard reads together with those of earlier launches.

    Args:
        purge_after: a step; TensorBoard forgets what earlier files of the folder say of later steps, which a resumed launch
            trains again. None: nothing.
    """

    def __init__(self, folder: Path, *, purge_after: int | None = None) -> None:
        library: Any = importlib.import_module("tensorboardX")
        purge_step = None if purge_after is None else purge_after + 1
        self._writer = library.SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f".{os.getpid()}")

    def write(self, row: Mapping[str, Any], *, step: int) -> None:
        """Write every number of a row, under its name."""
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name not in _NOT_CURVES and not math.isnan(value):
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class TensorBoardLogger(RowLogger):
    """Writes a training's lines of metrics. It exists on rank 0 only.

    Args:
        start_step: the last step before this launch.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        super().__init__()
        self._events = EventFile(folder, purge_after=start_step)

    @property
    def name(self) -> str:
        return "tensorboard"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self._events.write(metrics, step=step)
        self._events.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._events.close()
