"""Resize the kernel that embeds a patch, so that patches of another size have the same embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_patches(kernel: Tensor, *, size: int) -> Tensor:
    """Return a kernel for patches of another size: the pseudo-inverse resize of FlexiViT (arXiv 2212.08013, section 3.4).

    Let B be the matrix that resizes a patch bilinearly. The new kernel w' solves min |<x, w> - <B x, w'>| over patches x, by
    w' = (B^T)^+ w. For larger patches the embedding of a resized patch is exactly that of the patch.

    Args:
        kernel: (D, 3, P, P).
        size: pixels of the new patch's side.

    Returns:
        (D, 3, size, size)
    """
    old = kernel.shape[-1]
    if old == size:
        return kernel
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resized = F.interpolate(basis, size=(size, size), mode="bilinear", antialias=size < old, align_corners=False)
    matrix = torch.linalg.pinv(resized.flatten(1))  # B is (size^2, old^2); this is the pseudo-inverse of its transpose
    flat = kernel.double().flatten(2)  # (D, 3, P^2)
    return (flat @ matrix.T).unflatten(2, (size, size)).to(kernel.dtype)
