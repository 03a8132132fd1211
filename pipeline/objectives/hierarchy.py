"""Read a hierarchy of classes: an image of a class is an image of the class's ancestors too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.functional.losses import multi_hot_targets

Node = int | str  # a class, or a name that is none
MAX_DIGITS = 10


class Hierarchy:
    """Holds the ancestors of each class.

    Args:
        closures: of each class: itself, then those of its ancestors that are classes, each once.
    """

    def __init__(self, closures: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, closures))
        # Filled up by a class that is none, so that an image's targets need no number that a GPU would have to tell.
        rows = [[*closure, *(len(closures) for _ in range(longest - len(closure)))] for closure in closures]
        self._table = torch.tensor(rows)  # (C, A) int64
        self.num_with_ancestors = sum(len(closure) > 1 for closure in closures)

    def targets(self, labels: Tensor, ends: Tensor) -> Float[Tensor, "B C"]:
        """Return a row of 0 and 1 for each image: 1 for its labels, and for their classes' ancestors.

        Args:
            labels: (L,) of the images, one after the other.
            ends: (B,) where each image's labels end.
        """
        if self._table.device != labels.device:
            self._table = self._table.to(labels.device)
        num_classes, longest = self._table.shape
        ancestors = self._table[labels].flatten()  # (L A,)
        return multi_hot_targets(ancestors, ends * longest, num_classes=num_classes + 1)[:, :num_classes]


def read_hierarchy(path: str, *, num_classes: int, class_names: Sequence[str] | None) -> Hierarchy:
    """Read lines of two words, a class and a parent of it: class numbers, or names as in classes.txt. `#` begins a comment.

    A name that is no class may lie between two classes: WordNet has many such. A class then has the ancestors beyond it.

    Raises:
        ConfigError: the file cannot be read, a line is not two words, a number is no class, a class is its own ancestor, or
            no class has an ancestor.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"objective.hierarchy={path} cannot be read: {error}") from error
    numbers = {name: number for number, name in enumerate(class_names or ())}
    parents: dict[Node, list[Node]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words and len(words) != 2:
            raise ConfigError(f"{path}:{number}: {line[:60]!r} is not two words, a class and its parent")
        if words:
            child, parent = (_node(word, numbers, num_classes=num_classes, place=f"{path}:{number}") for word in words)
            parents.setdefault(child, []).append(parent)
    closures = [_ancestors(number, parents, path=path) for number in range(num_classes)]
    if not any(len(closure) > 1 for closure in closures):
        known = f"numbers are 0 to {num_classes - 1}" + ("" if class_names is None else f", names are {class_names[0]!r}, ...")
        raise ConfigError(f"{path}: no class has an ancestor among the classes; {known}")
    return Hierarchy(closures)


def _node(word: str, numbers: Mapping[str, int], *, num_classes: int, place: str) -> Node:
    if word in numbers:
        return numbers[word]
    if not (word.isascii() and word.isdigit()):
        return word
    if len(word) > MAX_DIGITS or int(word) >= num_classes:
        raise ConfigError(f"{place}: {word[:40]} is no class; model.num_classes={num_classes}, and they count from 0")
    return int(word)


def _ancestors(number: int, parents: Mapping[Node, Sequence[Node]], *, path: str) -> list[int]:
    """Return a class, then those of its ancestors that are classes, each once."""
    found: dict[Node, None] = {number: None}
    waiting = list(parents.get(number, ()))
    while waiting:
        ancestor = waiting.pop()
        if ancestor == number:
            raise ConfigError(f"{path}: class {number} is its own ancestor; remove one of the lines of that circle")
        if ancestor not in found:
            found[ancestor] = None
            waiting += parents.get(ancestor, ())
    return [node for node in found if isinstance(node, int)]
