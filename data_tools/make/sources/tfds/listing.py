"""List a data set that TensorFlow Datasets has prepared: one version's folder, with dataset_info.json and TFRecord files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from data_tools.make.sources.labels import tell_apart
from data_tools.make.sources.listing import MAX_LABEL, Listing
from data_tools.make.sources.tfds.records import Features, read_examples
from data_tools.make.sources.tfds.slices import Part, parse_slices, place_in_shards
from data_tools.make.sources.tfds.vtab import Task, find_task
from data_tools.make.sources.unpack import Entry, unpack_files
from data_tools.parallel import Workers
from pipeline.errors import DataError
from pipeline.json_text import parse_json

INFO_NAME, FEATURES_NAME = "dataset_info.json", "features.json"
_FILE_NAMES = ("file_name", "filename", "image/filename", "id", "image/id")  # features that name an image
_IMAGE, _CLASS_LABEL = "Image", "ClassLabel"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class PreparedSet:
    """Describes a prepared set.

    Attributes:
        shards: paths and numbers of examples of the files of each split.
        images, labels: names of the features that hold images, and class labels.
    """

    folder: Path
    builder: str
    shards: Mapping[str, Sequence[tuple[Path, int]]]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


def is_prepared(folder: Path) -> bool:
    """Return whether a folder is a version of a set of TensorFlow Datasets."""
    return (folder / INFO_NAME).is_file() and (folder / FEATURES_NAME).is_file()


def find_version(folder: Path) -> Path | None:
    """Return the folder of the version or configuration below a set's folder; None where there is none.

    Raises:
        DataError: there are several, or one that was not prepared to its end.
    """
    described = (*folder.glob(f"*/{INFO_NAME}"), *folder.glob(f"*/*/{INFO_NAME}"))
    found = sorted(path.parent for path in described if is_prepared(path.parent))
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DataError(
            f"{folder} holds several versions or configurations of a TensorFlow data set ({names}); give one of them"
        )
    if not found and (drafts := sorted(folder.glob("*.incomplete*"))):
        raise DataError(f"{drafts[0]} was not prepared to its end; `tfds build` prepares it again")
    return found[0] if found else None


def open_prepared(folder: Path) -> PreparedSet:
    """Read what a set holds.

    Raises:
        DataError: its description is damaged, its files are of another format, or some are missing.
    """
    info, features = _read(folder / INFO_NAME), _read(folder / FEATURES_NAME)
    if (form := info.get("fileFormat", "tfrecord")) != "tfrecord":
        raise DataError(
            f"{folder} holds files of the format {form}; TFRecord files are read, which `tfds build --file_format=tfrecord` "
            "writes. Of Parquet files give the files themselves"
        )
    try:
        shards = {split["name"]: _shards_of(folder, str(info["name"]), split) for split in info["splits"]}
        kinds = {
            name: str(value["pythonClassName"]).rpartition(".")[2]
            for name, value in features["featuresDict"]["features"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{folder}: its description is not that of TensorFlow Datasets ({type(error).__name__}: {error})"
        ) from error
    if missing := [path for files in shards.values() for path, _ in files if not path.is_file()]:
        raise DataError(
            f"{missing[0]} does not exist, and {len(missing) - 1} more files that {folder / INFO_NAME} names; copy them again"
        )
    return PreparedSet(
        folder,
        str(info["name"]),
        shards,
        images=tuple(name for name, kind in kinds.items() if kind == _IMAGE),
        labels=tuple(name for name, kind in kinds.items() if kind == _CLASS_LABEL),
        counts={name: sum(length for _, length in files) for name, files in shards.items()},
    )


def _shards_of(folder: Path, name: str, split: Mapping[str, Any]) -> list[tuple[Path, int]]:
    lengths = [int(length) for length in split["shardLengths"]]
    template = str(split.get("filepathTemplate") or _TEMPLATE)
    files = []
    for number, length in enumerate(lengths):
        words = {
            "DATASET": name,
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "SHARD_INDEX": f"{number:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
            "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
        }
        files.append((folder / Path(template.format(**words)).name, length))
    return files


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again") from error


@dataclass(frozen=True)
class Reader:
    """Says what is read of an example. Processes send it to each other.

    Attributes:
        places: by file, numbers of the examples that are wanted: first and end of each piece.
    """

    image: str
    label: str | None
    task: Task | None
    places: Mapping[str, Sequence[tuple[int, int]]]

    def __call__(self, path: str) -> Iterator[Entry]:
        for first, end in self.places[path]:
            for number, features in enumerate(read_examples(path, first=first, end=end), first):
                yield self._entry(features, path=path, number=number)

    def _entry(self, features: Features, *, path: str, number: int) -> Entry:
        try:
            (image,) = features[self.image]
            label = self._label(features)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(
                f"{path}: record {number} has not one image and one label ({type(error).__name__}: {error})"
            ) from error
        if not 0 <= label <= MAX_LABEL:
            raise DataError(
                f"{path}: record {number} has the label {label}, which is no class; test splits often hold no labels"
            )
        if self.task is not None and self.task.draw is not None:
            image = self.task.draw(image)
        return Entry("-".join([*_name(features), xxhash.xxh64_hexdigest(image)]), [label], image, number)

    def _label(self, features: Features) -> int:
        if self.task is not None and self.task.compute is not None:
            return self.task.compute(features)
        assert self.label is not None
        (label,) = features[self.label]
        return int(label)


def _name(features: Features) -> list[str]:
    """Return what a set calls an image, without its ending. Not all sets name them, so its content is added to the name."""
    for name in _FILE_NAMES:
        if len(values := features.get(name, [])) == 1 and isinstance(values[0], bytes):
            return [os.path.splitext(values[0].decode("utf-8", "replace"))[0]]
    return []


def plan_listing(
    found: PreparedSet, *, split: str | None, image: str | None, label: str | None, vtab: str | None, stamp: str
) -> Callable[[Path, Workers], Listing]:
    """Return a function from a scratch folder and workers to the listing of what is wanted.

    Args:
        split: slices, or with `vtab` the name of one of its splits.
        image, label: features; None: the only ones, or those named image and label.
        stamp: tells these files and options from others.

    Raises:
        DataError: no split is chosen, or a feature does not exist.
    """
    task = None if vtab is None else find_task(vtab, builder=found.builder, source=str(found.folder))
    if split is None:
        what = "train800val200, test, ..." if task else ", ".join(f"{name} ({count})" for name, count in found.counts.items())
        raise DataError(f"{found.folder} has several splits; choose with --source-split: {what}")
    parts = parse_slices(split, found.counts) if task is None else task.parts(split, found.counts)
    label = label if label is not None or task is None else task.label
    computes = task is not None and task.compute is not None
    reader = Reader(
        image=_choose(image, found.images, "image", option="--image-column", found=found),
        label=None if computes else _choose(label, found.labels, "label", option="--label-column", found=found),
        task=task,
        places=_places(found, parts),
    )
    classes = task.classes if task is not None and computes else _class_names(found.folder, reader.label)
    return partial(_list, reader, classes, stamp)


def _list(reader: Reader, classes: Sequence[str] | None, stamp: str, scratch: Path, workers: Workers) -> Listing:
    return unpack_files(reader, list(reader.places), scratch=scratch, stamp=stamp, classes=classes, workers=workers)


def _places(found: PreparedSet, parts: Sequence[Part]) -> dict[str, list[tuple[int, int]]]:
    places: dict[str, list[tuple[int, int]]] = {}
    for part in parts:
        files = found.shards[part.split]
        for number, place in place_in_shards(part, [length for _, length in files]).items():
            places.setdefault(str(files[number][0]), []).append(place)
    return places


def _choose(wanted: str | None, known: Sequence[str], usual: str, *, option: str, found: PreparedSet) -> str:
    if wanted is None:
        wanted = usual if usual in known or len(known) != 1 else known[0]
    if wanted not in known:
        raise DataError(f"{found.folder} has no {usual} {wanted!r}; choose with {option}: {', '.join(known) or 'it has none'}")
    return wanted


def _class_names(folder: Path, label: str | None) -> tuple[str, ...] | None:
    """Return the names of a label's classes; None where the set only numbers them."""
    path = folder / f"{label}.labels.txt"
    if not path.exists():
        return None
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again") from error
    return None if names == [str(number) for number in range(len(names))] else tell_apart(names)
