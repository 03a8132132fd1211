"""Open held-out images of the pretraining corpus, and find which of the model's classes theirs are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.shards.class_names import class_names_of, parse_class_names
from pipeline.data.shards.index import ShardIndex, check_shards, load_index
from pipeline.errors import DataError
from pipeline.evaluation.section import HeldOutSection
from pipeline.objectives.base import LabelKind

_SHOWN_NAMES = 3


@dataclass(frozen=True)
class Corpus:
    """Says what the classes of the pretraining corpus are."""

    num_classes: int
    class_names: tuple[str, ...] | None  # where they are known
    labels: LabelKind  # what the objective needs of an image


@dataclass(frozen=True)
class HeldOutSet:
    """Holds held-out images, whose classes are known to the model.

    Attributes:
        columns: of each of the set's classes, the model's class; None where they are numbered alike.
        any_of: an image may have several labels, of which a prediction has to be one.
    """

    name: str
    index: ShardIndex
    columns: tuple[int, ...] | None
    notes: tuple[str, ...]
    any_of: bool = False

    @property
    def fingerprint(self) -> str:
        """Return what changes with the images, their labels, or the classes that these are compared with."""
        columns = "" if self.columns is None else "-" + hashlib.blake2b(repr(self.columns).encode(), digest_size=8).hexdigest()
        return self.index.fingerprint[:16] + columns + "-any" * self.any_of


def open_held_out(section: HeldOutSection, corpus: Corpus) -> HeldOutSet:
    """Open a set.

    Raises:
        DataError: it is missing or damaged, lacks the labels that the objective needs, or has classes that the model has not.
    """
    any_of = section.labels == "any_of"
    try:
        if any_of and corpus.labels == "none":
            raise DataError("labels=any_of compares classes, and the run's objective has none")
        index = load_index(section.shards.path, section.shards.index)
        check_shards(index)
        if corpus.labels != "none":
            _check_labels(index, "several" if any_of else corpus.labels)
        columns, notes = (None, []) if corpus.labels == "none" else _find_columns(section, index, corpus)
        if corpus.labels != "none":
            _check_range(index, num_classes=corpus.num_classes if columns is None else len(columns))
        if columns is not None and corpus.labels == "several" and not any_of:
            raise DataError(
                "its classes are numbered otherwise than the corpus', and a class map is for images with one "
                "label; make the set "
                "again with `python -m data_tools make ... --classes` and the corpus' classes.txt"
            )
    except DataError as error:
        raise DataError(f"validation set {section.name!r}: {error}") from error
    return HeldOutSet(section.name, index, columns, tuple(notes), any_of)


def examine_held_out(section: HeldOutSection, corpus: Corpus, *, trained_on: str) -> list[str]:
    """Open a set before a run. Return remarks for the user.

    Args:
        trained_on: fingerprint of what the run is trained on.

    Raises:
        DataError: see `open_held_out`.
    """
    opened = open_held_out(section, corpus)
    same = ["these are the training images, so nothing is held out"] if opened.index.fingerprint == trained_on else []
    return [f"validation set {opened.name!r}: {note}" for note in [*opened.notes, *same]]


def _check_labels(index: ShardIndex, labels: LabelKind) -> None:
    if index.num_unlabelled:
        raise DataError(
            f"{index.num_unlabelled} of {index.num_samples} samples in {index.folder} have no usable label: "
            "`python -m data_tools "
            f"verify {index.folder}` names them"
        )
    if labels == "one" and index.num_several:
        raise DataError(
            f"{index.num_several} of {index.num_samples} samples in {index.folder} have several labels, or an "
            "empty list of them, "
            f"and the run's objective compares with one; make the set again with one label a sample, or set labels: any_of"
        )


def _check_range(index: ShardIndex, *, num_classes: int) -> None:
    if index.max_label is not None and index.max_label >= num_classes:
        raise DataError(
            f"{index.folder} has label {index.max_label}, and there are {num_classes} classes to compare with (0 to "
            f"{num_classes - 1}); is it a part of the pretraining corpus? Where its classes are numbered "
            "otherwise, give class_map"
        )


def _find_columns(section: HeldOutSection, index: ShardIndex, corpus: Corpus) -> tuple[tuple[int, ...] | None, list[str]]:
    """Return which of the model's classes the set's are (None: the same numbers), and remarks."""
    own, names = class_names_of(*index.folders), corpus.class_names
    if section.class_map == "numbers":
        return None, []
    if section.class_map is not None:
        columns = read_class_map(section.class_map, own=own, names=names, num_classes=corpus.num_classes)
        return columns, [f"its {len(columns)} classes are compared by {section.class_map}"]
    if own is None or names is None:
        where = "next to its shards" if own is None else "of the training corpus"
        return None, [f"no classes.txt {where}, so nothing can check that its labels are numbered as the model's classes"]
    if tuple(own) == names[: len(own)]:
        return None, []
    number_of = {name: number for number, name in enumerate(names)}
    missing = [name for name in own if name not in number_of]
    if missing:
        shown = ", ".join(missing[:_SHOWN_NAMES]) + (", ..." if len(missing) > _SHOWN_NAMES else "")
        raise DataError(
            f"{len(missing)} of its {len(own)} classes are none of the corpus' {len(names)} ({shown}; see classes.txt in "
            f"{index.folder}); give class_map: a file of lines SET'S CLASS <tab> MODEL'S CLASS, or `numbers` if "
            "only the names differ"
        )
    return tuple(number_of[name] for name in own), [f"its {len(own)} classes are found among the model's by name"]


def read_class_map(path: str, *, own: Sequence[str] | None, names: Sequence[str] | None, num_classes: int) -> tuple[int, ...]:
    """Read lines SET'S CLASS <tab> MODEL'S CLASS: names where classes.txt tells them, else numbers.

    Returns:
        The model's class of each of the set's, which are numbered from 0 without gaps.

    Raises:
        DataError: the file cannot be read, a line is none, a class is unknown, named twice or left out.
    """
    try:
        lines = parse_class_names(Path(path).read_bytes(), source=path)
    except OSError as error:
        raise DataError(f"class map {path} cannot be read: {error.strerror}") from error
    columns: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) != 2:
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not SET'S CLASS <tab> MODEL'S CLASS")
        where = f"{path}, line {number}"
        ours = _number_of(parts[0].strip(), own, limit=None, where=where, whose="the set's")
        if ours in columns:
            raise DataError(f"{where}: class {parts[0].strip()!r} was mapped before")
        columns[ours] = _number_of(parts[1].strip(), names, limit=num_classes, where=where, whose="the model's")
    expected = len(columns) if own is None else len(own)
    missing = [number for number in range(expected) if number not in columns]
    if missing or not columns:
        raise DataError(f"class map {path} has no line for class {missing[0] if missing else 0} of the set")
    twice = [target for target in set(columns.values()) if list(columns.values()).count(target) > 1]
    if twice:
        raise DataError(f"class map {path} maps several classes to the model's class {twice[0]}, so none could be told apart")
    return tuple(columns[number] for number in range(expected))


def _number_of(text: str, names: Sequence[str] | None, *, limit: int | None, where: str, whose: str) -> int:
    """Return the number of a class that is named, or numbered."""
    if names is not None and text in names:
        return list(names).index(text)
    if text.isascii() and text.isdigit() and (limit is None or int(text) < limit):
        return int(text)
    among = f"a number below {limit}" if limit is not None else "a number"
    raise DataError(f"{where}: {text!r} is not one of {whose} classes: {'a name of classes.txt, or ' if names else ''}{among}")
