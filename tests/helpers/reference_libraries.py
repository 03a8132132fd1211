"""Finds timm and torchvision, and makes torchvision importable next to a CPU build of torch.

To be used after Lightning's import, which takes up what it finds of torchvision.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch

REFERENCE = Path(__file__).parents[2] / ".reference"  # timm and torchvision, kept apart: see the Makefile


def find_library(name: str) -> ModuleSpec | None:
    """Return where a library is, and let this process import it from now on; None where it is not installed."""
    if importlib.util.find_spec(name) is None and REFERENCE.is_dir():
        sys.path.append(str(REFERENCE))
    return importlib.util.find_spec(name)


@cache
def declare_operators() -> torch.library.Library | None:
    """Declare the schemas of torchvision's binary operators, which do not load here: nobody needs one, but the import does.

    They live as long as what is returned.
    """
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
