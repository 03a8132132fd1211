"""Choose the kernel of torch's attention."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch

from pipeline.errors import ConfigError

AttentionKernel = Literal["flash", "flash3", "cudnn", "efficient", "math"]
KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)
FLASH3_MODULE = "flash_attn_interface"  # what FlashAttention-3 installs (github.com/Dao-AILab/flash-attention, hopper/)


def use_attention(kernel: AttentionKernel | None, *, device: torch.device) -> None:
    """Leave torch no other kernel for attention, in this process. Attention that the kernel does not compute raises then.

    Args:
        kernel: None leaves torch its choice on a GPU. On a CPU it leaves the flash kernel out, whose backward pass in bf16
            takes three times as long as that of the plain one, which also computes in fp32.

    Raises:
        ConfigError: the device has no such kernel, FlashAttention-3 is not installed, or this torch cannot use it.
    """
    if device.type == "cpu" and kernel not in (None, "flash", "math"):
        raise ConfigError(f"trainer.attention={kernel}: a CPU has flash and math; leave it out")
    if kernel is None:
        if device.type == "cpu":
            torch.backends.cuda.enable_flash_sdp(False)
        return
    if kernel == "flash3":
        _activate_flash3(device)
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(kernel in ("flash", "flash3"))
    cuda.enable_cudnn_sdp(kernel == "cudnn")
    cuda.enable_mem_efficient_sdp(kernel == "efficient")
    cuda.enable_math_sdp(kernel == "math")


def why_not_flash3() -> str | None:
    """Return why FlashAttention-3 cannot be used; None if it can."""
    if importlib.util.find_spec(FLASH3_MODULE) is None:
        return f"the module {FLASH3_MODULE} of FlashAttention-3 is not installed"
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        return f"torch {torch.__version__} cannot use it: 2.11 and later can"
    return None


def _activate_flash3(device: torch.device) -> None:
    why = why_not_flash3()
    if why is None and torch.cuda.get_device_capability(device)[0] != 9:
        why = f"{torch.cuda.get_device_name(device)} is no Hopper GPU, which FlashAttention-3 is for"
    if why is not None:
        raise ConfigError(f"trainer.attention=flash3: {why}; leave it out")
    try:
        torch.nn.attention.activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError) as error:  # its build is of another torch, or has no backward pass
        raise ConfigError(f"trainer.attention=flash3: FlashAttention-3 cannot be used ({error}); leave it out") from error
