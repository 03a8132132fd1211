"""Open and check downstream sets, and compare them with what is to be measured on them, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.class_counts import ClassCounts
from pipeline.data.section import ShardsSection
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.index import ShardIndex, check_shards, load_index
from pipeline.errors import DataError, EvaluationError
from pipeline.evaluation.requirements import compare_classes
from pipeline.evaluation.section import EvalDataset, EvaluationSection


@dataclass(frozen=True)
class EvaluationSet:
    """Holds the two splits of a downstream set, whose class ids mean the same."""

    name: str
    train: ShardIndex
    test: ShardIndex
    notes: tuple[str, ...]  # facts for the user that nothing here can change
    places: dict[str, dict[str, str]]  # of `train` and `test`, as settings of shards

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint[:16]}-{self.test.fingerprint[:16]}"


def open_dataset(dataset: EvalDataset) -> EvaluationSet:
    """Open a set.

    Raises:
        DataError: a split is missing or damaged, or has no labels, or the splits number their classes differently.
    """
    train, test, are_named = open_splits(dataset, what="evaluation set", check=_check_labels)
    notes = []
    if not are_named and dataset.train != dataset.test:
        notes.append("no classes.txt next to both splits, so nothing can check that they number classes alike")
    if train.fingerprint == test.fingerprint:
        notes.append("train and test are the same images: its accuracies say nothing about other images")
    places = {name: _place_of(split) for name, split in (("train", dataset.train), ("test", dataset.test))}
    return EvaluationSet(dataset.name, train, test, tuple(notes), places)


def _place_of(split: ShardsSection) -> dict[str, str]:
    return {"path": split.path} if split.index is None else {"path": split.path, "index": split.index}


class OpenSplits(NamedTuple):
    """Holds the two splits of a set, and whether both have names of their classes, which are then the same."""

    train: ShardIndex
    test: ShardIndex
    are_named: bool


def open_splits(dataset: EvalDataset, *, what: str, check: Callable[[ShardIndex], None]) -> OpenSplits:
    """Open the two splits of a set.

    Args:
        what: what it is, for messages.
        check: raises DataError where a split lacks what is needed of it.

    Raises:
        DataError: a split is missing or damaged, or fails the check, or the splits number their classes differently.
    """
    try:
        train, test = (load_index(split.path, split.index) for split in (dataset.train, dataset.test))
        for index in (train, test):
            check_shards(index)
        for index in (train, test):
            check(index)
    except DataError as error:
        raise DataError(f"{what} {dataset.name!r}: {error}") from error
    names, others = class_names_of(*train.folders), class_names_of(*test.folders)
    if names is not None and others is not None and names != others:
        raise DataError(
            f"{what} {dataset.name!r}: the splits number their classes differently (see classes.txt in {train.folder} "
            f"and {test.folder}); make the test split again with `python -m data_tools make ... --classes "
            f"{train.folder}/classes.txt`"
        )
    return OpenSplits(train, test, are_named=names is not None and others is not None)


def _check_labels(index: ShardIndex) -> None:
    if index.num_several:
        raise DataError(
            f"{index.num_several} of {index.num_samples} samples in {index.folder} have several labels, or an empty list of "
            f"them; its protocols need one for each image: make the set again with one label a sample"
        )
    if index.num_unlabelled:
        raise DataError(
            f"{index.num_unlabelled} of {index.num_samples} samples in {index.folder} have no usable label; an evaluation set "
            f"needs one for each image: `python -m data_tools verify {index.folder}` names them"
        )


def examine_dataset(dataset: EvalDataset, section: EvaluationSection) -> list[str]:
    """Open a set before a run. Return what its results will lack, by the counts of its indexes.

    Raises:
        DataError: it cannot be opened.
        EvaluationError: nothing can be measured on it.
    """
    opened = open_dataset(dataset)
    notes = [*opened.notes]
    train, test = opened.train.class_counts, opened.test.class_counts
    if train is not None and test is not None:  # else an older version made an index
        try:
            notes += compare_classes(train, test).notes
        except EvaluationError as error:
            raise EvaluationError(
                f"evaluation set {opened.name!r}: {error} Correct its train and test, or leave it out of evaluation.datasets"
            ) from error
    if train is not None:
        notes += _judge_train(opened, train, section)
    return [f"evaluation set {opened.name!r}: {note}" for note in notes]


def _judge_train(opened: EvaluationSet, train: ClassCounts, section: EvaluationSection) -> list[str]:
    """Return what the train split has too few images for.

    Settings that would fail at every checkpoint are refused if there are no others.
    """
    impossible = {name: protocol.why_impossible(train) for name, protocol in section.protocols.items()}
    reasons = {name: reason for name, reason in impossible.items() if reason is not None}
    left_out = " ".join(f"evaluation.protocols.{name}=null" for name in reasons)
    if reasons and len(reasons) == len(section.protocols):
        raise EvaluationError(
            f"evaluation set {opened.name!r}: {'; '.join(reasons.values())}; leave the set out, or name a protocol that can"
        )
    notes = [f"{name} will fail: {reason}; leave it out with {left_out}" for name, reason in reasons.items()]
    names = class_names_of(*opened.train.folders)
    for name, protocol in section.protocols.items():
        notes += protocol.notes(train, class_names=names, path=f"evaluation.protocols.{name}")
    return notes
