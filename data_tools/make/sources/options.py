"""Hold what the user says about a source, and which kind of source each option has a meaning for."""

from __future__ import annotations

from dataclasses import dataclass

from data_tools import splits
from data_tools.make.sources.source import Kind
from pipeline.errors import DataError


@dataclass(frozen=True)
class SourceOptions:
    """Holds what the user says about a source. An option that has no meaning for the source is refused."""

    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    label_field: str | None = None
    image_folder: str | None = None
    encoding: str | None = None
    split: str | None = None  # several have commas between them
    vtab: str | None = None

    @property
    def wanted_splits(self) -> tuple[str, ...] | None:
        return None if self.split is None else splits.parse_wanted(self.split)


OPTIONS_OF = {
    "image_column": ("Parquet or Arrow files", "CSV", "TensorFlow Datasets"),
    "label_column": ("Parquet or Arrow files", "CSV", "CIFAR", "TensorFlow Datasets"),
    "label_separator": ("CSV",),
    "label_field": ("WebDataset tars",),
    "image_folder": ("CSV",),
    "vtab": ("TensorFlow Datasets",),
}
FLAGS = {name: f"--{name.replace('_', '-')}" for name in OPTIONS_OF}


def refuse_unused(options: SourceOptions, kind: Kind, *, path: str) -> None:
    """Refuse options that have no meaning for a kind of source.

    Raises:
        DataError: one of them is set.
    """
    for name, kinds in OPTIONS_OF.items():
        if getattr(options, name) is not None and kind not in kinds:
            raise DataError(f"{FLAGS[name]} has no meaning for {path}, which is {_with_article(kind)}")


def _with_article(kind: Kind) -> str:
    return {"image folder": "an image folder", "CSV": "a CSV file"}.get(kind, kind)
