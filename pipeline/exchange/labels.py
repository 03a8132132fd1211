"""Read and write the names of classes, and what makes logits probabilities, as transformers' configurations say them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.objectives.base import Probabilities

_LABEL = re.compile(r"LABEL_\d+")
_PROBLEMS: dict[str, Probabilities] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


def read_labels(config: Mapping[str, Any], num_classes: int) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the names of classes, and what is wrong with them in words; None for transformers' own stand-ins and for none.

    `id2label` maps numbers, which JSON writes as texts, to names; some write a list. `label2id` is read where it is missing.
    """
    found = config.get("id2label")
    if isinstance(found, list):
        found = dict(enumerate(found))
    ids = config.get("label2id")
    if not isinstance(found, dict) and isinstance(ids, dict):
        found = {number: name for name, number in ids.items()}
    if not isinstance(found, dict):
        return None, []
    named = {str(number): str(name) for number, name in found.items()}
    if named.keys() != {str(number) for number in range(num_classes)}:
        return None, [f"its {len(named)} labels are not those of the classes 0 to {num_classes - 1}: the classes have no names"]
    names = tuple(named[str(number)] for number in range(num_classes))
    return (None if all(_LABEL.fullmatch(name) for name in names) else names), []


def write_labels(names: Sequence[str] | None, num_classes: int) -> tuple[dict[str, Any], list[str]]:
    """Return what a configuration says of the classes, and notes. ImageNet has two cranes and two maillots.

    Names that occur twice have no number of their own: `label2id` is left out then, as transformers does for timm's models.
    """
    given = list(names) if names is not None else [f"LABEL_{number}" for number in range(num_classes)]
    numbered: dict[str, Any] = {"id2label": {str(number): name for number, name in enumerate(given)}}
    twice = [name for name in dict.fromkeys(given) if given.count(name) > 1] if len(set(given)) < len(given) else []
    if twice:
        return numbered, [f"label2id is left out: {len(twice)} names are those of several classes ({twice[0]!r})"]
    return {**numbered, "label2id": {name: number for number, name in enumerate(given)}}, []


def read_problem(config: Mapping[str, Any]) -> Probabilities | None:
    """Return what makes the logits probabilities; None where a configuration does not say."""
    return _PROBLEMS.get(str(config.get("problem_type")))


def write_problem(probabilities: Probabilities | None) -> dict[str, str]:
    """Return the entry of a configuration by which transformers' pipelines choose between softmax and sigmoid."""
    problem = next((problem for problem, kind in _PROBLEMS.items() if kind == probabilities), None)
    return {} if problem is None else {"problem_type": problem}
