"""Find timm and torchvision, which this process then can import.

To be used after Lightning's import, which takes up what it finds of torchvision.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / ".reference"  # timm and torchvision, kept apart: see the Makefile


def find_library(name: str) -> ModuleSpec | None:
    """Return where a library is, and let this process import it from now on; None where it is not installed."""
    if importlib.util.find_spec(name) is None and REFERENCE.is_dir():
        sys.path.append(str(REFERENCE))
    return importlib.util.find_spec(name)
