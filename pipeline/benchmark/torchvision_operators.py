"""Let torchvision be imported with a CPU build of torch, which lacks its binary operators."""

from __future__ import annotations

import torch


def declare_torchvision_operators() -> None:
    """Declare the schemas of torchvision's binary operators, once a process: nobody needs one, but the import does."""
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declare_torchvision_operators.library = library  # type: ignore[attr-defined]  # the schemas live as long as this
