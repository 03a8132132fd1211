"""Downstream sets: opened and checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import EvalDataset
from pipeline.data.index import ShardIndex, check_shards, load_index, read_class_names
from pipeline.errors import DataError


@dataclass(frozen=True)
class EvaluationSet:
    """The two splits of a downstream set, whose class ids mean the same."""

    name: str
    train: ShardIndex
    test: ShardIndex
    notes: tuple[str, ...]  # what a user should know, and nothing can be done about here

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint[:16]}-{self.test.fingerprint[:16]}"


def open_dataset(dataset: EvalDataset) -> EvaluationSet:
    """Open a set.

    Raises:
        DataError: a split that is missing or damaged, or has no labels, or splits that number their classes differently.
    """
    try:
        train, test = load_index(dataset.train.path, dataset.train.index), load_index(dataset.test.path, dataset.test.index)
        check_shards(train)
        check_shards(test)
        for index in (train, test):
            _check_labels(index)
    except DataError as error:
        raise DataError(f"evaluation set {dataset.name!r}: {error}") from error
    names, others = read_class_names(train), read_class_names(test)
    if names is not None and others is not None and names != others:
        raise DataError(
            f"evaluation set {dataset.name!r}: the splits number their classes differently (see classes.txt in {train.folder} "
            f"and {test.folder}); make the test split again with `python -m data_tools make ... --classes {train.folder}/classes.txt`"
        )
    notes = []
    if (names is None or others is None) and dataset.train != dataset.test:
        notes.append("no classes.txt beside both splits, so nothing can check that they number classes alike")
    if train.fingerprint == test.fingerprint:
        notes.append("train and test are the same images: its accuracies say nothing about other images")
    return EvaluationSet(dataset.name, train, test, tuple(notes))


def _check_labels(index: ShardIndex) -> None:
    if index.num_unlabelled:
        raise DataError(
            f"{index.num_unlabelled} of {index.num_samples} samples in {index.folder} have no usable label; an evaluation set "
            f"needs one for each image: `python -m data_tools verify {index.folder}` names them"
        )
