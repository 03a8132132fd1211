"""List CIFAR-10 and CIFAR-100 as their authors distribute them for Python: pickles of raw pixels, which are stored as PNG."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.make.sources.listing import Listing
from data_tools.make.sources.unpack import Entry, unpack_files
from data_tools.parallel import Workers
from pipeline.errors import DataError

SIDE = 32
META_NAMES = ("batches.meta", "meta")  # CIFAR-10's, CIFAR-100's
DEFAULT_LABELS = ("labels", "fine_labels")
NAMES_OF_LABELS = {"labels": "label_names", "fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"}
# These files need only these besides numbers, bytes, lists and dicts; a pickle that names anything else is not loaded.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class CifarUnpickler(pickle.Unpickler):
    """Loads arrays and plain values, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the batches of each split of a CIFAR folder; none if it is no such folder."""
    names = {path.name: path for path in folder.iterdir()}
    if "batches.meta" in names:
        batches = sorted(path for name, path in names.items() if name.startswith("data_batch_"))
        splits = {"train": batches, "test": [names["test_batch"]] if "test_batch" in names else []}
    elif "meta" in names and names["meta"].is_file():
        splits = {split: [names[split]] for split in ("train", "test") if split in names and names[split].is_file()}
    else:
        return {}
    return {split: paths for split, paths in splits.items() if paths}


def list_cifar(paths: list[Path], scratch: Path, workers: Workers, *, stamp: str, label_column: str | None) -> Listing:
    """Return the images of these batches, written to `scratch` as PNG.

    Args:
        stamp: tells these files and options from others.
        label_column: `coarse_labels`, for example; `labels` or `fine_labels` if not given.

    Raises:
        DataError: not CIFAR's layout.
    """
    meta = next(path for name in META_NAMES if (path := paths[0].parent / name).exists())
    names = _load(meta)
    label_key = label_column or next((key for key in DEFAULT_LABELS if NAMES_OF_LABELS[key].encode() in names), "labels")
    try:
        classes = [name.decode() for name in names[NAMES_OF_LABELS[label_key].encode()]]
    except KeyError as error:
        known = ", ".join(key for key, value in NAMES_OF_LABELS.items() if value.encode() in names)
        raise DataError(f"{meta} names no classes for {label_key!r}; it has some for: {known or 'nothing'}") from error
    read = partial(_read_batch, label_key.encode())
    return unpack_files(read, [str(path) for path in paths], scratch=scratch, stamp=stamp, classes=classes, workers=workers)


def _read_batch(label_key: bytes, path: str) -> Iterator[Entry]:
    batch = _load(Path(path))
    pixels, labels = batch.get(b"data"), batch.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE**2:
        raise DataError(f"{path}: no CIFAR batch: its b'data' is not an array of (N, {3 * SIDE**2}) bytes")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"{path}: {label_key!r} is not a list of {len(pixels)} labels")
    names = batch.get(b"filenames") or [f"{Path(path).name}-{i:05d}".encode() for i in range(len(pixels))]
    if len(names) != len(pixels):
        raise DataError(f"{path}: {len(names)} file names for {len(pixels)} images")
    for row, label, name in zip(pixels, labels, names, strict=True):
        yield Entry(name.decode(), [int(label)], _encode_png(row.reshape(3, SIDE, SIDE).transpose(1, 2, 0)))


def _encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def _load(path: Path) -> dict[bytes, Any]:
    with path.open("rb") as file:
        unpickler = CifarUnpickler(file, encoding="bytes")  # they were written by Python 2
        try:
            value = unpickler.load()
        except Exception as error:  # a damaged pickle raises almost anything
            raise DataError(f"{path} is not loaded: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: no CIFAR file: it holds a {type(value).__name__}, not a dict")
    return value
