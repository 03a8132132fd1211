"""Describe a source that was recognised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.make.sources.listing import Listing
from data_tools.parallel import Workers

Kind = Literal["image folder", "class tars", "WebDataset tars", "Parquet or Arrow files", "CSV", "CIFAR", "TensorFlow Datasets"]


@dataclass(frozen=True)
class Source:
    """Describes a source that was recognised but not yet listed."""

    kind: Kind
    stamp: str | None  # set where listing is costly: tells whether the source is the same as before
    list: Callable[[Path, Workers], Listing]  # scratch folder, and who works
    remarks: tuple[str, ...] = ()  # remarks on the names in a folder
