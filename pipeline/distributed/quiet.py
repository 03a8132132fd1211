"""Silence libraries that fill every rank's log with messages that need no action."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries(*, is_first: bool) -> None:
    """Keep warnings and errors; drop banners. Ranks other than the first keep errors only."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_gpu() else "cpu")  # else DeepSpeed guesses, and prints it
    import deepspeed.runtime.bf16_optimizer as bf16_optimizer
    import lightning.pytorch  # noqa: F401  # importing it later would set its log levels again

    bf16_optimizer.see_memory_usage = _nothing  # it prints a dozen lines, whatever the log level
    logging.getLogger("DeepSpeed").addFilter(lambda record: "ZeRO with an untested optimizer" not in record.getMessage())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING if is_first else logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Each of these is true and intended: the loader is endless, it resumes by position, its workers are configured.
    for pattern in (
        r"The .*dataloader.* does not have many workers",
        r"You're resuming from a checkpoint that ended before the epoch ended",
        r".*`IterableDataset` has `__len__` defined.*",
        r"`torch.distributed.\w+` is deprecated",  # DeepSpeed's calls, not ours
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's calls
        r"The `srun` command is available on your system but is not used",  # torchrun starts ranks as well
        r".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def _nothing(*_: object, **__: object) -> None: ...


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
