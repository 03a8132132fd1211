"""Let a GPU compute the same bits again, at some cost."""

from __future__ import annotations

import os

import torch

from pipeline.errors import ConfigError

# Two buffers of 4 MiB a stream: cuBLAS's products are then reproducible (cuBLAS documentation, "Results reproducibility").
REPRODUCIBLE = (":4096:8", ":16:8")
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def use_deterministic_kernels() -> None:
    """Choose kernels whose results do not depend on which thread comes first. Call it before anything is computed on a GPU.

    An operation that has no such kernel raises. Attention's memory-efficient kernel has none for its backward pass, and is
    switched off.

    Raises:
        ConfigError: the environment asks for workspaces that are not reproducible.
    """
    name, value = WORKSPACE
    given = os.environ.setdefault(name, value)
    if given not in REPRODUCIBLE:
        raise ConfigError(
            f"trainer.deterministic=true, but {name}={given} in the environment lets cuBLAS choose its workspaces: unset it, "
            f"or set {' or '.join(REPRODUCIBLE)}"
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check for bugs, at a pass each
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)
